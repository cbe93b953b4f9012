"""Diagnoses of a live installation, with a remedy for each problem."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from longshore.orchestration.errors import Damaged, StoreUnavailable, WrongType
from longshore.orchestration.installation import checks, integrity
from longshore.orchestration.installation.checks import Finding
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.language.targets import listed
from longshore.orchestration.settings import misspelt_variables
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.hosts import Hosts, HostState
from longshore.orchestration.store.run_store import Store

#: Oldest supported version of Redis: scripts need streams and `SET … GET NX`.
_OLDEST = (7, 0)


def examine(store: Store) -> list[Finding]:
    """All findings about an installation. Raises StoreUnavailable where Redis does not answer."""
    found = [*_redis(store), *_settings(), *_keys(store)]
    for part in (_work, checks.examine):
        try:
            found += part(store)
        except (WrongType, Damaged) as error:  # _keys names the key
            found.append(Finding(f"some checks were skipped: {error.message}", "error", error.remedy))
    return found


def _settings() -> Iterator[Finding]:
    for name, near in misspelt_variables(os.environ).items():
        yield Finding(f"{name} is no setting and has no effect", "warning", f"rename it to {near}")


def _keys(store: Store) -> Iterator[Finding]:
    for damaged in integrity.wrong_keys(store):
        yield Finding(
            str(damaged), "error",
            f"find the program that wrote it; a worker renames the key within a minute and rebuilds the index from the "
            f"runs (by hand: RENAME {damaged.key} {damaged.key}.damaged)",
        )  # fmt: skip
    runs = [run_id for run_id in store.runs(200) if RUN_ID.fullmatch(run_id)]
    pipe = store.client.pipeline(transaction=False)
    for run_id in runs:
        pipe.hget(store.keys.of(run_id).run, "state")
    for run_id, state in zip(runs, store.call(pipe.execute, raise_on_error=False), strict=True):
        if state is not None and state not in set(RunState):
            wrong_keys = integrity.wrong_keys_of(store, run_id)
            why = ", ".join(map(str, wrong_keys)) or f"{state!r} is not a state of a run"
            yield Finding(
                f"run {run_id} is damaged: {why}", "error",
                "restore Redis from a backup, or delete the keys of this run; its effects on hosts remain",
            )  # fmt: skip


def _redis(store: Store) -> Iterator[Finding]:
    info: dict[str, Any] = store.call(store.client.info)
    version = str(info.get("redis_version", "0"))
    old = tuple(int(part) for part in version.split(".")[:2]) < _OLDEST
    yield Finding(
        f"Redis {version} at {store.shown_url()}",
        "error" if old else "ok",
        f"upgrade it to {_OLDEST[0]}.{_OLDEST[1]} or newer" if old else "",
    )
    yield from eviction(store, info)
    if not int(info.get("aof_enabled", 0)):
        yield Finding(
            "Redis does not persist its data: appendonly is off, and a restart of Redis loses every run",
            "warning",
            "set appendonly yes and appendfsync always",
        )
    elif (sync := _setting(store, "appendfsync")) not in {None, "always"}:
        yield Finding(
            f"Redis uses appendfsync {sync}: a power failure can lose acknowledged writes",
            "warning",
            "set appendfsync always; until then a lost write suspends the run",
        )
    else:
        yield Finding("Redis persists its data to disk", "ok")
    yield from _users(store)
    yield from _scripts(store)
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most and used > 0.9 * most:
        yield Finding(
            f"Redis uses {used * 100 // most} % of its memory",
            "warning",
            "raise maxmemory, or run longshore runs prune",
        )


def _users(store: Store) -> Iterator[Finding]:
    """A finding where a Redis on the network requires no password: any client could do all that workers do."""
    url = urlsplit(store.settings.url())
    if (
        url.scheme.startswith("redis")
        and url.hostname not in {"127.0.0.1", "localhost", "::1", None}
        and not url.password
    ):
        yield Finding(
            "Redis requires no password, and other machines may reach it", "warning",
            "create its users with longshore init; see docs/concepts/security.md",
        )  # fmt: skip


def _scripts(store: Store) -> Iterator[Finding]:
    """Load the Lua scripts; no client can start a run without them, and workers load them at each sweep."""
    try:
        if store.load_scripts():
            yield Finding("the scripts that clients call were missing in Redis, and have been loaded", "ok")
    except StoreUnavailable as error:
        yield Finding(f"the scripts that clients call are missing in Redis: {error.message}", "error",
                      "start a worker of this version, which loads them")  # fmt: skip


def eviction(store: Store, info: dict[str, Any]) -> Iterator[Finding]:
    """A finding where Redis may evict keys, and so lose runs silently."""
    policy = str(info.get("maxmemory_policy") or _setting(store, "maxmemory-policy") or "noeviction")
    if policy != "noeviction":
        yield Finding(
            f"Redis may evict acknowledged writes: maxmemory-policy is {policy}",
            "error",
            "set maxmemory-policy noeviction",
        )


def _setting(store: Store, name: str) -> str | None:
    """A setting of the server; None where this user may not read it."""
    try:
        found: dict[str, str] = store.call(store.client.config_get, name)
    except StoreUnavailable:
        return None
    return found.get(name)


def _work(store: Store) -> Iterator[Finding]:
    hosts = Hosts(store).all().values()
    alive = [host.name for host in hosts if host.alive]
    if alive:
        yield Finding(f"workers are alive on {listed(alive)}", "ok")
    else:
        yield Finding("no worker is alive", "error", "start one: longshore worker")
    for host in hosts:
        if host.state is HostState.LOST:
            yield Finding(
                host.why_not(), "warning", f"start its worker, or remove it: longshore hosts forget {host.name}"
            )
        elif len({json.dumps(node.labels, sort_keys=True) for node in host.alive}) > 1:
            yield Finding(
                f"the workers of host {host.name} have different labels: those of the latest started worker apply",
                "warning",
                "set the same LONGSHORE_LABELS for each of them",
            )
        elif host.drained is not None:
            gone = "" if host.alive else f"; if the host is gone for good: longshore hosts forget {host.name}"
            remedy = f"run longshore hosts undrain {host.name} once it may take new steps{gone}"
            yield Finding(host.why_not(), "warning", remedy)
    for breaker in Breakers(store).open():
        yield Finding(
            f"service {breaker.service} is down: {breaker.why}; {breaker.waiting} runs wait", "warning",
            f"once it is up, run: longshore breaker reset {shlex.quote(breaker.service)}",
        )  # fmt: skip
    dead_letters = store.dead_letters()
    if dead_letters:
        yield Finding(
            f"{len(dead_letters)} dead letters, the latest from {dead_letters[0]['queue']}: {dead_letters[0]['why']}",
            "warning",
            f"read the stream {store.keys.dead_letters}, and find the program that writes to these queues and keys",
        )
    states = {run_id: _state(store, run_id) for run_id in store.runs(200)}
    for state in ("suspended", "undo_failed"):
        found = [run_id for run_id, current in states.items() if current == state]
        if found:
            yield Finding(f"runs {state}: {', '.join(found[:5])}", "warning", f"see longshore runs show {found[0]}")


def _state(store: Store, run_id: str) -> str | None:
    try:
        return store.state(run_id)
    except WrongType:
        return None
