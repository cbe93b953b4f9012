"""Whether the parts of an installation fit together: queues, operations, versions, clocks, keys, disks, runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.language.targets import listed
from longshore.orchestration.messaging import signing
from longshore.orchestration.operations import all_operations
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.plans.loading import load, stored
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.schedules import schedules
from longshore.orchestration.states import RunState, StepState
from longshore.orchestration.store.hosts import Host, Hosts, Node
from longshore.orchestration.store.queue_lengths import queue_lengths
from longshore.orchestration.store.run_store import Store

Grade = Literal["ok", "warning", "error"]

#: Oldest that every operation was tried with: of the engine, and of Compose.
_ENGINE, _COMPOSE = (20, 10), (2, 17)
#: ms that a host's clock may be off; and where that does harm: to certificates, signatures, what people read.
_SKEW, _FAR = 2_000, 60_000
#: Bytes that have to be free for receipts and what undo needs.
_LITTLE, _NOTHING = 2 * 1024**3, 200 * 1024**2
#: Live runs that are looked at.
_LIVE = 500
#: Seconds for which a jump of Redis's clock is shown.
_JUMPED_LATELY = 86_400.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do where it is not ok."""

    what: str
    grade: Grade
    remedy: str = ""


def examine(store: Store) -> Iterator[Finding]:
    """Raises StoreUnavailable."""
    hosts = [host for host in Hosts(store).all().values() if host.alive]
    nodes = [(host, node) for host in hosts for node in host.alive]
    plans, wrong = _plans()
    for why in wrong:
        yield Finding(f"a stored plan cannot be read: {why}", "error", "longshore plan validate shows all of it")
    yield from _queues(store, [node for _, node in nodes], plans)
    yield from _operations(hosts, plans)
    yield from _times(store, plans)
    yield from _hosts(hosts)
    yield from _versions(nodes)
    yield from _keys(store, nodes)
    yield from _beats(store)
    yield from _clock(store)
    yield from _runs(store)


def _plans() -> tuple[list[Plan], list[str]]:
    """Those that are stored where doctor is asked."""
    found, wrong = [], []
    for name in stored():
        try:
            found.append(load(name, check=False))
        except (LongshoreError, OSError) as error:
            wrong.append(str(error))
    return found, wrong


def _used(plans: Iterable[Plan]) -> dict[str, str]:
    """The operations that stored plans name, each with one that does."""
    return {step.op: plan.name for plan in plans for step in plan.steps.values()}


def _queues(store: Store, nodes: list[Node], plans: list[Plan]) -> Iterator[Finding]:
    served = {queue for node in nodes for queue in node.queues}
    waiting = {backlog.queue: backlog for backlog in queue_lengths(store)}
    known = all_operations()
    needed = {known[op].queue: plan for op, plan in _used(plans).items() if op in known}
    missing = sorted(name for name in {CONTROL, *needed} if name not in served) if nodes else []
    for name in missing:
        who = f"; plan {needed[name]} needs it" if name in needed else "; no run goes on"
        yield Finding(f"no worker takes from queue {name}{who}", "error", f"start one: longshore worker -Q {name}")
    undo = sorted(
        name
        for name in served
        if name != CONTROL and "." not in name and "@" not in name and f"{name}.undo" not in served
    )
    for name in undo:
        yield Finding(
            f"workers take from {name} and nobody from {name}.undo: nothing of it can be taken back", "error",
            f"longshore worker -Q {name} has both; celery -Q has to name both",
        )  # fmt: skip
    for backlog in waiting.values():
        if backlog.length and not backlog.workers and backlog.queue not in missing:
            yield Finding(
                f"{backlog.length} messages wait in queue {backlog.queue}, and no worker takes from it", "error",
                f"start one: longshore worker -Q {backlog.queue.partition('@')[0]}",
            )  # fmt: skip
    if served and not missing and not undo:
        yield Finding(f"each queue that is needed has a worker ({len(served)} queues)", "ok")


def _operations(hosts: list[Host], plans: list[Plan]) -> Iterator[Finding]:
    own = {name for host in hosts for node in host.alive for name in node.own}
    here = {name for name, operation in all_operations().items() if operation.function is None}
    for op, plan in sorted(_used(plans).items()):
        if hosts and op not in own | here:
            yield Finding(
                f"no worker knows operation {op}, which plan {plan} needs", "error",
                "start workers with LONGSHORE_IMPORTS, or install the package that has it",
            )  # fmt: skip


def _times(store: Store, plans: list[Plan]) -> Iterator[Finding]:
    settings = store.settings
    longest = max([settings.step_timeout, *(s.timeout or 0.0 for plan in plans for s in plan.steps.values())])
    if settings.visibility_timeout <= longest:
        yield Finding(
            f"the visibility timeout of {format_duration(settings.visibility_timeout)} is not longer than the longest "
            f"step ({format_duration(longest)}): its message comes again while it is at work",
            "warning", f"LONGSHORE_VISIBILITY_TIMEOUT={format_duration(round(2 * longest))}",
        )  # fmt: skip
    if settings.claim_timeout < settings.lease:
        yield Finding(
            f"the claim timeout of {format_duration(settings.claim_timeout)} is shorter than a lease: steps fail "
            "before a lost message is sent again", "error", "LONGSHORE_CLAIM_TIMEOUT=10m",
        )  # fmt: skip


def _hosts(hosts: list[Host]) -> Iterator[Finding]:
    for host in hosts:
        health = _together(host.alive)
        skew = int(health.get("skew", 0))
        if abs(skew) > _SKEW:
            way = "ahead of" if skew > 0 else "behind"
            yield Finding(
                f"the clock of host {host.name} is {abs(skew) / 1000:.1f} s {way} that of "
                "Redis", "error" if abs(skew) > _FAR else "warning", f"on {host.name}: timedatectl set-ntp true",
            )  # fmt: skip
        free = int(health.get("free", _LITTLE))
        if free < _LITTLE:
            yield Finding(
                f"host {host.name} has {free / 1024**2:.0f} MiB free for what undo needs ({_size(health)} are kept)",
                "error" if free < _NOTHING else "warning", "longshore gc, and make room there",
            )  # fmt: skip
        if health.get("missing"):
            yield Finding(
                f"host {host.name}: folders of stacks are not mounted: {listed(health['missing'][:5])}", "warning",
                "mount them into the worker at the same path",
            )  # fmt: skip
        if _with_engine(host):
            yield from _engine(host)
        yield Finding(f"host {host.name}: {_size(health)} kept for undo, {free / 1024**3:.1f} GiB free", "ok")


def _together(nodes: Iterable[Node]) -> dict[str, Any]:
    """Of all workers of a host, the worst: each sees what is mounted in it."""
    told = [node.health for node in nodes if node.health]
    return {
        "skew": max((int(one.get("skew", 0)) for one in told), key=abs, default=0),
        "free": min((int(one.get("free", _LITTLE)) for one in told), default=_LITTLE),
        "kept": max((int(one.get("kept", 0)) for one in told), default=0),
        "missing": sorted({folder for one in told for folder in one.get("missing", ())}),
    }


def _size(health: Mapping[str, Any]) -> str:
    return f"{int(health.get('kept', 0)) / 1024**2:.1f} MiB"


def _with_engine(host: Host) -> bool:
    return any(map(_takes_docker, host.alive))


def _takes_docker(node: Node) -> bool:
    return any(queue.partition("@")[0] in {"docker", "compose"} for queue in node.queues)


def _engine(host: Host) -> Iterator[Finding]:
    here = [node for node in host.alive if _takes_docker(node)]
    engine = next((found for node in here if (found := node.facts.get("docker"))), here[0].facts.get("docker"))
    compose = next((found for node in here if (found := node.facts.get("compose"))), None)
    takes = {queue for node in here for queue in node.queues}
    if not engine:
        yield Finding(
            f"host {host.name} takes docker work, and its engine does not answer" if engine == ""
            else f"host {host.name} takes docker work, and no Docker engine is there for its workers",
            "error", f"docker info on {host.name}; or start its worker without -Q docker,compose",
        )  # fmt: skip
        return
    if _older(engine, _ENGINE):
        yield Finding(f"host {host.name}: Docker {engine} is older than 20.10", "error", "upgrade the engine")
    if "compose" in takes and not compose:
        yield Finding(
            f"host {host.name} takes compose work, and has no Docker Compose", "error",
            "install the compose plugin beside its worker",
        )  # fmt: skip
    elif "compose" in takes and _older(str(compose), _COMPOSE):
        yield Finding(f"host {host.name}: Docker Compose {compose} is older than 2.17", "error", "upgrade the plugin")
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
            f"not all have one version of Longshore: here it is {mine}, {listed(others[:5])}", "warning",
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
            f"some workers sign their messages and {listed(sorted(bare)[:5])} not: the others refuse what these send",
            "error", "give each LONGSHORE_KEYS, and start it again",
        )  # fmt: skip
    if ring is not None and bare and not signs:
        yield Finding("this client signs and no worker checks it", "warning", "give the workers LONGSHORE_KEYS, too")
    if ring is None and signs:
        yield Finding(
            "workers take signed requests only, and this client has no key",
            "error",
            "LONGSHORE_KEYS=…/client/keys.json",
        )
    for _, node in nodes:
        if "unreadable" in node.health.get("keys", ()):
            yield Finding(f"worker {node.name} cannot read its keys", "error", "see its log; chmod 600, and its owner")
        elif ring is not None and node.name in signs:
            unknown = sorted({key.id for key in ring.keys} - set(node.health["keys"]))
            if unknown:
                yield Finding(
                    f"worker {node.name} does not know key {unknown[0]}: it refuses what that signed", "error",
                    "bring it the new keys.json: longshore init --rotate",
                )  # fmt: skip


def _beats(store: Store) -> Iterator[Finding]:
    known, wrong = schedules.declared(store.settings)
    for why in wrong:
        yield Finding(why, "error", "nothing is started by it until that is mended")
    for each in known:
        if why := schedules.problem(each):
            yield Finding(
                f"schedule {each.name} cannot be started: {why}", "error", "longshore schedules trigger tries it"
            )
    if not known:
        return
    last = store.call(store.client.get, store.keys.last_tick)
    late = store.now() - int(last or 0) > 1000 * (3 * store.settings.tick + 10)
    if late:
        yield Finding(
            f"{len(known)} schedules, and no beat has ticked " + ("lately" if last else "ever"), "error",
            "start one: longshore beat",
        )  # fmt: skip
    else:
        yield Finding(f"{len(known)} schedules, and a beat ticks", "ok")


def _clock(store: Store) -> Iterator[Finding]:
    """Whether Redis's clock was set lately, while runs waited by it."""
    by, at = store.call(store.client.hmget, store.keys.clock, ("by", "at"))
    if by is None or not 0 <= store.now() - int(at) < 1000 * _JUMPED_LATELY:
        return
    where = "forward" if int(by) > 0 else "back"
    yield Finding(
        f"Redis's clock has jumped {where} by {format_duration(round(abs(int(by)) / 1000))}", "warning",
        "have its host's clock kept by a time service that slews it; runs that waited have gone on",
    )  # fmt: skip


def _runs(store: Store) -> Iterator[Finding]:
    """Live runs of which nobody is at anything, although nothing is waited for."""
    settings, now = store.settings, store.now()
    served = [one for one in queue_lengths(store) if one.workers and one.queue != CONTROL]
    waits = any(backlog.length for backlog in served)
    patience = 1000 * (3 * settings.lease + settings.sweep_interval + 30)
    stuck = []
    for run_id in store.call(store.client.zrange, store.keys.live, 0, _LIVE - 1):
        state = store.state(run_id)
        if state in {None, RunState.SUSPENDED, RunState.PENDING}:
            continue
        quiet = now - int(store.newest_event(run_id).partition("-")[0])
        steps = store.call(store.client.hgetall, store.keys.of(run_id).steps)
        # What is ready has its message in a queue, unless nothing is in any.
        busy = {StepState.RUNNING, StepState.RETRYING, StepState.WAITING, *([StepState.READY] if waits else [])}
        active_runs = any(
            value in busy or value == "undoing" for key, value in steps.items() if key[:2] in {"s:", "us"}
        )
        if quiet > patience and not active_runs:
            stuck.append(run_id)
    if stuck:
        yield Finding(
            f"{len(stuck)} runs stand still: {listed(stuck[:5])}", "error",
            f"longshore runs show {stuck[0]} says what it waits for; longshore runs resume {stuck[0]}",
        )  # fmt: skip
