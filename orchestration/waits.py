"""Why a step that was sent to the workers has not begun: read from the hosts, when somebody looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from longshore.orchestration.compiled import CompiledPlan, StepId, as_id, index_of
from longshore.orchestration.hosts import SILENT_LEASES, Host, Hosts, NodeState
from longshore.orchestration.keys import Field
from longshore.orchestration.states import StepState
from longshore.orchestration.store import Store

#: Among the fields of steps, as the report reads them; it is in no record.
WAITS = "wait"


def reasons(store: Store, plan: CompiledPlan, steps: Mapping[str, str]) -> dict[str, str]:
    """`wait:<id>`, and `uwait:<id>` of undos: why each that waits for a worker does, where that can be said."""
    waiting = list(_waiting(steps, store.now()))
    if not waiting:
        return {}
    hosts = Hosts(store).all()
    found = {}
    for side, step_id in waiting:
        step = plan.steps[index_of(step_id)]
        host = steps.get(f"{Field.HOST}:{step_id}") or ""
        if not host and step.stays(side) and (side or f"{Field.JOURNALLED}:{step_id}" in steps):
            host = steps.get(f"{Field.DONE_AT}:{step_id}") or ""
        queue = step.undo_queue_at(host) if side else step.queue_at(host)
        if why := _why(hosts, host, queue):
            found[f"{side}{WAITS}:{step_id}"] = f"waits: {why}"
    return found


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
    if host is None:
        live = [node for known in hosts.values() if known.drained is None for node in known.alive]
    elif host.why_not() and not (host.drained is not None and host.alive and queue.endswith(".undo")):
        return host.why_not()
    else:
        live = list(host.alive)
    if host is not None and host.now - host.seen > host.silent / SILENT_LEASES:
        return f"host {name} has not been heard of for {(host.now - host.seen) / 1000:.0f} s"
    consumed = any(queue in node.queues and node.state is not NodeState.STOPPING for node in live)
    return "" if consumed else f"no worker takes what is in the queue {queue}"
