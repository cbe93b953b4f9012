"""What a live installation should be, and is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from longshore.orchestration import installation
from longshore.orchestration.breakers import Breakers
from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.hosts import Hosts, HostState
from longshore.orchestration.installation import Finding
from longshore.orchestration.selection import listed
from longshore.orchestration.store import Store

#: Of Redis; scripts need its streams, and `SET … GET NX`.
_OLDEST = (7, 0)


def examine(store: Store) -> list[Finding]:
    """Everything that can be seen from here. StoreUnavailable where Redis does not answer."""
    return [*_redis(store), *_work(store), *installation.examine(store)]


def _redis(store: Store) -> Iterator[Finding]:
    info: dict[str, Any] = store.call(store.client.info)
    version = str(info.get("redis_version", "0"))
    old = tuple(int(part) for part in version.split(".")[:2]) < _OLDEST
    yield Finding(
        f"Redis {version} at {store.shown_url()}",
        "error" if old else "ok",
        f"it must be {_OLDEST[0]}.{_OLDEST[1]} or newer" if old else "",
    )
    yield from eviction(store, info)
    if not int(info.get("aof_enabled", 0)):
        yield Finding(
            "Redis does not keep its data: appendonly is off, and a restart loses every run",
            "warning",
            "set appendonly yes and appendfsync always",
        )
    elif (sync := _setting(store, "appendfsync")) not in {None, "always"}:
        yield Finding(
            f"Redis writes to its disk with appendfsync {sync}: a power failure can lose what was acknowledged",
            "warning",
            "set appendfsync always; such a loss is noticed, and suspends the run",
        )
    else:
        yield Finding("Redis keeps its data on disk", "ok")
    yield from _users(store)
    yield from _scripts(store)
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most and used > 0.9 * most:
        yield Finding(
            f"Redis uses {used * 100 // most} % of its memory", "warning", "raise maxmemory, or longshore runs prune"
        )


def _users(store: Store) -> Iterator[Finding]:
    """Whoever reaches a Redis without users can do all that workers do."""
    url = urlsplit(store.settings.url())
    if (
        url.scheme.startswith("redis")
        and url.hostname not in {"127.0.0.1", "localhost", "::1", None}
        and not url.password
    ):
        yield Finding(
            "Redis asks nobody for a password, and others may reach it", "warning",
            "longshore init makes users for it; docs/security.md",
        )  # fmt: skip


def _scripts(store: Store) -> Iterator[Finding]:
    """Without them no client can start a run; workers load them at each sweep."""
    try:
        if store.load_scripts():
            yield Finding("Redis knew no script that clients call; it does now", "ok")
    except StoreUnavailable as error:
        yield Finding(f"Redis does not know the scripts that clients call: {error.message}", "error",
                      "start a worker of this version")  # fmt: skip


def eviction(store: Store, info: dict[str, Any]) -> Iterator[Finding]:
    """A Redis that may throw keys away loses runs without a word."""
    policy = str(info.get("maxmemory_policy") or _setting(store, "maxmemory-policy") or "noeviction")
    if policy != "noeviction":
        yield Finding(
            f"Redis may evict what it has acknowledged: maxmemory-policy is {policy}",
            "error",
            "set maxmemory-policy noeviction",
        )


def _setting(store: Store, name: str) -> str | None:
    """A setting of the server, where its user may ask for it."""
    try:
        found: dict[str, str] = store.call(store.client.config_get, name)
    except StoreUnavailable:
        return None
    return found.get(name)


def _work(store: Store) -> Iterator[Finding]:
    hosts = Hosts(store).all().values()
    alive = [host.name for host in hosts if host.alive]
    if alive:
        yield Finding(f"workers on {listed(alive)}", "ok")
    else:
        yield Finding("no worker has been seen lately", "error", "start one: longshore worker")
    for host in hosts:
        if host.state is HostState.LOST:
            yield Finding(
                host.why_not(), "warning", f"start its worker, or forget it: longshore hosts forget {host.name}"
            )
        elif len({json.dumps(node.labels, sort_keys=True) for node in host.alive}) > 1:
            yield Finding(
                f"the workers of host {host.name} say different labels: those of the one that was started last count",
                "warning",
                "give them the same LONGSHORE_LABELS",
            )
        elif host.drained is not None:
            yield Finding(host.why_not(), "warning", f"longshore hosts undrain {host.name}, once it may work again")
    for breaker in Breakers(store).open():
        yield Finding(
            f"service {breaker.service} is down: {breaker.why}; {breaker.waiting} runs wait", "warning",
            f"longshore breaker reset {breaker.service}, if it is up again",
        )  # fmt: skip
    aside = store.aside()
    if aside:
        yield Finding(
            f"{len(aside)} messages were put aside, the latest in queue {aside[0]['queue']}: {aside[0]['why']}",
            "warning",
            f"look at the stream {store.keys.aside}: who writes to these queues?",
        )
    states = {run_id: store.state(run_id) for run_id in store.runs(200)}
    for state in ("suspended", "undo_failed"):
        found = [run_id for run_id, known in states.items() if known == state]
        if found:
            yield Finding(f"{state}: {', '.join(found[:5])}", "warning", f"see longshore runs show {found[0]}")
