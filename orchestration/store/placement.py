"""Placement: the hosts of a target, and the reasons why a host cannot run a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from longshore.orchestration.errors import UnknownName
from longshore.orchestration.language.targets import ALL, HostFilter, has_label, is_several, listed
from longshore.orchestration.operations import Operation
from longshore.orchestration.plans.compiled import CONTROL, CompiledStep, at_host, is_forward
from longshore.orchestration.store.hosts import Host, HostState, NodeState


def selected(hosts: Mapping[str, Host], target: str) -> list[Host]:
    """The hosts of `_all` or a label, in the order of their names.

    Stopped hosts are left out, except drained ones, which the caller reports with a reason.
    """
    there = [host for _, host in sorted(hosts.items()) if host.state is not HostState.STOPPED or host.drained]
    return there if target == ALL else [host for host in there if has_label(host.labels, target)]


def hosts_of(hosts: Mapping[str, Host], target: str, *, always: bool = False) -> list[Host]:
    """The hosts of a target other than `_any`. A drained host accepts an always step (`always`).

    Raises UnknownName where no host matches, or where all hosts of `_all` or a label are drained.
    """
    if not is_several(target):
        if target not in hosts:
            raise UnknownName(
                f"no worker has registered on host {target!r} (there are: {listed(sorted(hosts))})",
                remedy="a host is known once a worker of it has started: longshore hosts ls",
            )
        return [hosts[target]]
    found = selected(hosts, target)
    if not found and target == ALL:
        raise UnknownName("no host has a worker", remedy="start one: longshore worker")
    if not found:
        there = [host for host in hosts.values() if host.nodes]
        known = sorted({f"{key}:{value}" for host in there for key, value in host.labels.items()})
        raise UnknownName(
            f"no host has the label {target} (there are: {listed(known)})",
            remedy="a worker gives its host labels with --label, or LONGSHORE_LABELS: longshore hosts ls",
        )
    if not always and all(why_drained(host) for host in found):
        names = listed(host.name for host in found)
        raise UnknownName(f"all hosts of {target} are drained: {names}")
    return found


def why_drained(host: Host) -> str:
    """Why a host is left out of a target of several hosts: only for a drain; else ''.

    A lost or stopping host is not left out: its units wait for a limited time and are named in the report.
    """
    return host.why_not() if host.drained is not None else ""


def cannot(operation: Operation, host: Host) -> str:
    """Why a host can never run an operation; '' where a worker can, or could before it went away."""
    queue = operation.queue
    if queue == CONTROL:
        return ""
    if at_host(queue, host.name) not in host.had:
        return f"host {host.name} has never had a worker for the queue {queue}"
    if operation.function is not None and operation.name not in host.own:
        return f"no worker of host {host.name} has ever known {operation.name}"
    if queue in {"docker", "compose"} and host.facts.get("docker", "") is None:
        return f"host {host.name} has no Docker engine"
    if queue == "compose" and host.facts.get("compose", "") is None:
        return f"host {host.name} has no Docker Compose"
    return ""


def left_out(step: CompiledStep, host: Host | None, hosts: Mapping[str, Host], *, alone: bool) -> str:
    """Why a step is skipped on a host, or on any host for None; '' where it runs.

    `alone`: the target is this one host, so the step waits for it even while the host is drained.
    """
    condition = step.step.when_fact
    if host is None:
        lacking = condition is not None and not matching(list(hosts.values()), condition)
        return "when-fact: no host is like that" if lacking else ""
    reason = (not alone and not step.always and why_drained(host)) or cannot(step.operation, host)
    if not reason and condition is not None and not condition.matches(host):
        reason = "when-fact: the host is not like that"
    return reason


def takers(hosts: Iterable[Host], queue: str) -> int:
    """The number of live workers that consume a queue. A drained host consumes only queues without new work."""
    return sum(
        queue in node.queues and node.state is not NodeState.STOPPING
        for host in hosts
        if host.drained is None or not is_forward(queue)
        for node in host.alive
    )


def matching(hosts: Sequence[Host], condition: HostFilter) -> list[Host]:
    return [host for host in hosts if condition.matches(host)]


def grouped(hosts: Sequence[Host], by: str) -> dict[str, list[Host]]:
    """Hosts by the value of a fact, or of a label (`label:KEY`). Hosts without a value are left out."""
    groups: dict[str, list[Host]] = {}
    for host in hosts:
        key = by.removeprefix("label:")
        value = host.labels.get(key) if by.startswith("label:") else host.facts.get(key)
        if value not in {None, ""}:
            groups.setdefault(str(value), []).append(host)
    return dict(sorted(groups.items()))
