"""What a live installation should be, and is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from longshore.orchestration.errors import Damaged, StoreUnavailable, WrongType
from longshore.orchestration.installation import checks, integrity
from longshore.orchestration.installation.checks import Finding
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.language.targets import listed
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.hosts import Hosts, HostState
from longshore.orchestration.store.run_store import Store

#: Of Redis; scripts need its streams, and `SET … GET NX`.
_OLDEST = (7, 0)


def examine(store: Store) -> list[Finding]:
    """Everything that can be seen from here. StoreUnavailable where Redis does not answer."""
    found = [*_redis(store), *_keys(store)]
    for part in (_work, checks.examine):
        try:
            found += part(store)
        except (WrongType, Damaged) as error:  # the key is named above
            found.append(Finding(f"a part of the examination was left out: {error.message}", "error", error.remedy))
    return found


def _keys(store: Store) -> Iterator[Finding]:
    for wrong in integrity.wrong_keys(store):
        yield Finding(
            str(wrong), "error",
            f"find out who wrote it, then RENAME {wrong.key} {wrong.key}.damaged; a worker does so within a minute, "
            "and rebuilds the index from the runs",
        )  # fmt: skip
    runs = [run_id for run_id in store.runs(200) if RUN_ID.fullmatch(run_id)]
    pipe = store.client.pipeline(transaction=False)
    for run_id in runs:
        pipe.hget(store.keys.of(run_id).run, "state")
    for run_id, state in zip(runs, store.call(pipe.execute, raise_on_error=False), strict=True):
        if state is not None and state not in set(RunState):
            wrong_ones = integrity.wrong_keys_of(store, run_id)
            what = ", ".join(map(str, wrong_ones)) or f"its state is {state!r}"
            yield Finding(
                f"run {run_id} is damaged: {what}", "error",
                "restore Redis from a backup, or delete the keys of this run: its effects on hosts stand",
            )  # fmt: skip


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
            f"{len(aside)} dead letters, the latest of {aside[0]['queue']}: {aside[0]['why']}",
            "warning",
            f"look at the stream {store.keys.dead_letters}: who writes to these queues and keys?",
        )
    states = {run_id: _state(store, run_id) for run_id in store.runs(200)}
    for state in ("suspended", "undo_failed"):
        found = [run_id for run_id, known in states.items() if known == state]
        if found:
            yield Finding(f"{state}: {', '.join(found[:5])}", "warning", f"see longshore runs show {found[0]}")


def _state(store: Store, run_id: str) -> str | None:
    try:
        return store.state(run_id)
    except WrongType:
        return None
