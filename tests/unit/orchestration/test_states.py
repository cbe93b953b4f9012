"""The table of states and its transitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.orchestration.states import (
    LIVE,
    STEP_BAD,
    STEP_FINAL,
    STEP_GOOD,
    STEP_IN_FLIGHT,
    TERMINAL,
    TRANSITIONS,
    UNDO_FINAL,
    RunState,
    StepState,
    UndoState,
    diagram,
    may_follow,
)

ROOT = Path(__file__).resolve().parents[3]


def reachable(begin: RunState) -> set[RunState]:
    seen, todo = {begin}, [begin]
    while todo:
        for state in TRANSITIONS[todo.pop()] - seen:
            seen.add(state)
            todo.append(state)
    return seen


def test_every_state_is_in_the_table_and_reachable() -> None:
    assert TRANSITIONS.keys() == set(RunState)
    assert reachable(RunState.PENDING) == set(RunState)


def test_every_state_leads_to_a_terminal_state() -> None:
    assert all(reachable(state) & TERMINAL for state in RunState)


def test_terminal_run_is_reopened_only_by_undo_or_resume() -> None:
    for state in TERMINAL:
        begins = state in {RunState.FAILED, RunState.PARTIAL, RunState.CANCELLED}
        goes_on = {RunState.RUNNING} if begins else set()
        assert TRANSITIONS[state] <= {RunState.UNDOING} | goes_on
    assert TRANSITIONS[RunState.UNDONE] == frozenset()


def test_run_is_either_live_or_terminal() -> None:
    assert set(RunState) == TERMINAL | LIVE
    assert not TERMINAL & LIVE
    assert all(TRANSITIONS[state] for state in LIVE)


def test_only_resumed_runs_return_to_running() -> None:
    for state, following in TRANSITIONS.items():
        assert state not in following
        begins = {RunState.PENDING, RunState.SUSPENDED, RunState.FAILED, RunState.PARTIAL, RunState.CANCELLED}
        assert (RunState.RUNNING in following) == (state in begins)
        assert RunState.PENDING not in following


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        (RunState.PENDING, RunState.RUNNING, True),
        (RunState.RUNNING, RunState.UNDOING, False),
        (RunState.ABORTING, RunState.RUNNING, False),
        (RunState.FINISHING, RunState.UNDONE, True),
        (RunState.UNDONE, RunState.UNDOING, False),
    ],
)
def test_transitions_match_the_table(before: RunState, after: RunState, may: bool) -> None:
    assert may_follow(before, after) is may


def test_final_step_states_are_good_bad_or_not_run() -> None:
    assert set(StepState) == STEP_FINAL | STEP_IN_FLIGHT | {StepState.PENDING}
    assert not STEP_FINAL & STEP_IN_FLIGHT
    assert not STEP_GOOD & STEP_BAD
    assert {StepState.SKIPPED, StepState.NOT_RUN} == STEP_FINAL - STEP_GOOD - STEP_BAD
    assert set(UndoState) - UNDO_FINAL == {
        UndoState.READY,
        UndoState.UNDOING,
        UndoState.RETRYING,
        UndoState.WAITING,
    }


def test_state_values_equal_their_names() -> None:
    for kind in (RunState, StepState, UndoState):
        assert all(state.value == state.name.lower() == str(state) for state in kind)


def test_state_diagram_in_the_docs_is_current() -> None:
    edges = {f"{before} --> {after}" for before, following in TRANSITIONS.items() for after in following}

    drawn = {line.strip() for line in diagram().splitlines()[1:]}

    assert {edge for edge in drawn if "[*]" not in edge} == edges
    assert diagram() in (ROOT / "docs" / "concepts" / "states.md").read_text()
