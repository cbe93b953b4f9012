"""The hosts for the messages of steps and units, and the dispatch of the next units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId, index_of
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import RunState
from longshore.orchestration.store.hosts import Hosts, HostState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.external_wait import MakeCanvas


def hosts_of(store: Store, run_id: str, plan: CompiledPlan, ids: Sequence[StepId], side: str = "") -> dict[StepId, str]:
    """The hosts of the steps bound to one: by target or, where the effect belongs to one host, by earlier attempts."""
    bound = [i for i in ids if (step := plan.steps[index_of(i)]).target != ANY or step.stays(side)]
    rows = store.step_fields(run_id, bound, (Field.HOST, Field.DONE_AT, Field.JOURNALLED))
    found: dict[StepId, str] = {}
    for i, row in rows.items():
        if place := plan.steps[index_of(i)].place(side, *row):
            found[i] = place
    return found


def silent_limit(settings: Settings) -> float:
    """Seconds to wait for one of several hosts whose workers give no sign of life: it may be restarting."""
    return min(settings.claim_timeout, 2 * settings.lease)


@dataclass(frozen=True)
class Away:
    """Units sent to one of several hosts which claims no work now, with the reason.

    A step that names one host waits for that host; of many, one unavailable host must not delay the others. An always
    step waits for its hosts.
    """

    #: No worker gives a sign of life: given up after `silent_limit`.
    silent: dict[StepId, str] = field(default_factory=dict)
    #: The host was drained after dispatch: its units are skipped, as on hosts drained before.
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
            found.silent[i] = f"host {hosts[i]} is no longer registered"
        elif host.drained is not None:
            found.drained[i] = host.why_not()
        elif host.state in {HostState.LOST, HostState.STOPPED}:
            found.silent[i] = host.why_not()
    return found


def _among_several(step: CompiledStep, places: int) -> bool:
    return not step.always and (is_several(step.target) or places > 1)


def send_next(store: Store, canvas: MakeCanvas, run_id: str, plan: CompiledPlan, units: Sequence[StepId]) -> None:
    """Send the units that were held back and may begin now. The sweeper resends lost messages."""
    if units:
        canvas(run_id, hosts_of(store, run_id, plan, units)).send_level(plan, units, may_chain=False)
    if len(units) > 1:
        send_more(store, canvas, run_id, plan, index_of(units[0]))


def send_more(store: Store, canvas: MakeCanvas, run_id: str, plan: CompiledPlan, step: int) -> None:
    """Dispatch and send the units of a wide fan-out that may begin now, a part at a time.

    If the process dies between two parts, each other unit begins at the end of a unit.
    """
    while units := store.dispatch_units(run_id, step):
        canvas(run_id, hosts_of(store, run_id, plan, units)).send_level(plan, units, may_chain=False)


def in_flight(store: Store, run_id: str, plan: CompiledPlan, run: RunRecord) -> tuple[str, list[StepId]]:
    """The side and the steps of a run's present batch."""
    undoing = RunState.UNDOING in {run.state, run.was}
    level = run.undo_level if undoing else run.level
    if level is None or not 0 <= level < len(plan.levels):
        return "", []
    return "u" if undoing else "", store.expanded(run_id, plan.levels[level])
