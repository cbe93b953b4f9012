"""Where the messages of steps and units go, and the message of a unit whose turn has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.messaging.canvas import STEP
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId, index_of
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import RunState
from longshore.orchestration.store.hosts import Hosts, HostState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.external_wait import MakeCanvas


def hosts_of(store: Store, run_id: str, plan: CompiledPlan, ids: Sequence[StepId], side: str = "") -> dict[StepId, str]:
    """The hosts of those that are for one: by their target; or, where what they do is of one host, by what was done
    there already.
    """
    bound = [i for i in ids if (step := plan.steps[index_of(i)]).target != ANY or step.stays(side)]
    rows = store.step_fields(run_id, bound, (Field.HOST, Field.DONE_AT, Field.JOURNALLED))
    found: dict[StepId, str] = {}
    for i, row in rows.items():
        if place := plan.steps[index_of(i)].place(side, *row):
            found[i] = place
    return found


def silent_limit(settings: Settings) -> float:
    """Seconds that one of several hosts is waited for while no worker of it says anything: it may be starting again."""
    return min(settings.claim_timeout, 2 * settings.lease)


@dataclass(frozen=True)
class Away:
    """Those that were sent to one of several hosts which takes no work now, and why it takes none.

    Who names one host means that one, and waits for it; of many, one that is gone must not hold up the others. What
    always runs is waited for.
    """

    #: No worker says anything: soon given up.
    silent: dict[StepId, str] = field(default_factory=dict)
    #: Somebody has drained it since: left out, as those that were drained before.
    drained: dict[StepId, str] = field(default_factory=dict)


def away(store: Store, plan: CompiledPlan, ids: Sequence[StepId], hosts: Mapping[StepId, str], side: str) -> Away:
    found = Away()
    units = [] if side else [i for i in ids if i in hosts and isinstance(i, str)]
    places: dict[int, set[str]] = {}
    for i in units:
        places.setdefault(index_of(i), set()).add(hosts[i])
    among = [i for i in units if _among_several(plan.steps[index_of(i)], len(places[index_of(i)]))]
    known = Hosts(store).all() if among else {}
    for i in among:
        host = known.get(hosts[i])
        if host is None:
            found.silent[i] = f"host {hosts[i]} is not known any more"
        elif host.drained is not None:
            found.drained[i] = host.why_not()
        elif host.state in {HostState.LOST, HostState.STOPPED}:
            found.silent[i] = host.why_not()
    return found


def _among_several(step: CompiledStep, places: int) -> bool:
    return not step.always and (is_several(step.target) or places > 1)


def send_next(store: Store, canvas: MakeCanvas, run_id: str, plan: CompiledPlan, units: Sequence[StepId]) -> None:
    """Units that were held back have their turn. If their messages are lost, the sweeper sends them."""
    if units:
        line = canvas(run_id, hosts_of(store, run_id, plan, units))
        for unit in units:
            line.send_single(STEP, plan, unit)


def in_flight(store: Store, run_id: str, plan: CompiledPlan, run: RunRecord) -> tuple[str, list[StepId]]:
    """The side and the steps of a run's present batch."""
    undoing = RunState.UNDOING in {run.state, run.was}
    level = run.undo_level if undoing else run.level
    if level is None or not 0 <= level < len(plan.levels):
        return "", []
    return "u" if undoing else "", store.expanded(run_id, plan.levels[level])
