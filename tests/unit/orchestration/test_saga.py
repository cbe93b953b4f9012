"""The reducer: the next transition of a run from its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from longshore.orchestration import Plan, saga, transitions
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.saga import DEPENDENCY_FAILED, decide, left_over, steps_read
from longshore.orchestration.states import (
    STEP_BAD,
    TERMINAL,
    TRANSITIONS,
    Cause,
    RunState,
    StepState,
    UndoState,
)
from longshore.orchestration.transitions import RunRecord, StepRecord
from tests.unit.plans import compiled, diamond, of_edges

CHANGED = StepRecord(StepState.CHANGED, attempts=1)
FAILED = StepRecord(StepState.FAILED, attempts=1)


def recorded(plan: CompiledPlan, **known: StepRecord) -> dict[int, StepRecord]:
    """A record for each step: the given state, or pending."""
    return {step.index: known.get(step.name, StepRecord()) for step in plan.steps}


def one(op: str = "noop.execute", **fields: Any) -> CompiledPlan:
    return compiled(Plan.model_validate({"name": "p", "steps": {"a": {"op": op, **fields}}}))


COMMAND: dict[str, Any] = {"op": "command.exec.execute", "with": {"argv": ["x"]}}


# --- forward --------------------------------------------------------------------------------------


def test_pending_run_opens_its_first_level() -> None:
    plan = compiled(of_edges({"late": ["a"], "a": [], "b": []}))

    decision = decide(plan, RunRecord(RunState.PENDING), recorded(plan))

    assert decision == transitions.OpenLevel(RunState.RUNNING, 0, (1, 2))


def test_run_waits_for_its_level() -> None:
    plan = compiled(diamond())

    assert decide(plan, RunRecord(RunState.RUNNING, level=0, left=1), {}) is None


def test_large_plan_level_reads_few_records() -> None:
    edges = {f"s{n}": [f"s{n - 100}"] if n >= 100 else [] for n in range(5000)}
    plan = compiled(of_edges(edges))

    assert steps_read(plan, RunRecord(RunState.RUNNING, level=10)) == tuple(range(1000, 1200))
    assert steps_read(plan, RunRecord(RunState.RUNNING, level=10, left=3)) == ()
    assert steps_read(plan, RunRecord(RunState.PENDING)) == tuple(range(100))
    assert steps_read(plan, RunRecord(RunState.RUNNING, level=49)) == tuple(range(5000))
    assert steps_read(plan, RunRecord(RunState.ABORTING, level=3)) == tuple(range(5000))


def test_timed_out_run_is_aborted_within_a_level() -> None:
    plan = compiled(diamond())
    run = RunRecord(RunState.RUNNING, level=0, left=1, now=100, deadline=100)

    decision = decide(plan, run, {})

    assert isinstance(decision, transitions.Abort)
    assert decision.cause is Cause.DEADLINE
    assert decide(plan, RunRecord(RunState.RUNNING, level=0, left=1, now=99, deadline=100), {}) is None


@pytest.mark.parametrize("bad", sorted(STEP_BAD))
def test_failed_step_skips_transitive_dependents(bad: StepState) -> None:
    plan = compiled(
        of_edges({"a": [], "b": [], "on_a": ["a"], "on_b": ["b"], "on_both": ["on_a", "on_b"]}, on_error="continue")
    )
    steps = recorded(plan, a=StepRecord(bad, attempts=1), b=CHANGED)

    first = decide(plan, RunRecord(RunState.RUNNING, level=0), steps)
    steps |= {2: StepRecord(StepState.SKIPPED, reason=DEPENDENCY_FAILED, tainted=True), 3: CHANGED}
    second = decide(plan, RunRecord(RunState.RUNNING, level=1), steps)

    assert first == transitions.OpenLevel(RunState.RUNNING, 1, (3,), {2: "dependency failed"}, frozenset({2}))
    assert second == transitions.OpenLevel(RunState.RUNNING, 2, (), {4: "dependency failed"}, frozenset({4}))


def test_step_skipped_by_a_guard_skips_no_dependents() -> None:
    plan = compiled(of_edges({"a": [], "b": ["a"]}))
    steps = recorded(plan, a=StepRecord(StepState.SKIPPED, reason="when: false"))

    assert decide(plan, RunRecord(RunState.RUNNING, level=0), steps) == transitions.OpenLevel(RunState.RUNNING, 1, (1,))


def test_always_step_runs_after_failed_dependencies() -> None:
    plan = compiled(Plan.model_validate({"name": "p", "on_error": "continue", "steps": {
        "a": {"op": "noop.execute"}, "b": {"op": "noop.execute", "after": ["a"], "always": True},
    }}))  # fmt: skip

    decision = decide(plan, RunRecord(RunState.RUNNING, level=0), recorded(plan, a=FAILED))

    assert decision == transitions.OpenLevel(RunState.RUNNING, 1, (1,))


@pytest.mark.parametrize(
    ("a", "b", "state"),
    [
        (CHANGED, CHANGED, RunState.SUCCEEDED),
        (CHANGED, StepRecord(StepState.UNCHANGED, 1), RunState.SUCCEEDED),
        (CHANGED, StepRecord(StepState.SKIPPED, reason="when: false"), RunState.SUCCEEDED),
        (CHANGED, FAILED, RunState.PARTIAL),
        (StepRecord(StepState.UNCHANGED, 1), StepRecord(StepState.UNKNOWN, 1), RunState.PARTIAL),
        (FAILED, FAILED, RunState.FAILED),
        (FAILED, StepRecord(StepState.SKIPPED, reason=DEPENDENCY_FAILED, tainted=True), RunState.FAILED),
    ],
)
def test_run_state_follows_its_steps(a: StepRecord, b: StepRecord, state: RunState) -> None:
    plan = compiled(of_edges({"a": [], "b": []}, on_error="continue"))

    assert decide(plan, RunRecord(RunState.RUNNING, level=0), recorded(plan, a=a, b=b)) == transitions.Finish(state, ())


# --- abort ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("queued", [StepState.READY, StepState.RETRYING])
def test_unclaimed_steps_are_cancelled_first(queued: StepState) -> None:
    plan = compiled(of_edges({"a": [], "b": [], "c": []}))
    steps = recorded(plan, a=FAILED, b=StepRecord(queued), c=StepRecord(StepState.RUNNING, 1))

    assert decide(plan, RunRecord(RunState.ABORTING, level=0, left=2), steps) == transitions.Drain((1,))


def test_running_steps_are_awaited_before_undo() -> None:
    plan = compiled(of_edges({"a": [], "b": []}))
    steps = recorded(plan, a=FAILED, b=StepRecord(StepState.RUNNING, 1))

    assert decide(plan, RunRecord(RunState.ABORTING, level=0, left=1), steps) is None


def test_undo_begins_with_the_highest_level_with_effects() -> None:
    plan = compiled(of_edges({"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}))
    steps = recorded(plan, a=CHANGED, b=CHANGED, c=StepRecord(StepState.UNCHANGED, 1))
    aborting = RunRecord(RunState.ABORTING, level=3)

    assert decide(plan, aborting, steps) == transitions.OpenUndo(1, (1,))
    # given: the step has been undone
    steps |= {1: StepRecord(StepState.CHANGED, 1, UndoState.UNDONE)}
    undoing = RunRecord(RunState.UNDOING, level=3, undo_level=1)
    assert decide(plan, undoing, steps) == transitions.OpenUndo(0, (0,))
    steps |= {0: StepRecord(StepState.CHANGED, 1, UndoState.UNDONE)}
    assert decide(plan, undoing, steps) == transitions.Finish(RunState.UNDONE, (3,))


@pytest.mark.parametrize(
    ("step", "record", "undone"),
    [
        ({"op": "noop.execute"}, CHANGED, True),
        ({"op": "noop.execute"}, FAILED, True),
        ({"op": "noop.execute"}, StepRecord(StepState.UNKNOWN, 1), True),
        ({"op": "noop.execute"}, StepRecord(StepState.CANCELLED, 2), True),
        ({"op": "noop.execute"}, StepRecord(StepState.CANCELLED, 0), False),
        ({"op": "noop.execute"}, StepRecord(StepState.UNCHANGED, 1), False),
        ({"op": "noop.execute"}, StepRecord(StepState.FAILED, 1, no_effect=True), False),
        ({"op": "noop.execute"}, StepRecord(StepState.SKIPPED), False),
        ({"op": "noop.execute"}, StepRecord(StepState.FAILED, 0), False),
        ({"op": "noop.execute", "undo": "none"}, CHANGED, False),
        ({"op": "noop.execute", "always": True}, CHANGED, False),
        (COMMAND | {"undo": {"op": "noop.execute"}}, CHANGED, True),
        ({"op": "command.exec.execute", "with": {"argv": ["x"], "changes": False}}, FAILED, False),
        ({"op": "docker.inspect.get", "with": {"container": "web"}}, FAILED, False),
    ],
    ids=str,
)
def test_claimed_steps_are_undone_unless_without_effect(step: dict[str, Any], record: StepRecord, undone: bool) -> None:
    plan = one(**step)

    decision = decide(plan, RunRecord(RunState.ABORTING, level=0), {0: record})

    # a run that has changed nothing has failed; only an explicit `undo: none` counts as undone
    end = RunState.UNDONE if step.get("undo") == "none" else RunState.FAILED
    assert decision == (transitions.OpenUndo(0, (0,)) if undone else transitions.Finish(end, ()))


def test_command_to_undo_ends_undone_whatever_was_changed() -> None:
    plan = one()

    decision = decide(plan, RunRecord(RunState.UNDOING, undo_level=1), {0: StepRecord(StepState.UNCHANGED, 1)})

    assert decision == transitions.Finish(RunState.UNDONE, ())


def test_command_to_undo_ends_undone_where_the_receipts_show_the_point_of_no_return() -> None:
    plan = compiled(Plan.model_validate({"name": "p", "steps": {
        "a": {"op": "noop.execute"},
        "sent": {"op": "noop.execute", "irreversible": True, "after": ["a"]},
    }}))  # fmt: skip
    sent = StepRecord(StepState.CHANGED, 1, UndoState.NOT_UNDOABLE)
    steps = recorded(plan, a=StepRecord(StepState.CHANGED, 1, UndoState.UNDONE), sent=sent)

    decision = decide(plan, RunRecord(RunState.UNDOING, undo_level=0), steps)

    assert isinstance(decision, transitions.Finish)
    assert decision.state in TRANSITIONS[RunState.UNDOING]
    assert left_over(plan, decision.state, steps) == [1]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (CHANGED, "the step has no undo"),
        (StepRecord(StepState.UNKNOWN, 1), "the step may have had an effect, and has no undo"),
        (FAILED, "the step failed, and its effect until then has no undo"),
    ],
)
def test_step_without_undo_is_reported_with_the_reason(record: StepRecord, why: str) -> None:
    plan = one(**COMMAND)

    decision = decide(plan, RunRecord(RunState.ABORTING, level=0), {0: record})

    assert decision == transitions.OpenUndo(0, (), {0: why})


UNDONE = StepRecord(StepState.CHANGED, 1, UndoState.UNDONE)
UNDO_FAILED = StepRecord(StepState.CHANGED, 1, UndoState.UNDO_FAILED)
HELD_BACK = StepRecord(StepState.CHANGED, 1, UndoState.HELD_BACK)


def test_failed_undo_holds_back_the_undos_of_its_dependencies() -> None:
    # given: the step with the failed undo depends on all steps except beside, once through an unchanged step
    plan = compiled(of_edges({"env": [], "beside": [], "same": ["env"], "build": ["env"], "up": ["build", "same"]}))
    steps = recorded(plan, env=CHANGED, beside=CHANGED, build=CHANGED, same=StepRecord(StepState.UNCHANGED, 1))
    steps |= {4: UNDO_FAILED}
    why = "up depends on it, and its undo failed"

    first = decide(plan, RunRecord(RunState.UNDOING, undo_level=2), steps)
    steps |= {3: HELD_BACK}
    second = decide(plan, RunRecord(RunState.UNDOING, undo_level=1), steps)
    steps |= {0: HELD_BACK, 1: UNDONE}
    end = decide(plan, RunRecord(RunState.UNDOING, undo_level=0), steps)

    assert first == transitions.OpenUndo(1, (), {}, {3: why})
    assert second == transitions.OpenUndo(0, (1,), {}, {0: why})
    assert end == transitions.Finish(RunState.UNDO_FAILED, ())
    assert left_over(plan, RunState.UNDO_FAILED, steps) == [0, 3, 4]


def test_held_back_undo_names_each_failed_undo() -> None:
    plan = compiled(of_edges({"env": [], "up": ["env"], "down": ["env"]}))
    steps = recorded(plan, env=CHANGED) | {1: UNDO_FAILED, 2: UNDO_FAILED}

    decision = decide(plan, RunRecord(RunState.UNDOING, undo_level=1), steps)

    assert decision == transitions.OpenUndo(0, (), {}, {0: "up, down depend on it, and their undos failed"})


def test_failed_undo_of_one_unit_holds_back_the_undos_before_its_step() -> None:
    plan = compiled(Plan.model_validate({"name": "p", "steps": {
        "env": {"op": "noop.execute", "foreach": [1, 2]},
        "up": {"op": "noop.execute", "foreach": [1, 2], "after": ["env"]},
    }}))  # fmt: skip
    env = StepRecord(StepState.CHANGED, 1, units=(CHANGED, CHANGED))
    up = StepRecord(StepState.CHANGED, 1, units=(UNDO_FAILED, UNDONE))

    decision = decide(plan, RunRecord(RunState.UNDOING, undo_level=1), {0: env, 1: up})

    why = "up depends on it, and its undo failed"
    assert decision == transitions.OpenUndo(0, (), {}, {"0.0": why, "0.1": why})


@pytest.mark.parametrize(
    "after",
    [
        StepRecord(StepState.CHANGED, 1, UndoState.NOT_UNDOABLE),
        StepRecord(StepState.FAILED, 1, UndoState.NOT_UNDOABLE),
        StepRecord(StepState.UNKNOWN, 1, UndoState.NOT_UNDOABLE),
        StepRecord(StepState.CHANGED, 1, UndoState.UNDONE),
        StepRecord(StepState.UNCHANGED, 1),
    ],
)
def test_step_without_a_failed_undo_holds_nothing_back(after: StepRecord) -> None:
    plan = compiled(of_edges({"env": [], "up": ["env"]}))

    decision = decide(plan, RunRecord(RunState.UNDOING, undo_level=1), {0: CHANGED, 1: after})

    assert decision == transitions.OpenUndo(0, (0,))


def test_plan_can_undo_the_others_after_a_failed_undo() -> None:
    plan = compiled(of_edges({"env": [], "up": ["env"]}, on_undo_failure="continue"))

    decision = decide(plan, RunRecord(RunState.UNDOING, undo_level=1), {0: CHANGED, 1: UNDO_FAILED})

    assert decision == transitions.OpenUndo(0, (0,))


def test_undo_level_is_awaited_until_its_timeout() -> None:
    plan = compiled(of_edges({"a": [], "b": [], "c": []}))
    steps = recorded(
        plan,
        a=StepRecord(StepState.CHANGED, 1, UndoState.READY),
        b=StepRecord(StepState.CHANGED, 1, UndoState.UNDOING),
        c=StepRecord(StepState.CHANGED, 1, UndoState.RETRYING),
    )

    def at(now: int) -> saga.Transition | None:
        return decide(plan, RunRecord(RunState.UNDOING, undo_level=0, left=3, now=now, undo_deadline=50), steps)

    assert at(49) is None
    assert at(50) == transitions.GiveUpUndo((0, 2))
    # a running step is awaited: the step has its own timeout
    steps |= {i: StepRecord(StepState.CHANGED, 1, UndoState.UNDO_FAILED) for i in (0, 2)}
    assert at(50) is None


def test_run_with_keep_undoes_nothing() -> None:
    plan = compiled(Plan.model_validate({"name": "p", "steps": {
        "a": {"op": "noop.execute"},
        "b": {"op": "noop.execute", "after": ["a"]},
        "last": {"op": "noop.execute", "after": ["b"], "always": True},
    }}))  # fmt: skip
    steps = recorded(plan, a=CHANGED, b=FAILED)

    first = decide(plan, RunRecord(RunState.ABORTING, level=1, keep=True), steps)
    steps |= {2: CHANGED}
    second = decide(plan, RunRecord(RunState.FINISHING, level=2, keep=True), steps)

    assert first == transitions.OpenLevel(RunState.FINISHING, 2, (2,))
    assert second == transitions.Finish(RunState.FAILED, ())


def test_unreached_always_steps_run_after_the_undo() -> None:
    plan = compiled(Plan.model_validate({"name": "p", "steps": {
        "a": {"op": "noop.execute"},
        "b": {"op": "noop.execute", "after": ["a"]},
        "first": {"op": "noop.execute", "after": ["a"], "always": True},
        "second": {"op": "noop.execute", "after": ["b", "first"], "always": True},
    }}))  # fmt: skip
    steps = recorded(plan, a=StepRecord(StepState.CHANGED, 1, UndoState.UNDO_FAILED))

    first = decide(plan, RunRecord(RunState.UNDOING, level=0, undo_level=0), steps)
    waiting = decide(plan, RunRecord(RunState.FINISHING, level=1, left=1), steps)
    second = decide(plan, RunRecord(RunState.FINISHING, level=1), steps | {2: FAILED})
    end = decide(plan, RunRecord(RunState.FINISHING, level=2), steps | {2: FAILED, 3: CHANGED})

    assert first == transitions.OpenLevel(RunState.FINISHING, 1, (2,))
    assert waiting is None
    assert second == transitions.OpenLevel(RunState.FINISHING, 2, (3,))
    assert end == transitions.Finish(RunState.UNDO_FAILED, (1,))


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_terminal_run_stays_terminal(state: RunState) -> None:
    plan = compiled(diamond())

    assert decide(plan, RunRecord(state, level=2, now=10, deadline=1), recorded(plan)) is None


# --- left-over steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "record", "state", "left"),
    [
        ({}, CHANGED, RunState.SUCCEEDED, False),
        ({}, CHANGED, RunState.PARTIAL, True),
        ({}, StepRecord(StepState.UNKNOWN, 1), RunState.PARTIAL, True),
        ({}, StepRecord(StepState.UNCHANGED, 1), RunState.PARTIAL, False),
        ({}, FAILED, RunState.PARTIAL, False),
        # keep after a change: on_failure, or a cancel with --keep
        ({}, CHANGED, RunState.FAILED, True),
        ({"always": True}, CHANGED, RunState.FAILED, False),
        ({}, StepRecord(StepState.CHANGED, 1, UndoState.UNDONE), RunState.UNDONE, False),
        ({}, StepRecord(StepState.CHANGED, 1, UndoState.UNDO_FAILED), RunState.UNDO_FAILED, True),
        ({}, StepRecord(StepState.FAILED, 1, UndoState.UNDO_FAILED), RunState.UNDO_FAILED, True),
        # no undo: the state is undone, and left_over names the step, unless the plan sets `undo: none`
        (COMMAND, StepRecord(StepState.CHANGED, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, True),
        (COMMAND, StepRecord(StepState.UNKNOWN, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, True),
        (COMMAND, StepRecord(StepState.FAILED, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, False),
        # stopped half-way by the run's end: the step may have had an effect
        (COMMAND, StepRecord(StepState.CANCELLED, 1, UndoState.NOT_UNDOABLE), RunState.UNDONE, False),
        (COMMAND | {"undo": "none"}, CHANGED, RunState.UNDONE, False),
    ],
    ids=str,
)
def test_left_over_steps_are_completed_steps_of_a_failed_run(
    step: Mapping[str, Any], record: StepRecord, state: RunState, left: bool
) -> None:
    plan = one(**step)

    assert left_over(plan, state, {0: record}) == ([0] if left else [])
