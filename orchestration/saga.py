"""The reducer: the next transition of a run, as a pure function of the plan and the record, without any I/O.

The body of a chord, the sweeper and commands call `decide` at any time, also concurrently. `decide` returns one
transition, or None while the run has to wait. The store applies a transition only in the state that it was decided
from, so that a repeated decision has no effect. The scripts that end an attempt make some transitions by themselves.
`complete` and `expire` abort a run whose step has failed, and dispatch the next unit that was held back. `complete`
opens the next link of a chain, which the compiled plan has chosen. `expire` suspends a run that waits for a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from longshore.orchestration.language.guards import GuardDecision
from longshore.orchestration.operations import Waits
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId
from longshore.orchestration.states import (
    STEP_BAD,
    STEP_GOOD,
    UNDO_OPEN,
    Cause,
    RunState,
    StepState,
    UndoState,
)
from longshore.orchestration.transitions import (
    Abort,
    Compare,
    Drain,
    Finish,
    GiveUpUndo,
    OpenLevel,
    OpenUndo,
    RunRecord,
    StepRecord,
    Unsuspend,
    evaluate_nothing,
)

#: Skip reason of a step with a failed dependency; passed on to the steps that depend on the skipped one.
DEPENDENCY_FAILED = "dependency failed"


#: Evaluates the guards, items and hosts of a step whose level opens and whose dependencies allow it.
Evaluate = Callable[[int], GuardDecision]


Transition = OpenLevel | OpenUndo | Abort | Drain | GiveUpUndo | Unsuspend | Compare | Finish

_IRREVERSIBLE = "the step is irreversible"
_QUEUED = frozenset({StepState.READY, StepState.RETRYING})
_STOPPED_HALF_WAY = frozenset({StepState.FAILED, StepState.CANCELLED})
_UNDO_QUEUED = frozenset({UndoState.READY, UndoState.RETRYING, UndoState.WAITING})
#: Not final; the run waits for the end of the attempt or of the external wait.
_AT_WORK = frozenset({StepState.RUNNING, StepState.WAITING})


def steps_read(plan: CompiledPlan, run: RunRecord) -> tuple[int, ...]:
    """The steps whose records `decide` reads.

    Forward, these are the next level and its dependencies, so that the cost of a level does not grow with the plan.
    """
    if run.state is RunState.SUSPENDED:
        return ()
    following = run.level + 1
    if run.state in {RunState.PENDING, RunState.RUNNING} and following < len(plan.levels):
        if run.state is RunState.RUNNING and run.left > 0:
            return ()
        needed = {d for i in plan.levels[following] for d in plan.steps[i].needs}
        return tuple(sorted(needed.union(plan.levels[following])))
    return tuple(range(len(plan)))


def wants_units(run: RunRecord) -> bool:
    """Whether `decide` reads the units of steps. Forward runs only count units."""
    return run.state not in {RunState.PENDING, RunState.RUNNING}


def decide(
    plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord], evaluate: Evaluate = evaluate_nothing
) -> Transition | None:
    """The next transition, or None while the run has to wait for steps under way.

    `evaluate` decides on the steps that would begin now.
    """
    match run.state:
        case RunState.PENDING:
            return _next_level(plan, run, steps, evaluate)
        case RunState.RUNNING:
            if run.deadline is not None and run.now >= run.deadline:
                return Abort(Cause.DEADLINE, "the run exceeded its time limit")
            if run.lost > run.fenced:
                return Compare(ending=False)
            return None if run.left > 0 else _next_level(plan, run, steps, evaluate)
        case RunState.SUSPENDED:
            return _while_suspended(run)
        case RunState.ABORTING:
            return _while_aborting(plan, run, steps, evaluate)
        case RunState.UNDOING:
            return _while_undoing(plan, run, steps, evaluate)
        case RunState.FINISHING:
            if run.left > 0:
                return None
            return Compare(ending=False) if run.lost > run.fenced else _always_or_end(plan, run, steps, evaluate)
        case _:
            return None


def _while_suspended(run: RunRecord) -> Transition | None:
    """The transition of a suspended run, whose deadlines still apply."""
    if run.was is RunState.RUNNING and run.deadline is not None and run.now >= run.deadline:
        return Abort(Cause.DEADLINE, "the run exceeded its time limit")
    if run.was is RunState.UNDOING and run.undo_deadline is not None and run.now >= run.undo_deadline:
        return Unsuspend()
    return Compare(ending=False) if run.was is RunState.RUNNING and run.lost > run.fenced else None


def _next_level(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord], evaluate: Evaluate) -> Transition:
    following = run.level + 1
    if following == len(plan.levels):
        end = _good_end(plan, steps)
        return Finish(end, ()) if end is RunState.SUCCEEDED or run.compared else Compare(ending=True)
    # In a resumed run, some steps of the level are done.
    members = tuple(i for i in plan.levels[following] if steps[i].status is StepState.PENDING)
    return _open(plan, RunState.RUNNING, following, members, steps, evaluate)


def _open(
    plan: CompiledPlan,
    state: RunState,
    level: int,
    members: tuple[int, ...],
    steps: Mapping[int, StepRecord],
    evaluate: Evaluate,
) -> OpenLevel:
    """Open a level: for each of its steps, check the dependencies first, then the guards."""
    opened = OpenLevel(state, level, ())
    ready: list[int] = []
    tainted: set[int] = set()
    for i in members:
        broken = state is RunState.RUNNING and any(steps[d].breaks for d in plan.steps[i].needs)
        if broken and not plan.steps[i].always and not plan.steps[i].looks_at_failure:
            opened.skipped[i] = DEPENDENCY_FAILED
            tainted.add(i)
            continue
        decision = evaluate(i)
        if decision.skip:
            opened.skipped[i] = decision.skip
            if broken:
                tainted.add(i)
        elif decision.fail:
            opened.failed[i] = decision.fail
        elif decision.units is not None:
            opened.fanned[i] = decision
        else:
            ready.append(i)
            if decision.host:
                opened.hosts[i] = decision.host
    stopped_by = next((i for i in opened.failed if state is RunState.RUNNING and plan.stops(i)), None)
    return replace(opened, ready=tuple(ready), tainted=frozenset(tainted), stopped_by=stopped_by)


def _good_end(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> RunState:
    """The end of a run that was not aborted: succeeded, partial, or failed where no step succeeded."""
    if not any(steps[s.index].status in STEP_BAD for s in plan.steps):
        return RunState.SUCCEEDED
    good = any(steps[s.index].status in STEP_GOOD for s in plan.steps if not s.always)
    return RunState.PARTIAL if good else RunState.FAILED


def leaves(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> Iterator[tuple[StepId, CompiledStep, StepRecord]]:
    """Each step, or each unit of a step that was fanned out."""
    for step in plan.steps:
        record = steps[step.index]
        if record.units:
            for n, unit in enumerate(record.units):
                yield f"{step.index}.{n}", step, unit
        else:
            yield step.index, step, record


def _while_aborting(
    plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord], evaluate: Evaluate
) -> Transition | None:
    queued = tuple(i for i, step, leaf in leaves(plan, steps) if _can_be_cancelled(i, step, leaf))
    if queued:
        return Drain(queued)
    if any(leaf.status in _AT_WORK for _, _, leaf in leaves(plan, steps)):
        return None
    if run.lost > run.fenced or not run.compared:
        return Compare(ending=True)
    if not run.keep and not past_return(plan, steps) and (undo := _open_undo(plan, steps, len(plan.levels))):
        return undo
    return _always_or_end(plan, run, steps, evaluate)


def _can_be_cancelled(leaf_id: StepId, step: CompiledStep, leaf: StepRecord) -> bool:
    """Whether a step or unit is dispatched but not claimed, held back (no always step), or waits for no effect."""
    held_back = leaf.status is StepState.PENDING and isinstance(leaf_id, str) and not step.always
    parked = leaf.status is StepState.WAITING and step.waits in {Waits.PERSON, Waits.TIME}
    return leaf.status in _QUEUED or held_back or parked


#: Reason of the refusal to undo a run that is past its point of no return.
PAST_RETURN = "the run is past its point of no return and cannot be undone"


def past_return(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> bool:
    """Whether an irreversible step has succeeded, so that completed steps are not undone."""
    return any(_is_point(step, steps[step.index]) for step in plan.steps)


def _while_undoing(
    plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord], evaluate: Evaluate
) -> Transition | None:
    if run.left > 0:
        if run.undo_deadline is not None and run.now >= run.undo_deadline:
            late = tuple(i for i, _, leaf in leaves(plan, steps) if leaf.undo in _UNDO_QUEUED)
            return GiveUpUndo(late) if late else None
        return None
    if not run.compared:
        return Compare(ending=True)
    top = len(plan.levels) if run.undo_level is None else run.undo_level
    return _open_undo(plan, steps, top) or _always_or_end(plan, run, steps, evaluate)


def _open_undo(plan: CompiledPlan, steps: Mapping[int, StepRecord], below: int) -> OpenUndo | None:
    """Open the highest level under `below` with steps to undo; None if there is none.

    A step that would be undone is held back where the compensation of a step that depends on it has failed: what
    remains of that step may need this one. A step without a compensation holds no other back.
    """
    standing = {} if plan.plan.on_undo_failure == "continue" else _failed_dependents(plan, steps)
    todo: dict[int, list[tuple[StepId, CompiledStep, StepRecord]]] = {}
    for leaf in leaves(plan, steps):
        if leaf[1].level < below and leaf[2].undo is None and may_have_acted(leaf[1], leaf[2]):
            todo.setdefault(leaf[1].level, []).append(leaf)
    for level in sorted(todo, reverse=True):
        undoable = [(i, step) for i, step, leaf in todo[level] if step.has_undo and not _is_point(step, leaf)]
        ready = tuple(i for i, step in undoable if step.index not in standing)
        held_back = {i: _why_held_back(plan, standing[step.index]) for i, step in undoable if step.index in standing}
        impossible = {
            i: _IRREVERSIBLE if _is_point(step, leaf) else _why_impossible(leaf)
            for i, step, leaf in todo[level]
            if _is_point(step, leaf) or (not step.has_undo and step.step.undo != "none")
        }
        if ready or impossible or held_back:
            return OpenUndo(level, ready, impossible, held_back)
    return None


def _failed_dependents(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> dict[int, list[int]]:
    """For each step, the steps that depend on it, also through others, and whose compensation has failed."""
    failed = {step.index for _, step, leaf in leaves(plan, steps) if leaf.undo is UndoState.UNDO_FAILED}
    found: dict[int, set[int]] = {}
    for i in failed:
        for needed in plan.upstream(i):
            found.setdefault(needed, set()).add(i)
    return {i: sorted(dependents) for i, dependents in found.items()}


def _why_held_back(plan: CompiledPlan, failed: list[int]) -> str:
    if len(failed) == 1:
        return f"{plan.steps[failed[0]].name} depends on it, and its undo failed"
    return f"{', '.join(plan.steps[i].name for i in failed)} depend on it, and their undos failed"


def _is_point(step: CompiledStep, record: StepRecord) -> bool:
    return step.step.irreversible and record.status in STEP_GOOD


def may_have_acted(step: CompiledStep, record: StepRecord) -> bool:
    """Whether a step that a compensation covers may have an effect. No compensation covers `always` steps."""
    return not step.always and _may_have_effect(step, record)


def _may_have_effect(step: CompiledStep, record: StepRecord) -> bool:
    """Whether a step was claimed, and is not proven to have had no effect."""
    return (
        record.attempts > 0 and not step.read_only and not record.no_effect and record.status is not StepState.UNCHANGED
    )


def is_untouched(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> bool:
    """Whether no step of a run can have had an effect that a compensation would cover."""
    return not any(may_have_acted(step, leaf) for _, step, leaf in leaves(plan, steps))


def has_no_effect(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> bool:
    """Whether no step of a run, `always` steps included, can have had an effect."""
    return not any(_may_have_effect(step, leaf) for _, step, leaf in leaves(plan, steps))


def undoable(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> list[str]:
    """The names of the steps that an undo of an ended run would undo, in the order of the plan."""
    open_ones = (None, UndoState.UNDO_FAILED, UndoState.HELD_BACK)
    found = [
        step.name
        for _, step, leaf in leaves(plan, steps)
        if step.has_undo and leaf.undo in open_ones and may_have_acted(step, leaf)
    ]
    return list(dict.fromkeys(found))


def _why_impossible(record: StepRecord) -> str:
    if record.status is StepState.CHANGED:
        return "the step has no undo"
    if record.status is StepState.UNKNOWN:
        return "the step may have had an effect, and has no undo"
    return "the step failed, and its effect until then has no undo"


def _always_or_end(
    plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord], evaluate: Evaluate
) -> Transition:
    """After abort and undo: open the `always` steps that were not reached, level by level, then finish."""
    for level, members in enumerate(plan.levels):
        pending = tuple(i for i in members if plan.steps[i].always and _not_reached(steps[i]))
        if pending:
            return _open(plan, RunState.FINISHING, level, pending, steps, evaluate)
    not_run = tuple(i for i in range(len(plan)) if steps[i].status is StepState.PENDING)
    return Finish(_bad_end(plan, run, steps), not_run)


def _not_reached(record: StepRecord) -> bool:
    """Whether a step has not begun, or was fanned out and interrupted by the abort."""
    return record.status is StepState.PENDING or any(unit.status is StepState.PENDING for unit in record.units)


def _bad_end(plan: CompiledPlan, run: RunRecord, steps: Mapping[int, StepRecord]) -> RunState:
    # A command to undo is refused past the point of no return. But the receipts, which are compared after the command,
    # may show that an irreversible step has succeeded. There is no transition from `undoing` to `failed`.
    if run.keep or (past_return(plan, steps) and run.undo_level is None):
        return RunState.FAILED
    if any(leaf.undo in UNDO_OPEN for _, _, leaf in leaves(plan, steps)):
        return RunState.UNDO_FAILED
    return RunState.FAILED if run.undo_level is None and is_untouched(plan, steps) else RunState.UNDONE


#: Prefix of the skip reason of a step that a person resolved as `skip`.
BY_HAND = "skip by "


@dataclass(frozen=True)
class ResumeSet:
    """The steps and units that a resume runs again, and the last completed level."""

    level: int
    steps: tuple[StepId, ...]


def resumed(plan: CompiledPlan, steps: Mapping[int, StepRecord]) -> ResumeSet:
    """The resume set of an ended run.

    The set holds each step that did not succeed or was not reached, the steps skipped after one of those, and their
    `always` steps; of a step that was fanned out, the units that are not done.
    """
    again: list[StepId] = []
    anew: set[int] = set()
    for level in plan.levels:
        for i in level:
            record, before = steps[i], any(d in anew for d in plan.steps[i].needs)
            done = _is_done(record)
            by_hand = record.reason.startswith(BY_HAND)
            stale = before and not by_hand and (record.status is StepState.SKIPPED or plan.steps[i].always)
            if done and not stale:
                # Steps skipped after this one are still decided again.
                if before:
                    anew.add(i)
                continue
            anew.add(i)
            again.append(i)
            # Units that succeeded are done; an always step runs again with all of its units.
            redone = [n for n, unit in enumerate(record.units) if _is_redone(unit) or plan.steps[i].always]
            again += [f"{i}.{n}" for n in redone]
    first = min((plan.steps[i].level for i in again if isinstance(i, int)), default=len(plan.levels))
    return ResumeSet(first - 1, tuple(again))


def _is_redone(unit: StepRecord) -> bool:
    """Whether a resume runs a unit of a repeated step again. A skipped unit is decided again, unless by a person."""
    skipped = unit.status is StepState.SKIPPED and not unit.reason.startswith(BY_HAND)
    return skipped or not _is_done(unit)


def _is_done(record: StepRecord) -> bool:
    """Whether a step succeeded, or was skipped without a failed dependency, and has not been undone."""
    good = record.status in STEP_GOOD or (record.status is StepState.SKIPPED and not record.tainted)
    return good and record.undo is not UndoState.UNDONE


def left_over(plan: CompiledPlan, state: RunState, steps: Mapping[int, StepRecord]) -> list[StepId]:
    """Steps and units whose effect remains although the run did not succeed.

    A failed or cancelled step without an undo is in doubt instead (`longshore.orchestration.runs.doubt`): it is known
    to have stopped, not to have changed something.
    """
    if state is RunState.SUCCEEDED:
        return []
    found: list[StepId] = []
    for leaf_id, step, record in leaves(plan, steps):
        if (
            record.undo in UNDO_OPEN
            or (record.undo is UndoState.NOT_UNDOABLE and record.status not in _STOPPED_HALF_WAY)
            or (
                state in {RunState.PARTIAL, RunState.FAILED}
                and record.status in {StepState.CHANGED, StepState.UNKNOWN}
                and record.undo is not UndoState.UNDONE
                and not step.always
            )
        ):
            found.append(leaf_id)
    return found
