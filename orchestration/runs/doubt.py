"""The steps in doubt of a run: they were stopped, may have had an effect, and no compensation covers it.

The effect of a step whose message may still be carried out is not covered by a compensation that ran before.
"""

from __future__ import annotations

from collections.abc import Mapping

from longshore.orchestration import saga
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.transitions import StepRecord

#: States of a step that is known to have stopped, and not how far it went.
_STOPPED = frozenset({StepState.FAILED, StepState.CANCELLED})
#: No compensation has run: there is none, or the run keeps its effects.
_UNCOVERED = frozenset({None, UndoState.NOT_UNDOABLE})


def in_doubt(plan: CompiledPlan, state: RunState, steps: Mapping[int, StepRecord]) -> list[StepId]:
    """The steps and units in doubt of a run that has ended in `state`, in plan order.

    A step whose message may still be carried out is in doubt whatever its compensation, which may precede the effect.
    Otherwise exempt are `undo: none`, a step that its operation has reverted, and the steps that
    `saga.may_have_acted` excludes: always steps, read-only ones, and those whose error came before the act.
    """
    if state is RunState.SUCCEEDED:
        return []
    return [leaf_id for leaf_id, step, record in saga.leaves(plan, steps) if _is_in_doubt(step, record)]


def _is_in_doubt(step: CompiledStep, record: StepRecord) -> bool:
    return record.live_message or (
        record.status in _STOPPED
        and record.undo in _UNCOVERED
        and step.step.undo != "none"
        and not record.reverted
        and saga.may_have_acted(step, record)
    )
