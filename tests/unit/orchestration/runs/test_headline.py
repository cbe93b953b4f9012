"""The sentence about the state of a run."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.orchestration.runs.headline import headline
from longshore.orchestration.runs.report import ErrorReport, Report
from longshore.orchestration.runs.step_report import StepReport, UndoReport
from longshore.orchestration.states import Cause, RunState, StepState, UndoState


def step(name: str, status: str, undo: str = "", **more: Any) -> StepReport:
    done = UndoReport(status=UndoState(undo)) if undo else None
    changed = status == "changed"
    return StepReport(
        name=name, op="noop.execute", level=0, status=StepState(status), changed=changed, attempts=1, undo=done, **more
    )


def sentence(
    state: str, *steps: StepReport, error: str = "", at: str | None = None, waits: Any = (), **more: Any
) -> str:
    report = Report(
        run_id="r", plan="p", state=RunState(state), summary="", steps=list(steps),
        error=ErrorReport(step=at, message=error) if error else None, **more,
    )  # fmt: skip
    return headline(report, waits)


FAILED = step("check", "failed")
UNDONE = step("a", "changed", "undone")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            sentence("succeeded", step("a", "changed"), step("b", "unchanged")),
            "2 steps succeeded: 1 changed something.",
        ),
        (sentence("succeeded", step("a", "changed"), step("b", "changed")), "2 steps succeeded, each with a change."),
        (
            sentence("succeeded", step("a", "unchanged"), step("b", "skipped")),
            "1 step succeeded: nothing had to be changed, and 1 did not have to run.",
        ),
        (
            sentence("undone", UNDONE, step("b", "changed", "undone"), FAILED, error="503", at="check"),
            "Step check failed; 2 steps were undone, and no change remains.",
        ),
        (sentence("undone", FAILED), "Step check failed; no change remains."),
        (
            sentence("undone", UNDONE, FAILED, left_over=["log"]),
            "Step check failed; 1 step was undone, and changes of log remain.",
        ),
        (
            sentence("undone", UNDONE, cause=Cause.CANCEL),
            "The run was cancelled; 1 step was undone, and no change remains.",
        ),
        (
            sentence("undone", UNDONE, cause=Cause.OPERATOR),
            "An operator undid the run; 1 step was undone, and no change remains.",
        ),
        (
            sentence("undo_failed", step("a", "changed", "undo_failed"), FAILED, left_over=["a"]),
            "Step check failed, and the undo failed: changes of a remain.",
        ),
        (
            sentence("failed", step("a", "changed"), FAILED, left_over=["a", "b", "c", "d", "e"]),
            "Step check failed; changes of a, b, c and 2 more remain.",
        ),
        (sentence("partial", FAILED, in_doubt=["check"]), "Step check failed; 1 effect is in doubt."),
        (
            sentence("running", step("a", "changed"), step("b", "running"), step("c", "pending")),
            "1 of 3 steps have ended; b runs now.",
        ),
        (
            sentence("running", step("a", "waiting", reason="waits for an approval: Really?")),
            "0 of 1 step has ended; a waits for an approval: Really?",
        ),
        (
            sentence("running", step("a", "ready"), waits=["no worker consumes queue docker"]),
            "0 of 1 step has ended; the run waits: no worker consumes queue docker.",
        ),
        (sentence("pending", step("a", "pending")), "No worker has begun the run yet."),
        (
            sentence("pending", step("a", "pending"), error="the run waits for admission: 2 runs wait before it"),
            "The run waits for admission: 2 runs wait before it.",
        ),
        (sentence("suspended", error="Redis lost data"), "The run is suspended: Redis lost data."),
        (sentence("undoing", UNDONE, FAILED), "Step check failed; completed steps are being undone, 1 so far."),
        (
            sentence("aborting", step("a", "running"), cause=Cause.DEADLINE),
            "The run exceeded its time limit; no new step starts, and running steps are awaited.",
        ),
    ],
)
def test_sentence_names_failure_undo_and_remaining_effects(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.parametrize("state", RunState)
def test_every_state_has_a_sentence(state: RunState) -> None:
    assert sentence(state, FAILED).endswith(".")
