"""What comes next in a run: a pure function of the plan and the record, without any I/O.

`decide` is asked again and again, by anybody, at any time: the body of a chord, the sweeper, an
operator. It names one transition, or None where the run has to wait. The store applies it only if
the run is still where it was decided from, so that asking twice does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from longshore.orchestration.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.states import (
    STEP_BAD,
    STEP_GOOD,
    Cause,
    RunState,
    StepState,
    UndoState,
)

#: The reason of a step that is skipped because of what it depends on; it goes on down the graph.
DEPENDENCY_FAILED = "dependency failed"


@dataclass(frozen=True)
class StepRecord:
    """What the record says of a step."""

    status: StepState = StepState.PENDING
    #: How often it was claimed.
    attempts: int = 0
    undo: UndoState | None = None
    reason: str = ""
    #: Its outcome proves that nothing was touched.
    no_effect: bool = False


@dataclass(frozen=True)
class RunRecord:
    """What the record says of the run. Times are ms of Redis's clock."""

    state: RunState
    level: int = -1
    undo_level: int | None = None
    #: Dispatched steps of the current batch that are not final.
    left: int = 0
    keep: bool = False
    cause: Cause | None = None
    now: int = 0
    deadline: int | None = None
    undo_deadline: int | None = None
    #: Grows with each command that reopens it.
    epoch: int = 0


@dataclass(frozen=True)
class OpenLevel:
    """Steps become ready, or are skipped with a reason."""

    state: RunState
    level: int
    ready: tuple[int, ...]
    skipped: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenUndo:
    """Steps become ready to be taken back, or are named as not undoable."""

    level: int
    ready: tuple[int, ...]
    impossible: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Abort:
    """Nothing new is claimed from now on."""

    cause: Cause
    error: str


@dataclass(frozen=True)
class Drain:
    """What was dispatched and not claimed is cancelled."""

    steps: tuple[int, ...]


@dataclass(frozen=True)
class GiveUpUndo:
    """The undo ran out of its time: what has not begun will not."""

    steps: tuple[int, ...]


@dataclass(frozen=True)
class Finish:
    """The run ends; `not_run` were never reached."""

    state: RunState
    not_run: tuple[int, ...]


Transition = OpenLevel | OpenUndo | Abort | Drain | GiveUpUndo | Finish

_QUEUED = frozenset({StepState.READY, StepState.RETRYING})
_STOPPED_HALF_WAY = frozenset({StepState.FAILED, StepState.CANCELLED})
_UNDO_QUEUED = frozenset({UndoState.READY, UndoState.RETRYING})


def wanted(plan: CompiledPlan, run: RunRecord) -> tuple[int, ...]:
    """The steps whose records `decide` will look at.

    Going forward that is the next level and what it depends on, so that a level's cost does not grow
    with the plan.
    """
    following = run.level + 1
    if run.state in {RunState.PENDING, RunState.RUNNING} and following < len(plan.levels):
        if run.state is RunState.RUNNING and run.left > 0:
            return ()
        needed = {d for i in plan.levels[following] for d in plan.steps[i].needs}
        return tuple(sorted(needed.union(plan.levels[following])))
    return tuple(range(len(plan)))


def decide(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord]) -> Transition | None:
    """The next transition, or None while the run has to wait for what is under way."""
    match run.state:
        case RunState.PENDING:
            return _next_level(plan, run, steps)
        case RunState.RUNNING:
            if run.deadline is not None and run.now >= run.deadline:
                return Abort(Cause.DEADLINE, "the run ran out of its time")
            return None if run.left > 0 else _next_level(plan, run, steps)
        case RunState.ABORTING:
            return _while_aborting(plan, run, steps)
        case RunState.UNDOING:
            return _while_undoing(plan, run, steps)
        case RunState.FINISHING:
            return None if run.left > 0 else _always_or_end(plan, run, steps)
        case _:
            return None


def _next_level(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord]) -> Transition:
    following = run.level + 1
    if following == len(plan.levels):
        return Finish(_good_end(plan, steps), ())
    ready, skipped = [], {}
    for i in plan.levels[following]:
        if reason := _skip_reason(plan.steps[i], steps):
            skipped[i] = reason
        else:
            ready.append(i)
    return OpenLevel(RunState.RUNNING, following, tuple(ready), skipped)


def _skip_reason(step: CompiledStep, steps: Mapping[int, StepRecord]) -> str | None:
    if step.always:
        return None
    for dependency in step.needs:
        record = steps[dependency]
        if record.status in STEP_BAD or record.reason == DEPENDENCY_FAILED:
            return DEPENDENCY_FAILED
    return None


def _good_end(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> RunState:
    """A run that was not aborted: everything went well, or some of it, or nothing."""
    if not any(steps[s.index].status in STEP_BAD for s in plan.steps):
        return RunState.SUCCEEDED
    good = any(steps[s.index].status in STEP_GOOD for s in plan.steps if not s.always)
    return RunState.PARTIAL if good else RunState.FAILED


def _while_aborting(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord]) -> Transition | None:
    queued = tuple(i for i in range(len(plan)) if steps[i].status in _QUEUED)
    if queued:
        return Drain(queued)
    if any(steps[i].status is StepState.RUNNING for i in range(len(plan))):
        return None
    if not run.keep and (undo := _open_undo(plan, steps, len(plan.levels))):
        return undo
    return _always_or_end(plan, run, steps)


def _while_undoing(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord]) -> Transition | None:
    if run.left > 0:
        if run.undo_deadline is not None and run.now >= run.undo_deadline:
            late = tuple(i for i in range(len(plan)) if steps[i].undo in _UNDO_QUEUED)
            return GiveUpUndo(late) if late else None
        return None
    top = len(plan.levels) if run.undo_level is None else run.undo_level
    return _open_undo(plan, steps, top) or _always_or_end(plan, run, steps)


def _open_undo(plan: CompiledPlan, steps: Mapping[int, StepRecord], below: int) -> OpenUndo | None:
    """The highest level under `below` in which something has to be taken back."""
    for level in range(below - 1, -1, -1):
        todo = [i for i in plan.levels[level] if _may_have_acted(plan.steps[i], steps[i])]
        ready = tuple(i for i in todo if plan.steps[i].has_undo)
        impossible = {
            i: _why_impossible(steps[i])
            for i in todo
            if not plan.steps[i].has_undo and plan.steps[i].step.undo != "none"
        }
        if ready or impossible:
            return OpenUndo(level, ready, impossible)
    return None


def _may_have_acted(step: CompiledStep, record: StepRecord) -> bool:
    """Claimed at least once, not taken back yet, and not known to have had no effect."""
    return (
        record.attempts > 0
        and record.undo is None
        and not step.always
        and not step.read_only
        and not record.no_effect
        and record.status is not StepState.UNCHANGED
    )


def _why_impossible(record: StepRecord) -> str:
    if record.status is StepState.CHANGED:
        return "it has no undo"
    if record.status is StepState.UNKNOWN:
        return "it may have happened, and has no undo"
    return "it failed, and what it did until then has no undo"


def _always_or_end(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord]) -> Transition:
    """After the abort and the undo: the `always` steps that were not reached, level by level, then the end."""
    for level, members in enumerate(plan.levels):
        pending = tuple(i for i in members if plan.steps[i].always and steps[i].status is StepState.PENDING)
        if pending:
            return OpenLevel(RunState.FINISHING, level, pending)
    not_run = tuple(i for i in range(len(plan)) if steps[i].status is StepState.PENDING)
    return Finish(_bad_end(run, steps), not_run)


def _bad_end(run: RunRecord, steps: Mapping[int, StepRecord]) -> RunState:
    if run.keep:
        return RunState.FAILED
    failed = any(record.undo is UndoState.UNDO_FAILED for record in steps.values())
    return RunState.UNDO_FAILED if failed else RunState.UNDONE


def left_over(plan: CompiledPlan, state: RunState, steps: Mapping[int, StepRecord]) -> list[int]:
    """Steps whose effect stands although the run did not succeed.

    A failed or cancelled step without an undo is told of in its own record and not here: it is known
    to have stopped, not to have changed something.
    """
    if state is RunState.SUCCEEDED:
        return []
    found = []
    for step in plan.steps:
        record = steps[step.index]
        if (
            record.undo is UndoState.UNDO_FAILED
            or (record.undo is UndoState.NOT_UNDOABLE and record.status not in _STOPPED_HALF_WAY)
            or (
                state in {RunState.PARTIAL, RunState.FAILED}
                and record.status in {StepState.CHANGED, StepState.UNKNOWN}
                and not step.always
            )
        ):
            found.append(step.index)
    return found
