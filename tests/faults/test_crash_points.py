"""A crash at each crash point, for each kind of step: the run still ends in the correct state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Plan, Run
from longshore.orchestration.plans.handles import StepHandle
from longshore.tasks.crash_points import HELD_POINTS, POINTS
from tests.faults.conftest import LONG, Form
from tests.faults.effects import effect_counts
from tests.integration.processes import PATIENCE, Installation, Worker, lines, wait_for
from tests.servers import SOON

pytestmark = pytest.mark.timeout(3600)

Kind = Callable[[Plan, Path], StepHandle]


def _noop(plan: Plan, home: Path) -> StepHandle:
    return plan.step("it", "noop.execute")


def _guarded_command(plan: Plan, home: Path) -> StepHandle:
    text = f"echo did >> {home}/log; touch {home}/made"
    step = plan.step("it", "command.shell.execute", command=text, creates=f"{home}/made")
    return step.undo("command.shell.execute", command=f"rm -f {home}/made")


def _command(plan: Plan, home: Path) -> StepHandle:
    step = plan.step("it", "command.shell.execute", command=f"echo did >> {home}/log")
    return step.undo("command.shell.execute", command=f"echo undid >> {home}/undone")


def _file(plan: Plan, home: Path) -> StepHandle:
    return plan.step("it", "file.deploy.execute", path=f"{home}/conf", content="new")


def _function(plan: Plan, home: Path) -> StepHandle:
    return plan.step("it", "effect.set", folder=str(home))


def _function_once(plan: Plan, home: Path) -> StepHandle:
    return plan.step("it", "effect.act", folder=str(home)).undo("effect.unset", folder=str(home))


def _items(plan: Plan, home: Path) -> StepHandle:
    return plan.step("it", "effect.set", folder=str(home)).foreach([1, 2, 3]).max_parallel(2)


def _approval(plan: Plan, home: Path) -> StepHandle:
    return plan.approval("it", timeout="200ms", on_timeout="approve")


def _child(plan: Plan, home: Path) -> StepHandle:
    child = Plan("child")
    child.step("inner", "file.deploy.execute", path=f"{home}/inner", content="new")
    return plan.run_plan("it", child)


KINDS: dict[str, Kind] = {
    "noop": _noop,
    "command with creates": _guarded_command,
    "command": _command,
    "file": _file,
    "function, idempotent": _function,
    "function": _function_once,
    "items": _items,
    "approval": _approval,
    "child run": _child,
}
#: Kinds whose outcome is unknown after a lost attempt.
DOUBTFUL = {"command", "function"}


class Crasher:
    """A worker that crashes at one point, once after each `arm`."""

    def __init__(self, place: Installation, folder: Path, point: str) -> None:
        self.marker = folder / "marker"
        self.marker.touch()
        crash = f"{point}:{self.marker}"
        self.worker: Worker = place.worker(f"at-{point}", "--concurrency", "1", LONGSHORE_CRASH_AT=crash)
        self.worker.start()
        self.place = place

    def wait_for_end(self, run: Run) -> Any:
        def ended() -> bool:
            self.worker.keep_alive()
            return run.report().ended

        wait_for(f"the end of {run.id}", ended, PATIENCE)
        return run.report()

    def arm(self) -> None:
        self.marker.unlink(missing_ok=True)

    @property
    def crashed(self) -> bool:
        return self.marker.exists()


def _plan(kind: str, home: Path, marker: Path, *, fails: bool) -> Plan:
    """A plan that arms the crash, runs the step, and then fails or succeeds."""
    plan = Plan("crash")
    text = f"test -e {marker}.armed || {{ touch {marker}.armed; rm -f {marker}; }}"
    armed = plan.step("arm", "command.shell.execute", command=text, changes=False)
    step = KINDS[kind](plan, home).after(armed)
    plan.step("fail", "noop.execute", fail=fails).after(step).undo("none")
    plan.step("lights", "noop.execute").after("fail").always()
    return plan


def _wrong(kind: str, home: Path, report: Any, *, fails: bool) -> Iterator[str]:
    status = report.step("it").status
    doubt = kind in DOUBTFUL and status == "unknown"
    if report.state != ("undone" if fails or doubt else "succeeded"):
        yield f"the run ended {report.state}, and its step {status}: {report.error}"
    if report.left_over:
        yield f"left over: {report.left_over}"
    if report.step("lights").status != "changed":
        yield f"the always step is {report.step('lights').status}"
    did = effect_counts(home, report.run_id)
    if kind == "function" and did["did", "it"] > 1:
        yield f"the step was executed {did['did', 'it']} times"
    if kind == "command" and len(lines(home / "log")) > 1:
        yield f"the step was executed {len(lines(home / 'log'))} times"
    remaining = [part for word, part in did if word == "did" and did["did", part] != did["undid", part]]
    files = [name for name in ("conf", "made", "inner") if (home / name).exists()]
    if (fails or doubt) and (remaining or files):
        yield f"the step was undone, and {remaining or files} remain"


@pytest.mark.skipif(not LONG, reason="only in the long form (make faults); short form: integration/test_crashes.py")
@pytest.mark.parametrize("point", POINTS)
def test_run_recovers_from_a_crash_at(
    point: str, place: Installation, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    crasher = Crasher(place, tmp_path, point)
    fails = point.startswith("undo.")
    rows: dict[str, str] = {}
    for number, kind in enumerate(KINDS):
        if not _reaches(point, kind):
            continue
        home = tmp_path / f"home{number}"
        home.mkdir()
        Path(f"{crasher.marker}.armed").unlink(missing_ok=True)
        if point in {"advance.created", "advance.admitted"}:
            crasher.arm()  # the step that arms the crash starts after this point
            Path(f"{crasher.marker}.armed").touch()
        run = place.run(_plan(kind, home, crasher.marker, fails=fails), run_id=f"{point}-{number}")
        report = crasher.wait_for_end(run)
        with contextlib.suppress(AssertionError):  # the last point is after the end of the run
            wait_for("the crash", lambda: crasher.crashed, SOON)
        wrong = list(_wrong(kind, home, report, fails=fails))
        rows[kind] = "; ".join(wrong) or "recovered" if crasher.crashed else "the point was not reached"
    for kind, what in rows.items():
        figures(kind, what)
    assert set(rows.values()) == {"recovered"}


def _reaches(point: str, kind: str) -> bool:
    """Whether a step of a kind reaches a crash point."""
    if point == "step.parked":
        return kind in {"approval", "child run"}
    if point in {"step.acted", "step.recorded"}:
        return kind not in {"approval", "child run"}
    if point == "undo.acted":
        # The undo of the step waits for the undo of the child run.
        return kind not in {"approval", "child run"}
    return not (point.startswith("undo.") and kind == "approval")


@pytest.mark.parametrize("point", HELD_POINTS)
def test_suspended_run_recovers_from_a_crash_at(
    point: str, place: Installation, tmp_path: Path, figures: Callable[[str, Any], None]
) -> None:
    # given
    place.options |= {"slow_retry": "1s", "retry_spread": "500ms"}
    crasher = Crasher(place, tmp_path, point)
    (tmp_path / "down").touch()
    plan = Plan("held", on_failure="keep")
    call = plan.step("call", "effect.call", folder=str(tmp_path))
    check = plan.step("check", "command.shell.execute", command=f"test -e {tmp_path}/ok", changes=False).after(call)
    plan.step("last", "effect.set", folder=str(tmp_path)).after(check)
    crasher.arm()

    # when the run is suspended by a service, continues, fails and is resumed, with a crash in between
    run = place.run(plan)

    def suspended() -> bool:
        crasher.worker.keep_alive()
        return run.state() == "suspended" and (tmp_path / "calls").exists()

    wait_for("the suspension", suspended)
    (tmp_path / "down").unlink()
    assert crasher.wait_for_end(run).state == "failed"
    (tmp_path / "ok").touch()
    run.resume()

    def resumed() -> bool:
        crasher.worker.keep_alive()
        return run.state() == "succeeded"

    # then
    wait_for("the success of the run", resumed)
    assert crasher.crashed, "the point was not reached"
    assert effect_counts(tmp_path, run.id) == {("did", "call"): 1, ("did", "last"): 1}
    figures(point, "recovered")
