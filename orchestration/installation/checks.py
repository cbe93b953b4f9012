"""Consistency checks of an installation: queues, operations, versions, clocks, keys, disks and runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.installation.evolution import unsupported
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.language.targets import listed
from longshore.orchestration.messaging import signing
from longshore.orchestration.operations import all_operations
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.plans.loading import load, stored
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.schedules import declarations
from longshore.orchestration.states import RunState, StepState
from longshore.orchestration.store.hosts import Host, Hosts, Node
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.queue_lengths import queue_lengths
from longshore.orchestration.store.run_store import Store

Grade = Literal["ok", "warning", "error"]

#: Oldest tested versions of the engine and of Compose.
_ENGINE, _COMPOSE = (20, 10), (2, 17)
#: ms of clock skew at which a host gets a warning; and an error, because certificates and signatures fail.
_SKEW_WARNING, _SKEW_ERROR = 2_000, 60_000
#: Free bytes for receipts and undo backups, below which a host gets a warning; and an error.
_FREE_WARNING, _FREE_ERROR = 2 * 1024**3, 200 * 1024**2
#: Live runs examined at most.
_LIVE_RUNS = 500
#: Runs of one kind that are named.
_NAMED = 5
#: Seconds for which a jump of Redis's clock is reported.
_JUMP_REPORTED = 86_400.0


@dataclass(frozen=True)
class Finding:
    """The result of one check. `remedy` is the action to take, empty where the grade is ok."""

    what: str
    grade: Grade
    remedy: str = ""


def examine(store: Store) -> Iterator[Finding]:
    """The findings of all checks. Raises StoreUnavailable."""
    hosts = [host for host in Hosts(store).all().values() if host.alive]
    nodes = [(host, node) for host in hosts for node in host.alive]
    plans, errors = _plans()
    for error in errors:
        yield Finding(f"a stored plan cannot be read: {error}", "error", "run longshore plan validate for every error")
    yield from _queues(store, [node for _, node in nodes], plans)
    yield from _operations(hosts, plans)
    yield from _times(store)
    yield from _hosts(hosts)
    yield from _versions(nodes)
    yield from _keys(store, nodes)
    yield from _beats(store)
    yield from _clock(store)
    yield from _runs(store)
    yield from _stored_runs(store, [node for _, node in nodes])


def _plans() -> tuple[list[Plan], list[str]]:
    """The plans stored on this machine, and the errors of those that cannot be read."""
    found, errors = [], []
    for name in stored():
        try:
            found.append(load(name, check=False))
        except (LongshoreError, OSError) as error:
            errors.append(str(error))
    return found, errors


def _used(plans: Iterable[Plan]) -> dict[str, str]:
    """The operations that stored plans use, each with the name of one such plan."""
    return {step.op: plan.name for plan in plans for step in plan.steps.values()}


def _queues(store: Store, nodes: list[Node], plans: list[Plan]) -> Iterator[Finding]:
    served = {queue for node in nodes for queue in node.queues}
    waiting = {backlog.queue: backlog for backlog in queue_lengths(store)}
    known = all_operations()
    needed = {known[op].queue: plan for op, plan in _used(plans).items() if op in known}
    missing = sorted(name for name in {CONTROL, *needed} if name not in served) if nodes else []
    for name in missing:
        effect = f", which plan {needed[name]} needs" if name in needed else ": no run can advance"
        yield Finding(f"no worker consumes queue {name}{effect}", "error", f"start one: longshore worker -Q {name}")
    undo = sorted(
        name
        for name in served
        if name != CONTROL and "." not in name and "@" not in name and f"{name}.undo" not in served
    )
    for name in undo:
        yield Finding(
            f"workers consume queue {name}, but none consumes {name}.undo: its steps cannot be undone", "error",
            f"start workers with longshore worker -Q {name}, or celery -Q {name},{name}.undo",
        )  # fmt: skip
    for backlog in waiting.values():
        if backlog.length and not backlog.workers and backlog.queue not in missing:
            yield Finding(
                f"{backlog.length} messages wait in queue {backlog.queue}, and no worker consumes it", "error",
                f"start one: longshore worker -Q {backlog.queue.partition('@')[0]}",
            )  # fmt: skip
    if served and not missing and not undo:
        yield Finding(f"every required queue has a worker ({len(served)} queues)", "ok")


def _operations(hosts: list[Host], plans: list[Plan]) -> Iterator[Finding]:
    own = {name for host in hosts for node in host.alive for name in node.own}
    here = {name for name, operation in all_operations().items() if operation.function is None}
    for op, plan in sorted(_used(plans).items()):
        if hosts and op not in own | here:
            yield Finding(
                f"no worker provides operation {op}, which plan {plan} needs", "error",
                "set LONGSHORE_IMPORTS for the workers, or install the package that defines it there",
            )  # fmt: skip


def _times(store: Store) -> Iterator[Finding]:
    settings = store.settings
    if settings.claim_timeout < settings.lease:
        yield Finding(
            f"the claim timeout of {format_duration(settings.claim_timeout)} is shorter than a lease: steps fail "
            "before a lost message is resent", "error", "set LONGSHORE_CLAIM_TIMEOUT=10m",
        )  # fmt: skip


def _hosts(hosts: list[Host]) -> Iterator[Finding]:
    for host in hosts:
        health = _worst_health(host.alive)
        skew = int(health.get("skew", 0))
        if abs(skew) > _SKEW_WARNING:
            way = "ahead of" if skew > 0 else "behind"
            yield Finding(
                f"the clock of host {host.name} is {abs(skew) / 1000:.1f} s {way} that of "
                "Redis", "error" if abs(skew) > _SKEW_ERROR else "warning",
                f"run timedatectl set-ntp true on {host.name}",
            )  # fmt: skip
        free = int(health.get("free", _FREE_WARNING))
        if free < _FREE_WARNING:
            yield Finding(
                f"host {host.name} has {free / 1024**2:.0f} MiB free for undo backups (they use {_size(health)})",
                "error" if free < _FREE_ERROR else "warning", "run longshore gc, and free disk space there",
            )  # fmt: skip
        if health.get("missing"):
            yield Finding(
                f"host {host.name}: stack directories are not mounted in its worker: {listed(health['missing'][:5])}",
                "warning",
                "mount each into the worker at the same path",
            )  # fmt: skip
        if _with_engine(host):
            yield from _engine(host)
        yield Finding(f"host {host.name}: {_size(health)} of undo backups, {free / 1024**3:.1f} GiB free", "ok")


def _worst_health(nodes: Iterable[Node]) -> dict[str, Any]:
    """The worst health values among the workers of a host; each worker has its own mounts."""
    reports = [node.health for node in nodes if node.health]
    return {
        "skew": max((int(one.get("skew", 0)) for one in reports), key=abs, default=0),
        "free": min((int(one.get("free", _FREE_WARNING)) for one in reports), default=_FREE_WARNING),
        "kept": max((int(one.get("kept", 0)) for one in reports), default=0),
        "missing": sorted({folder for one in reports for folder in one.get("missing", ())}),
    }


def _size(health: Mapping[str, Any]) -> str:
    return f"{int(health.get('kept', 0)) / 1024**2:.1f} MiB"


def _with_engine(host: Host) -> bool:
    return any(map(_consumes_docker, host.alive))


def _consumes_docker(node: Node) -> bool:
    return any(queue.partition("@")[0] in {"docker", "compose"} for queue in node.queues)


def _consumes_all(node: Node) -> bool:
    """Whether a worker consumes every queue of the catalogue, as it does without -Q."""
    return {operation.queue for operation in all_operations().values() if operation.function is None} <= {*node.queues}


def _engine(host: Host) -> Iterator[Finding]:
    here = [node for node in host.alive if _consumes_docker(node)]
    engine = next((found for node in here if (found := node.facts.get("docker"))), here[0].facts.get("docker"))
    compose = next((found for node in here if (found := node.facts.get("compose"))), None)
    consumed = {queue for node in here for queue in node.queues}
    if engine is None and all(map(_consumes_all, here)):
        yield Finding(
            f"host {host.name} has no Docker engine, or its worker no Docker SDK: docker and compose steps fail there",
            "warning",
            "for such steps, install an engine there and longshore[docker]; otherwise nothing needs to be done",
        )
        return
    if not engine:
        yield Finding(
            f"host {host.name} consumes docker queues, but its engine does not answer" if engine == ""
            else f"host {host.name} consumes docker queues, but its workers find no Docker engine",
            "error", f"run docker info on {host.name}, or start its worker without -Q docker,compose",
        )  # fmt: skip
        return
    if _older(engine, _ENGINE):
        yield Finding(f"host {host.name}: Docker {engine} is older than 20.10", "error", "upgrade the engine")
    if "compose" in consumed and not compose:
        yield Finding(
            f"host {host.name} consumes compose queues, but has no Docker Compose", "error",
            "install the compose plugin where its worker runs",
        )  # fmt: skip
    elif "compose" in consumed and _older(str(compose), _COMPOSE):
        yield Finding(
            f"host {host.name}: Docker Compose {compose} is older than 2.17", "error", "upgrade the compose plugin"
        )
    else:
        yield Finding(f"host {host.name}: Docker {engine}" + (f", Compose {compose}" if compose else ""), "ok")


def _older(text: str, than: tuple[int, ...]) -> bool:
    found = tuple(int(part) for part in text.split(".")[: len(than)] if part.isdigit())
    return len(found) == len(than) and found < than


def _versions(nodes: list[tuple[Host, Node]]) -> Iterator[Finding]:
    mine = version("longshore")
    others = sorted({f"{node.name} has {node.version}" for _, node in nodes if node.version != mine})
    if others:
        yield Finding(
            f"versions of Longshore differ: this client has {mine}, {listed(others[:5])}", "warning",
            "upgrade workers first, then clients and beats",
        )  # fmt: skip
    elif nodes:
        yield Finding(f"all workers have Longshore {mine}", "ok")


def _keys(store: Store, nodes: list[tuple[Host, Node]]) -> Iterator[Finding]:
    ring = signing.ring(store.settings)
    signs = {node.name for _, node in nodes if node.health.get("keys")}
    bare = {node.name for _, node in nodes} - signs
    if signs and bare:
        yield Finding(
            f"{listed(sorted(bare)[:5])} do not sign messages, and the other workers reject unsigned ones",
            "error", "set LONGSHORE_KEYS for each worker, and restart it",
        )  # fmt: skip
    if ring is not None and bare and not signs:
        yield Finding(
            "this client signs its messages, but no worker verifies them",
            "warning",
            "set LONGSHORE_KEYS for the workers",
        )
    if ring is None and signs:
        yield Finding(
            "workers accept only signed requests, and this client has no key",
            "error",
            "set LONGSHORE_KEYS=…/client/keys.json",
        )
    for _, node in nodes:
        if "unreadable" in node.health.get("keys", ()):
            yield Finding(
                f"worker {node.name} cannot read its keys",
                "error",
                "see its log; set mode 600 and the owner of the file",
            )
        elif ring is not None and node.name in signs:
            unknown = sorted({key.id for key in ring.keys} - set(node.health["keys"]))
            if unknown:
                yield Finding(
                    f"worker {node.name} does not have key {unknown[0]}, and rejects messages signed with it", "error",
                    "copy the new keys.json of longshore init --rotate to it",
                )  # fmt: skip


def _beats(store: Store) -> Iterator[Finding]:
    known, errors = declarations.declared(store.settings)
    for why in errors:
        yield Finding(why, "error", "correct it; until then this schedule starts no run")
    for each in known:
        if why := declarations.problem(each):
            yield Finding(
                f"schedule {each.name} cannot start its plan: {why}",
                "error",
                f"correct it, then try it: longshore schedules trigger {shlex.quote(each.name)}",
            )
    if not known:
        return
    last = store.call(store.client.get, store.keys.last_tick)
    late = store.now() - int(last or 0) > 1000 * (3 * store.settings.tick + 10)
    if late:
        yield Finding(
            f"{len(known)} schedules, but no beat has " + ("ticked recently" if last else "ever ticked"), "error",
            "start one: longshore beat",
        )  # fmt: skip
    else:
        yield Finding(f"{len(known)} schedules, and a beat is running", "ok")


def _clock(store: Store) -> Iterator[Finding]:
    """A finding where Redis's clock has jumped during the last day."""
    by, at = store.call(store.client.hmget, store.keys.clock, ("by", "at"))
    if by is None or not 0 <= store.now() - int(at) < 1000 * _JUMP_REPORTED:
        return
    where = "forward" if int(by) > 0 else "back"
    yield Finding(
        f"Redis's clock has jumped {where} by {format_duration(round(abs(int(by)) / 1000))}", "warning",
        "run a time service that slews the clock of its host; waiting runs were resumed",
    )  # fmt: skip


def _stored_runs(store: Store, nodes: list[Node]) -> Iterator[Finding]:
    """Live runs that a deployed worker could not carry out."""
    found = list(unsupported(store, nodes)) if nodes else []
    for run_id, why in found[:_NAMED]:
        yield Finding(
            f"run {run_id} cannot be carried out as it was stored: {why}", "error",
            "deploy workers that know it, with renamed= or upgrade= of @operation for its parameters; or cancel it: "
            f"longshore runs cancel {run_id}",
        )  # fmt: skip
    if len(found) > _NAMED:
        yield Finding(
            f"{len(found) - _NAMED} more runs cannot be carried out as they were stored", "error", "see above"
        )


def _runs(store: Store) -> Iterator[Finding]:
    """Live runs that no worker is working on and that wait for nothing."""
    settings, now = store.settings, store.now()
    served = [one for one in queue_lengths(store) if one.workers and one.queue != CONTROL]
    queued = any(backlog.length for backlog in served)
    patience = 1000 * (3 * settings.lease + settings.sweep_interval + 30)
    stuck = []
    for run_id in store.call(store.client.zrange, store.keys.live, 0, _LIVE_RUNS - 1):
        state = store.state(run_id)
        if state in {None, RunState.SUSPENDED, RunState.PENDING}:
            continue
        quiet = now - int(store.newest_event(run_id).partition("-")[0])
        steps = store.call(store.client.hgetall, store.keys.of(run_id).steps)
        # A ready step has a message in a queue, unless all queues are empty.
        busy = {StepState.RUNNING, StepState.RETRYING, StepState.WAITING, *([StepState.READY] if queued else [])}
        active = any(
            value in busy or value == "undoing"
            for key, value in steps.items()
            if key.partition(":")[0].removeprefix("u") == Field.STATUS
        )
        if quiet > patience and not active:
            stuck.append(run_id)
    if stuck:
        yield Finding(
            f"{len(stuck)} runs make no progress: {listed(stuck[:5])}", "error",
            f"see longshore runs show {stuck[0]}, then longshore runs resume {stuck[0]}",
        )  # fmt: skip
