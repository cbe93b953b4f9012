"""The reasons why dispatched steps have not begun, computed from the state of the hosts when a report is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from longshore.orchestration.plans.compiled import CONTROL, CompiledPlan, StepId, as_id, index_of, is_forward
from longshore.orchestration.states import StepState
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.hosts import SILENT_LEASES, Host, Hosts
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.placement import takers
from longshore.orchestration.store.run_store import Store

#: The field that the report reads the reason from; no record stores it.
WAITS = "pending_reason"


def pending_reasons(store: Store, plan: CompiledPlan, steps: Mapping[str, str]) -> dict[str, str]:
    """The reason for each step or undo that waits for a worker, as a field WAITS of its id, where one is known."""
    waiting = list(_waiting(steps, store.now()))
    if not waiting:
        return {}
    hosts = Hosts(store).all()
    found = {}
    for side, step_id in waiting:
        step = plan.steps[index_of(step_id)]
        host = step.place(
            side, *(steps.get(f"{kind}:{step_id}") for kind in (Field.HOST, Field.DONE_AT, Field.JOURNALLED))
        )
        queue = step.undo_queue_at(host) if side else step.queue_at(host)
        if why := _why(hosts, host, queue):
            found[f"{side}{WAITS}:{step_id}"] = f"waits: {why}"
    return found


def hold_reason(store: Store, run_id: str, reason: str) -> str:
    """The reason why a pending run has not begun, with its position in the queue of its limit."""
    admission = Admission(store)
    wanted = admission.request_of(run_id)
    before = admission.position(run_id, wanted) if wanted is not None else None
    if before is None:
        return reason
    if not before:
        return f"{reason}; it is the next"
    return f"{reason}; {before} {'run waits' if before == 1 else 'runs wait'} before it"


def unserved(store: Store, plan: CompiledPlan) -> list[str]:
    """The queues that a run of the plan needs and that no worker consumes now."""
    hosts = list(Hosts(store).all().values())
    needed = {CONTROL, *(step.operation.queue for step in plan.steps)}
    return sorted(queue for queue in needed if not takers(hosts, queue))


def _waiting(steps: Mapping[str, str], now: int) -> Iterator[tuple[str, StepId]]:
    for name, value in steps.items():
        kind, _, step_id = name.partition(":")
        if kind not in {Field.STATUS, f"u{Field.STATUS}"}:
            continue
        side = kind.removesuffix(Field.STATUS)
        due = int(steps.get(f"{side}{Field.NOT_BEFORE}:{step_id}") or 0) <= now
        if value == StepState.READY or (value == StepState.RETRYING and due):
            yield side, as_id(step_id)


def _why(hosts: Mapping[str, Host], name: str, queue: str) -> str:
    host = hosts.get(name)
    taken = takers(hosts.values() if host is None else [host], queue)
    if host is not None:
        # A drained host still claims always steps and undo.
        if host.why_not() and not (host.drained is not None and host.alive and not is_forward(queue)):
            return host.why_not()
        if host.now - host.seen > host.silent / SILENT_LEASES:
            return f"host {name} has sent no heartbeat for {(host.now - host.seen) / 1000:.0f} s"
    return "" if taken else f"no worker consumes queue {queue}"
