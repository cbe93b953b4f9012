"""The plan of the tests with combined faults, and the rules for every run of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from longshore.orchestration import Plan, Report, StepState, UndoState
from longshore.orchestration.states import STEP_FINAL, TERMINAL, UNDO_FINAL
from tests.faults.effects import effect_counts

#: Steps that are not idempotent.
ONCE = frozenset({"act", "act-too"})


def twelve_steps(folder: Path, *, fails: bool, seconds: float = 0.05) -> Plan:
    """Twelve steps: sequential and parallel steps, a retry, a guard, a fan-out, an optional failure, an always step."""
    given = {"folder": str(folder), "seconds": seconds}
    back = {"folder": str(folder)}
    plan = Plan("twelve-steps")
    first = plan.step("first", "effect.set", **given)
    left = plan.step("left", "effect.set", **given).after(first)
    act = plan.step("act", "effect.act", **given).after(first).undo("effect.unset", **back)
    right = plan.step("right", "effect.set", flaky=True, **given).after(first).retry(3)
    each = plan.step("each", "effect.set", **given).foreach([1, 2, 3]).after(left)
    join = plan.step("join", "effect.set", **given).after(act, right)
    skipped = plan.step("skipped", "effect.set", **given).after(join).when("false")
    too = plan.step("act-too", "effect.act", **given).after(join, each).undo("effect.unset", **back)
    check = plan.step("check", "effect.fail", folder=str(folder), fails=fails).after(too, skipped).undo("none")
    deep = plan.step("deep", "effect.set", **given).after(check)
    plan.step("last", "effect.set", **given).after(deep)
    plan.step("lights", "effect.always", folder=str(folder)).after("last").always()
    return plan


def broken(report: Report, folder: Path, *, fails: bool) -> Iterator[str]:
    """A text for each rule that a run breaks."""
    done = effect_counts(folder, report.run_id)
    run = report.run_id
    if report.state not in TERMINAL:
        yield f"{run}: the run has not ended: {report.state}"
        return
    for step in report.steps:
        if step.status not in STEP_FINAL or (step.undo and step.undo.status not in UNDO_FINAL):
            yield f"{run}: step {step.name} has not ended: {step.status}, undo {step.undo and step.undo.status}"
    if not done["always", "lights"]:
        yield f"{run}: the always step did not run"
    parts = {part for _, part in done}
    for part in sorted(parts):
        name = part.partition("@")[0]
        if name in ONCE and done["did", part] > 1:
            yield f"{run}: {part} was executed {done['did', part]} times"
        if done["undid", part] > done["did", part]:
            yield f"{run}: {part} was undone {done['undid', part]} times, and executed {done['did', part]} times"
    if report.state == "succeeded":
        yield from _succeeded(report, done)
    elif report.state == "undone":
        yield from _undone(report, done)
    else:
        undo = {step.name: str(step.undo.error) for step in report.steps if step.undo and step.undo.error}
        yield f"{run}: the run ended {report.state}: {report.error}, errors of undo steps: {undo}"
    if fails and report.state == "succeeded":
        yield f"{run}: the run succeeded, although a step fails"
    if not fails and report.state == "undone" and not _has_unknown_step(report):
        yield f"{run}: the run was undone without a reason: {report.error}"


def _has_unknown_step(report: Report) -> bool:
    """Whether a step has an unknown outcome, which ends the run."""
    return any(step.status is StepState.UNKNOWN for step in report.steps)


def _succeeded(report: Report, done: dict[tuple[str, str], int]) -> Iterator[str]:
    for step in report.steps:
        if step.op == "effect.always" or step.status is StepState.SKIPPED:
            continue
        parts = [f"{step.name}@{n}" for n in range(len(step.items))] or [step.name]
        for part in parts:
            if step.op in {"effect.set", "effect.act"} and done.get(("did", part)) != 1:
                yield f"{report.run_id}: the run succeeded, and {part} was executed {done.get(('did', part), 0)} times"
            if done.get(("undid", part)):
                yield f"{report.run_id}: the run succeeded, and {part} was undone"


def _undone(report: Report, done: dict[tuple[str, str], int]) -> Iterator[str]:
    for word, part in done:
        if word == "did" and done.get(("undid", part), 0) != done["did", part]:
            times = done.get(("undid", part), 0)
            yield f"{report.run_id}: {part} was executed {done['did', part]} times, and undone {times} times"
    for step in report.steps:
        if step.undo is not None and step.undo.status is UndoState.UNDO_FAILED:
            yield f"{report.run_id}: the undo of {step.name} failed: {step.undo.error}"
