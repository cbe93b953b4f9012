"""The states of runs and steps, and which may follow which.

A step has two fields: `status` goes forward, `undo` goes backward. `TRANSITIONS` is the whole
machine of a run; the reducer and the Lua scripts only ever move along it.
"""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """What a run is doing, or how it ended."""

    PENDING = "pending"
    RUNNING = "running"
    #: Nothing new is claimed; what runs is awaited.
    ABORTING = "aborting"
    UNDOING = "undoing"
    #: Held where it was: a service is down, a person is asked, or Redis has lost what it knew. Nothing new is
    #: claimed.
    SUSPENDED = "suspended"
    #: The `always` steps that were not reached.
    FINISHING = "finishing"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"


class StepState(StrEnum):
    """What a step is doing, or what its last attempt recorded."""

    PENDING = "pending"
    #: Dispatched; a message for it is, or was, under way.
    READY = "ready"
    RUNNING = "running"
    #: An attempt failed in a way that can pass; the next one waits for its time.
    RETRYING = "retrying"
    #: Parked, without a worker: for a person, another run, somebody's task.
    WAITING = "waiting"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    #: Claimed and never reported: it may have happened.
    UNKNOWN = "unknown"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    NOT_RUN = "not_run"


class UndoState(StrEnum):
    """How taking a step back stands."""

    READY = "ready"
    UNDOING = "undoing"
    RETRYING = "retrying"
    WAITING = "waiting"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"
    NOT_UNDOABLE = "not_undoable"


class Cause(StrEnum):
    """Why a run left `running` before its end."""

    FAILURE = "failure"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    OPERATOR = "operator"


_R = RunState

TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    _R.PENDING: frozenset({_R.RUNNING, _R.FINISHING, _R.FAILED}),
    _R.RUNNING: frozenset({_R.SUSPENDED, _R.ABORTING, _R.SUCCEEDED, _R.PARTIAL, _R.FAILED}),
    _R.ABORTING: frozenset({_R.SUSPENDED, _R.UNDOING, _R.FINISHING, _R.FAILED, _R.UNDONE, _R.UNDO_FAILED}),
    _R.UNDOING: frozenset({_R.SUSPENDED, _R.FINISHING, _R.UNDONE, _R.UNDO_FAILED}),
    _R.SUSPENDED: frozenset({_R.RUNNING, _R.ABORTING, _R.UNDOING}),
    _R.FINISHING: frozenset({_R.UNDONE, _R.UNDO_FAILED, _R.FAILED}),
    # Resting states are reopened only by an operator's command.
    _R.SUCCEEDED: frozenset({_R.UNDOING}),
    _R.PARTIAL: frozenset({_R.RUNNING, _R.UNDOING}),
    _R.FAILED: frozenset({_R.RUNNING, _R.UNDOING}),
    _R.UNDONE: frozenset(),
    _R.UNDO_FAILED: frozenset({_R.UNDOING}),
}

#: States in which a run rests.
TERMINAL = frozenset({_R.SUCCEEDED, _R.PARTIAL, _R.FAILED, _R.UNDONE, _R.UNDO_FAILED})
#: States in which a run still has something to do.
LIVE = frozenset(RunState) - TERMINAL

#: Final states of a step.
STEP_FINAL = frozenset(
    {
        StepState.CHANGED,
        StepState.UNCHANGED,
        StepState.FAILED,
        StepState.UNKNOWN,
        StepState.SKIPPED,
        StepState.CANCELLED,
        StepState.NOT_RUN,
    }
)
#: Final states that are as good as asked for.
STEP_GOOD = frozenset({StepState.CHANGED, StepState.UNCHANGED})
#: Final states that stop what depends on them.
STEP_BAD = frozenset({StepState.FAILED, StepState.UNKNOWN, StepState.CANCELLED})
#: Dispatched and not final.
STEP_IN_FLIGHT = frozenset({StepState.READY, StepState.RUNNING, StepState.RETRYING, StepState.WAITING})

UNDO_FINAL = frozenset({UndoState.UNDONE, UndoState.UNDO_FAILED, UndoState.NOT_UNDOABLE})


def may_follow(before: RunState, after: RunState) -> bool:
    """Whether a run may go from one state to the other."""
    return after in TRANSITIONS[before]


def diagram() -> str:
    """The machine of a run as a Mermaid state diagram; `docs/states.md` holds it."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    for before, followers in TRANSITIONS.items():
        lines += [f"    {before} --> {after}" for after in RunState if after in followers]
    lines += [f"    {state} --> [*]" for state in RunState if state in TERMINAL]
    return "\n".join(lines)
