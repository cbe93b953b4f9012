"""Where the messages of steps and units go, and the message of a unit whose turn has come."""

from __future__ import annotations

from collections.abc import Sequence

from longshore.orchestration.canvas import STEP
from longshore.orchestration.compiled import CompiledPlan, StepId, index_of
from longshore.orchestration.keys import Field
from longshore.orchestration.saga import RunRecord
from longshore.orchestration.states import RunState
from longshore.orchestration.store import Store
from longshore.tasks.waiting import MakeCanvas


def hosts_of(store: Store, run_id: str, plan: CompiledPlan, ids: Sequence[StepId]) -> dict[StepId, str]:
    """The hosts of those that are for one."""
    bound = [i for i in ids if plan.steps[index_of(i)].target != "_any"]
    rows = store.step_fields(run_id, bound, (Field.HOST,))
    return {i: host for i, (host,) in rows.items() if host}


def send_next(store: Store, canvas: MakeCanvas, run_id: str, plan: CompiledPlan, unit: StepId | None) -> None:
    """A unit that was held back has its turn. If its message is lost, the sweeper sends it."""
    if unit is not None:
        canvas(run_id, hosts_of(store, run_id, plan, [unit])).send_single(STEP, plan, unit)


def in_flight(store: Store, run_id: str, plan: CompiledPlan, run: RunRecord) -> tuple[str, list[StepId]]:
    """The side and the steps of a run's present batch."""
    undoing = RunState.UNDOING in {run.state, run.was}
    level = run.undo_level if undoing else run.level
    if level is None or not 0 <= level < len(plan.levels):
        return "", []
    return "u" if undoing else "", store.expanded(run_id, plan.levels[level])
