"""Steps in doubt: stopped, perhaps with an effect, and without a compensation that covers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longshore.orchestration import Plan, Preflight, RunState, StepState, UndoState, operation
from longshore.orchestration.errors import Permanent, Transient
from longshore.orchestration.runs.doubt import in_doubt
from longshore.orchestration.testing import Sandbox
from longshore.orchestration.transitions import StepRecord
from tests.unit.plans import compiled

COMMAND: dict[str, Any] = {"op": "command.exec.execute", "with": {"argv": ["x"]}}
READS = {"op": "command.exec.execute", "with": {"argv": ["x"], "changes": False}}
NOOP = {"op": "noop.execute"}
FAILED = StepRecord(StepState.FAILED, 1)
NO_UNDO = StepRecord(StepState.FAILED, 1, UndoState.NOT_UNDOABLE)


@pytest.mark.parametrize(
    ("step", "record", "state", "expected"),
    [
        (COMMAND, NO_UNDO, RunState.UNDONE, True),
        (COMMAND, StepRecord(StepState.CANCELLED, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, True),
        # effects kept or failure tolerated: no compensation has run
        (COMMAND, FAILED, RunState.FAILED, True),
        (NOOP, FAILED, RunState.PARTIAL, True),
        # covered by a compensation, or named elsewhere in the report
        (NOOP, StepRecord(StepState.FAILED, 1, UndoState.UNDONE), RunState.UNDONE, False),
        (NOOP, StepRecord(StepState.FAILED, 1, UndoState.UNDO_FAILED), RunState.UNDO_FAILED, False),
        (COMMAND, StepRecord(StepState.CHANGED, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, False),
        (COMMAND, StepRecord(StepState.UNKNOWN, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, False),
        # no effect, or an effect that needs no compensation
        (COMMAND, StepRecord(StepState.FAILED, 1, no_effect=True), RunState.FAILED, False),
        (COMMAND, StepRecord(StepState.FAILED, 1, reverted=True), RunState.PARTIAL, False),
        (COMMAND, StepRecord(StepState.FAILED, 0), RunState.FAILED, False),
        (COMMAND, StepRecord(StepState.CANCELLED, 0), RunState.FAILED, False),
        (COMMAND | {"undo": "none"}, FAILED, RunState.UNDONE, False),
        (COMMAND | {"always": True}, FAILED, RunState.UNDONE, False),
        (READS, FAILED, RunState.UNDONE, False),
        ({"op": "docker.inspect.get", "with": {"container": "web"}}, FAILED, RunState.UNDONE, False),
    ],
    ids=str,
)
def test_stopped_step_without_compensation_is_in_doubt(
    step: dict[str, Any], record: StepRecord, state: RunState, expected: bool
) -> None:
    plan = compiled(Plan.model_validate({"name": "p", "steps": {"a": step}}))

    assert in_doubt(plan, state, {0: record}) == ([0] if expected else [])


def test_units_are_in_doubt_one_by_one() -> None:
    step = COMMAND | {"foreach": [1, 2, 3]}
    plan = compiled(Plan.model_validate({"name": "p", "steps": {"a": step}}))
    units = (NO_UNDO, StepRecord(StepState.UNCHANGED, 1), NO_UNDO)

    assert in_doubt(plan, RunState.UNDONE, {0: StepRecord(StepState.FAILED, 1, units=units)}) == ["0.0", "0.2"]


def test_tolerated_units_of_a_succeeded_run_are_not_in_doubt() -> None:
    step = COMMAND | {"foreach": [1, 2], "tolerate": 1}
    plan = compiled(Plan.model_validate({"name": "p", "steps": {"a": step}}))
    units = (FAILED, StepRecord(StepState.CHANGED, 1))

    assert in_doubt(plan, RunState.SUCCEEDED, {0: StepRecord(StepState.CHANGED, 1, units=units)}) == []


# --- what an attempt proves -------------------------------------------------------------------------


def raises(*errors: Exception) -> Callable[[], None]:
    """Register a function that raises the given errors, one at each call, and then returns."""
    left = list(errors)

    def call() -> None:
        if left:
            raise left.pop(0)

    return call


def busy() -> list[Exception]:
    return [Transient("busy") for _ in range(9)]


@pytest.mark.parametrize(
    ("before", "act", "doubted"),
    [
        ([], [Permanent("broke")], True),
        ([], [RuntimeError("broke")] * 3, True),
        ([], [Preflight("not ready")], False),
        # the first attempt may have acted
        ([], [Transient("busy"), Preflight("not ready")], True),
        # the act never began
        ([Permanent("broke")], [], False),
        (busy(), [], False),
        ([Transient("busy")], [Permanent("broke")], True),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own_registry")
def test_error_before_the_act_leaves_no_doubt(before: list[Exception], act: list[Exception], doubted: bool) -> None:
    journal, effect = raises(*before), raises(*act)

    @operation("unit.act")
    def acts() -> None:
        effect()

    @acts.before
    def state() -> dict[str, str]:
        journal()
        return {"was": "nothing"}

    plan = Plan("p")
    plan.step("a", "unit.act").retry(2)

    report = Sandbox().run(plan)

    assert report.step("a").status == "failed"
    assert (report.in_doubt, report.exit_code) == ((["a"], 3) if doubted else ([], 1))


@pytest.mark.usefixtures("own_registry")
def test_parameters_that_cannot_be_rendered_leave_no_doubt() -> None:
    @operation("unit.act")
    def acts(n: int) -> None: ...

    plan = Plan("p")
    plan.step("first", "noop.execute", data={"x": "one"})
    plan.step("a", "unit.act", n="{{ steps.first.data.x }}").after("first")

    report = Sandbox().run(plan)

    assert (report.state, report.in_doubt, report.exit_code) == ("undone", [], 1)
