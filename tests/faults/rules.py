"""The plan of the storms, and what has to hold of every run of it, whatever happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from longshore.orchestration import Plan, Report, StepState, UndoState
from longshore.orchestration.states import STEP_FINAL, TERMINAL, UNDO_FINAL
from tests.faults.effects import deeds

#: Steps that must not be done twice.
ONCE = frozenset({"act", "act-too"})


def twelve(folder: Path, *, fails: bool, seconds: float = 0.05) -> Plan:
    """Twelve steps: alone, side by side, retried, guarded, for items, one that may fail, and an always."""
    given = {"folder": str(folder), "seconds": seconds}
    back = {"folder": str(folder)}
    plan = Plan("storm")
    first = plan.step("first", "deed.set", **given)
    left = plan.step("left", "deed.set", **given).after(first)
    act = plan.step("act", "deed.act", **given).after(first).undo("deed.unset", **back)
    right = plan.step("right", "deed.set", flaky=True, **given).after(first).retry(3)
    each = plan.step("each", "deed.set", **given).foreach([1, 2, 3]).after(left)
    join = plan.step("join", "deed.set", **given).after(act, right)
    skipped = plan.step("skipped", "deed.set", **given).after(join).when("false")
    too = plan.step("act-too", "deed.act", **given).after(join, each).undo("deed.unset", **back)
    check = plan.step("check", "deed.fail", folder=str(folder), fails=fails).after(too, skipped).undo("none")
    deep = plan.step("deep", "deed.set", **given).after(check)
    plan.step("last", "deed.set", **given).after(deep)
    plan.step("lights", "deed.always", folder=str(folder)).after("last").always()
    return plan


def broken(report: Report, folder: Path, *, fails: bool) -> Iterator[str]:
    """The rules of the design that a run breaks; none, where all is well."""
    done = deeds(folder, report.run_id)
    told = report.run_id
    if report.state not in TERMINAL:
        yield f"{told}: rule 5: it is {report.state}"
        return
    for step in report.steps:
        if step.status not in STEP_FINAL or (step.undo and step.undo.status not in UNDO_FINAL):
            yield f"{told}: rule 5: step {step.name} is {step.status}, its undo {step.undo and step.undo.status}"
    if not done["always", "lights"]:
        yield f"{told}: rule 6: the always step did not run"
    parts = {part for _, part in done}
    for part in sorted(parts):
        name = part.partition("@")[0]
        if name in ONCE and done["did", part] > 1:
            yield f"{told}: rule 3: {part} was done {done['did', part]} times"
        if done["undid", part] > done["did", part]:
            yield f"{told}: {part} was taken back {done['undid', part]} times, and done {done['did', part]}"
    if report.state == "succeeded":
        yield from _succeeded(report, done)
    elif report.state == "undone":
        yield from _undone(report, done)
    else:
        yield f"{told}: it ended {report.state}: {report.error}"
    if fails and report.state == "succeeded":
        yield f"{told}: it succeeded, and was to fail"
    if not fails and report.state == "undone" and not _was_in_doubt(report):
        yield f"{told}: it was undone without a reason: {report.error}"


def _was_in_doubt(report: Report) -> bool:
    """A step that may have happened and must not be repeated ends a run."""
    return any(step.status is StepState.UNKNOWN for step in report.steps)


def _succeeded(report: Report, done: dict[tuple[str, str], int]) -> Iterator[str]:
    for step in report.steps:
        if step.op == "deed.always" or step.status is StepState.SKIPPED:
            continue
        parts = [f"{step.name}@{n}" for n in range(len(step.items))] or [step.name]
        for part in parts:
            if step.op in {"deed.set", "deed.act"} and done.get(("did", part)) != 1:
                yield f"{report.run_id}: it succeeded, and {part} was done {done.get(('did', part), 0)} times"
            if done.get(("undid", part)):
                yield f"{report.run_id}: it succeeded, and {part} was taken back"


def _undone(report: Report, done: dict[tuple[str, str], int]) -> Iterator[str]:
    for word, part in done:
        if word == "did" and done.get(("undid", part), 0) != done["did", part]:
            times = done.get(("undid", part), 0)
            yield f"{report.run_id}: {part} was done {done['did', part]} and taken back {times} times"
    for step in report.steps:
        if step.undo is not None and step.undo.status is UndoState.UNDO_FAILED:
            yield f"{report.run_id}: the undo of {step.name} failed: {step.undo.error}"
