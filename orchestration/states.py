"""States of runs and steps, and the allowed transitions.

A step has two fields: `status` for its execution, `undo` for its compensation. `TRANSITIONS` is the complete
state machine of a run; the reducer and the Lua scripts make no other transition.
"""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """The states of a run.

    * `pending` – waits for its admission
    * `running` – runs its steps
    * `aborting` – begins no further step, and waits for the end of running steps
    * `undoing` – undoes its steps
    * `suspended` – waits for a service, for a decision about a step, or for a resume after lost writes
    * `finishing` – runs the remaining `always` steps
    * `succeeded` – ended; no step failed
    * `partial` – ended; some steps failed, and the effects of the others remain
    * `failed` – ended without undoing its steps
    * `undone` – ended; no undo failed
    * `undo_failed` – ended; an undo failed
    * `cancelled` – ended before it began
    """

    PENDING = "pending"
    RUNNING = "running"
    ABORTING = "aborting"
    UNDOING = "undoing"
    SUSPENDED = "suspended"
    FINISHING = "finishing"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """The states of a step.

    * `pending` – the level of the step has not opened
    * `ready` – the message of the step was sent
    * `running` – a worker has claimed the step
    * `retrying` – an attempt failed, and the next one is scheduled
    * `waiting` – waits without a worker, for example for an approval or a child run
    * `changed`, `unchanged` – succeeded, with or without a change
    * `failed` – the last attempt failed, or the step could not begin
    * `unknown` – the step may have had an effect, and its end is not known
    * `skipped` – did not run, because of a guard, a failed dependency, its host, or a decision of a person
    * `cancelled` – the run was aborted before the step began, or while it ran
    * `not_run` – the run ended before the level of the step opened
    """

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    NOT_RUN = "not_run"


class UndoState(StrEnum):
    """The states of the undo of a step.

    * `ready` – the message of the undo was sent
    * `undoing` – a worker has claimed the undo
    * `retrying` – an attempt failed, and the next one is scheduled
    * `waiting` – waits without a worker, for a child run or a task
    * `undone` – the effect of the step no longer exists
    * `undo_failed` – the undo failed
    * `not_undoable` – the step has no undo, or a part of its effect remains
    * `held_back` – did not begin, because the undo of a dependent step failed
    """

    READY = "ready"
    UNDOING = "undoing"
    RETRYING = "retrying"
    WAITING = "waiting"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"
    NOT_UNDOABLE = "not_undoable"
    HELD_BACK = "held_back"


class Cause(StrEnum):
    """Why a run left `running` early."""

    FAILURE = "failure"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    OPERATOR = "operator"


_R = RunState

TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    _R.PENDING: frozenset({_R.RUNNING, _R.CANCELLED}),
    _R.RUNNING: frozenset({_R.SUSPENDED, _R.ABORTING, _R.SUCCEEDED, _R.PARTIAL, _R.FAILED}),
    _R.ABORTING: frozenset({_R.SUSPENDED, _R.UNDOING, _R.FINISHING, _R.FAILED, _R.UNDONE, _R.UNDO_FAILED}),
    _R.UNDOING: frozenset({_R.SUSPENDED, _R.FINISHING, _R.UNDONE, _R.UNDO_FAILED}),
    _R.SUSPENDED: frozenset({_R.RUNNING, _R.ABORTING, _R.UNDOING}),
    _R.FINISHING: frozenset({_R.UNDONE, _R.UNDO_FAILED, _R.FAILED}),
    # Only an operator's command leaves a terminal state.
    _R.SUCCEEDED: frozenset({_R.UNDOING}),
    _R.PARTIAL: frozenset({_R.RUNNING, _R.UNDOING}),
    _R.FAILED: frozenset({_R.RUNNING, _R.UNDOING}),
    _R.UNDONE: frozenset(),
    _R.UNDO_FAILED: frozenset({_R.UNDOING}),
    _R.CANCELLED: frozenset({_R.RUNNING}),
}

#: States of an ended run.
TERMINAL = frozenset({_R.SUCCEEDED, _R.PARTIAL, _R.FAILED, _R.UNDONE, _R.UNDO_FAILED, _R.CANCELLED})
#: States of a run with pending work.
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
#: Final states that count as success.
STEP_GOOD = frozenset({StepState.CHANGED, StepState.UNCHANGED})
#: Final states that block dependent steps.
STEP_BAD = frozenset({StepState.FAILED, StepState.UNKNOWN, StepState.CANCELLED})
#: Dispatched and not final.
STEP_IN_FLIGHT = frozenset({StepState.READY, StepState.RUNNING, StepState.RETRYING, StepState.WAITING})

UNDO_FINAL = frozenset({UndoState.UNDONE, UndoState.UNDO_FAILED, UndoState.NOT_UNDOABLE, UndoState.HELD_BACK})
#: Compensations that did not take place, and that an operator can have tried again.
UNDO_OPEN = frozenset({UndoState.UNDO_FAILED, UndoState.HELD_BACK})


def may_follow(before: RunState, after: RunState) -> bool:
    """Whether a run may change from one state to the other."""
    return after in TRANSITIONS[before]


def diagram() -> str:
    """The state machine of a run as a Mermaid diagram, as in `docs/concepts/states.md`."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    for before, followers in TRANSITIONS.items():
        lines += [f"    {before} --> {after}" for after in RunState if after in followers]
    lines += [f"    {state} --> [*]" for state in RunState if state in TERMINAL]
    return "\n".join(lines)
