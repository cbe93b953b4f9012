"""The registry of hosts: labels, facts, workers and their activity. Plain commands, no scripts.

Each worker is a node of its host. A worker registers, sends a heartbeat every few seconds, and deregisters at an
orderly exit. A host's state follows from its nodes and from a drain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from redis import WatchError

from longshore.orchestration.errors import UNREADABLE, UnknownName
from longshore.orchestration.language.targets import listed
from longshore.orchestration.store.caches import STACK_CACHE
from longshore.orchestration.store.connection import Connection

#: The queue of workers with a Docker engine.
QUEUE = "docker"


def with_engine(store: Connection) -> set[str]:
    """The names of the hosts with an engine and a live worker for it."""
    return {
        name
        for name, host in Hosts(store).all().items()
        if any(QUEUE in node.queues for node in host.alive) and host.facts.get("docker", "") is not None
    }


#: A node is lost when its last heartbeat is older than this number of leases. Two heartbeats may be late.
SILENT_LEASES = 3
#: Seconds after which a lost worker is removed from a host with live ones.
_NODE_KEPT = 3600.0


class HostState(StrEnum):
    """The state of a host."""

    #: Accepts work.
    READY = "ready"
    #: Drained by a command; its running steps are not finished yet.
    DRAINING = "draining"
    #: Drained by a command, and idle.
    DRAINED = "drained"
    #: All live workers are shutting down.
    STOPPING = "stopping"
    #: No worker sends heartbeats, and the last one did not deregister.
    LOST = "lost"
    #: The last worker has deregistered.
    STOPPED = "stopped"


class NodeState(StrEnum):
    """The state that a worker reports in its heartbeat."""

    READY = "ready"
    DRAINED = "drained"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Node:
    """One worker of a host. Times are ms of Redis's clock."""

    name: str
    queues: tuple[str, ...] = ()
    #: Registered function operations; a worker also knows the built-in operations of its version.
    own: tuple[str, ...] = ()
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    since: int = 0
    seen: int = 0
    state: NodeState = NodeState.READY
    #: Number of running steps.
    active: int = 0
    #: Health of the host, as reported by the worker (`longshore.tasks.host.health`).
    health: Mapping[str, Any] = field(default_factory=dict)
    #: The parameters that each of its function operations accepts (`Operation.accepts`).
    accepts: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Drained:
    """A drain of a host: actor, time in ms, and whether its workers stop once idle."""

    by: str
    since: int
    stop: bool = False


@dataclass(frozen=True)
class Host:
    """A machine with workers. `nodes` have not deregistered; a node is lost after `silent` ms without a heartbeat."""

    name: str
    nodes: tuple[Node, ...] = ()
    drained: Drained | None = None
    #: The node that deregistered last.
    last: Node | None = None
    #: All queues that its workers ever consumed, and all function operations that they ever registered.
    had: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    now: int = 0
    silent: int = 0

    @cached_property
    def alive(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if abs(self.now - node.seen) < self.silent)

    @cached_property
    def state(self) -> HostState:
        if not self.nodes:
            return HostState.STOPPED
        if not self.alive:
            # A deregistration after the last heartbeat means stopped, even if other workers were killed before.
            bye = self.last.seen if self.last is not None else 0
            return HostState.STOPPED if bye > max(node.seen for node in self.nodes) else HostState.LOST
        if self.drained is not None:
            ended = all(node.state is not NodeState.READY and not node.active for node in self.alive)
            return HostState.DRAINED if ended else HostState.DRAINING
        if all(node.state is NodeState.STOPPING for node in self.alive):
            return HostState.STOPPING
        return HostState.READY

    @property
    def _known(self) -> tuple[Node, ...]:
        """The nodes that describe the host, newest start first. Where nodes differ, the newest counts."""
        nodes = self.alive or self.nodes or ((self.last,) if self.last else ())
        return tuple(sorted(nodes, key=lambda node: node.since, reverse=True))

    @cached_property
    def labels(self) -> dict[str, str]:
        return {key: value for node in reversed(self._known) for key, value in node.labels.items()}

    @cached_property
    def facts(self) -> dict[str, Any]:
        return {key: value for node in reversed(self._known) for key, value in node.facts.items()}

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """The queues of the workers that have not deregistered."""
        return tuple(sorted({queue for node in self.nodes for queue in node.queues}))

    @property
    def healthy(self) -> bool:
        """Whether the host accepts work, and its engine, if any, answers."""
        return self.state is HostState.READY and self.facts.get("docker") != ""

    @property
    def seen(self) -> int:
        return max((node.seen for node in self._known), default=0)

    def why_not(self) -> str:
        """Why the host accepts no new work now; '' where it does."""
        if self.drained is not None:
            return f"host {self.name} is drained by {self.drained.by}"
        ago = f"{max(0, self.now - self.seen) / 1000:.0f} s"
        match self.state:
            case HostState.STOPPING:
                return f"host {self.name} is stopping"
            case HostState.LOST:
                return f"host {self.name} is lost: none of its workers has sent a heartbeat for {ago}"
            case HostState.STOPPED:
                return f"host {self.name} has no worker: the last one ended {ago} ago"
            case _:
                return ""

    def as_data(self) -> dict[str, Any]:
        """The host as JSON types."""
        return {
            "name": self.name,
            "state": str(self.state),
            "labels": self.labels,
            "facts": self.facts,
            "queues": list(self.queues),
            "seen": self.seen,
            "drained": asdict(self.drained) if self.drained else None,
            "nodes": [asdict(node) | {"alive": node in self.alive} for node in self.nodes],
        }


class Hosts:
    """The registry, over a connection. Raises StoreUnavailable."""

    def __init__(self, store: Connection) -> None:
        self._store = store
        self._keys = store.keys
        self._client = store.client

    # --- registration by workers ------------------------------------------------------------------

    def register(self, host: str, node: Node) -> None:
        """Register a worker; a registration counts as a heartbeat. Atomic."""
        now = self._store.now()
        told = {key: value for key, value in asdict(node).items() if key not in {"name", "seen", "state", "active"}}
        told["since"] = node.since or now
        fields: dict[Any, Any] = {f"node:{node.name}": json.dumps(told, ensure_ascii=False)}
        fields[f"beat:{node.name}"] = _beat(now, node.state, node.active)
        fields |= {f"had:{queue}": "" for queue in node.queues} | {f"own:{name}": "" for name in node.own}
        pipe = self._client.pipeline()
        pipe.hset(self._keys.host(host), mapping=fields)
        pipe.zadd(self._keys.hosts, {host: now})
        self._store.call(pipe.execute)

    def beat(self, host: str, node: str, state: NodeState, active: int) -> Drained | None:
        """Record a worker's heartbeat; return the drain of its host, if any."""
        now = self._store.now()
        pipe = self._client.pipeline(transaction=False)
        pipe.hset(self._keys.host(host), f"beat:{node}", _beat(now, state, active))
        pipe.zadd(self._keys.hosts, {host: now})
        pipe.hget(self._keys.host(host), "drained")
        return _drained(self._store.call(pipe.execute)[2])

    def request_drain(self, host: str) -> Drained | None:
        """The drain of a host, if any."""
        return _drained(self._store.call(self._client.hget, self._keys.host(host), "drained"))

    def knows(self, host: str, node: str) -> bool:
        """Whether a worker is registered. `forget`, or a loss of data in Redis, removes registrations."""
        return bool(self._store.call(self._client.hexists, self._keys.host(host), f"node:{node}"))

    def leave(self, host: str, node: str) -> None:
        """Deregister a worker, which then does not count as lost. Its registration stays as the host's `last` node."""
        key = self._keys.host(host)
        told = self._store.call(self._client.hget, key, f"node:{node}")
        pipe = self._client.pipeline()
        if told:
            pipe.hset(key, "last", json.dumps({"name": node, "seen": self._store.now()} | json.loads(told)))
        pipe.hdel(key, f"node:{node}", f"beat:{node}")
        self._store.call(pipe.execute)

    # --- reading ----------------------------------------------------------------------------------

    def all(self) -> dict[str, Host]:
        """Every known host by name."""
        names = sorted(self._store.call(self._client.zrange, self._keys.hosts, 0, -1))
        return self._read(names)

    def find(self, name: str) -> Host | None:
        found = self._read([name])
        return found.get(name)

    def get(self, name: str) -> Host:
        """The host of this name. Raises UnknownName where no worker ever registered for it."""
        host = self.find(name)
        if host is None:
            raise UnknownName(
                f"no host {name!r} is known (there are: {listed(self.all())})",
                remedy="a host is known once a worker of it has started: longshore hosts ls",
            )
        return host

    def _read(self, names: Sequence[str]) -> dict[str, Host]:
        if not names:
            return {}
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(self._keys.host(name))
        rows, now = self._store.call(pipe.execute, raise_on_error=False), self._store.now()
        silent = round(SILENT_LEASES * self._store.settings.lease * 1000)
        # A key of the wrong type is skipped, so that the other hosts are still listed.
        found = zip(names, rows, strict=True)
        return {name: _host(name, row, now, silent) for name, row in found if row and isinstance(row, dict)}

    # --- commands of people -----------------------------------------------------------------------

    def drain(self, name: str, by: str, *, stop: bool = False) -> Host:
        """Stop a host from claiming new work; with `stop`, its workers exit once idle. Atomic, and safe to repeat.

        Raises UnknownName for an unknown host.
        """
        self.get(name)
        request_drain = Drained(by, self._store.now(), stop)
        self._store.call(self._client.hset, self._keys.host(name), "drained", json.dumps(asdict(request_drain)))
        return self.get(name)

    def undrain(self, name: str) -> Host:
        """End the drain of a host. Raises UnknownName for an unknown host."""
        self.get(name)
        self._store.call(self._client.hdel, self._keys.host(name), "drained")
        return self.get(name)

    def forget(self, name: str) -> None:
        """Remove a host from the registry, with its drain. Atomic. A live worker registers again."""
        pipe = self._client.pipeline()
        self._remove(pipe, name)
        self._store.call(pipe.execute)

    def forget_old(self, seconds: float) -> list[str]:
        """Remove the hosts without a heartbeat for so many seconds; return their names.

        A drained host stays, so that its drain lasts until a person ends it. On the other hosts, workers that have been
        lost for more than an hour are removed.
        """
        until = self._store.now() - round(seconds * 1000)
        silent = self._store.call(self._client.zrangebyscore, self._keys.hosts, 0, until)
        names = [name for name in silent if self._store.call(self._forget_undrained, name)]
        for host in self.all().values():
            # Each container has a worker name of its own: killed workers would stay registered for ever.
            gone = [node.name for node in host.nodes if host.alive and host.now - node.seen > _NODE_KEPT * 1000]
            if gone:
                fields = [f"{kind}:{node}" for node in gone for kind in ("node", "beat")]
                self._store.call(self._client.hdel, self._keys.host(host.name), *fields)
        return names

    def _forget_undrained(self, name: str) -> bool:
        """Remove a host, unless it is drained or changes meanwhile; report whether it was removed."""
        with self._client.pipeline() as pipe:
            pipe.watch(self._keys.host(name))  # type: ignore[no-untyped-call]
            if pipe.hexists(self._keys.host(name), "drained"):
                return False
            pipe.multi()
            self._remove(pipe, name)
            try:
                pipe.execute()
            except WatchError:
                return False
        return True

    def _remove(self, pipe: Any, name: str) -> None:
        pipe.zrem(self._keys.hosts, name)
        pipe.delete(self._keys.host(name))
        pipe.hdel(self._keys.job_snapshots, name)
        pipe.delete(self._keys.cache(f"{STACK_CACHE}{name}"))
        pipe.hdel(self._keys.active_rollouts, name)


def _beat(now: int, state: NodeState, active: int) -> str:
    return f"{now} {state} {active}"


def _drained(text: str | None) -> Drained | None:
    try:
        return Drained(**json.loads(text)) if text else None
    except UNREADABLE:
        return None


def unreadable(row: Mapping[str, str]) -> dict[str, str]:
    """The fields of a host's hash that cannot be read, each with the error."""
    wrong: dict[str, str] = {}
    for key, value in row.items():
        kind, _, node = key.partition(":")
        try:
            if kind == "node":
                _node(node, json.loads(value), 0)
            elif kind == "beat":
                _read_beat(value)
            elif kind == "drained":
                Drained(**json.loads(value))
            elif kind == "last":
                last = json.loads(value)
                _node(last.pop("name"), last, last.pop("seen"))
        except UNREADABLE as error:
            wrong[key] = f"{type(error).__name__}: {error}"
    return wrong


def _read_beat(text: str) -> tuple[int, NodeState, int]:
    seen, state, active = text.split()
    return int(seen), NodeState(state), int(active)


def _host(name: str, row: Mapping[str, str], now: int, silent: int) -> Host:
    """Parse a host's hash; fields that cannot be read are left out."""
    try:
        return _described(name, row, now, silent)
    except UNREADABLE:
        wrong = unreadable(row)
        return _described(name, {key: value for key, value in row.items() if key not in wrong}, now, silent)


def _described(name: str, row: Mapping[str, str], now: int, silent: int) -> Host:
    nodes = []
    for key, value in sorted(row.items()):
        kind, _, node = key.partition(":")
        if kind == "node":
            nodes.append(_node(node, json.loads(value), *_read_beat(row.get(f"beat:{node}") or "0 ready 0")))
    last = json.loads(row["last"]) if "last" in row else None
    known = _node(last.pop("name"), last, last.pop("seen")) if last else None
    had = frozenset(key.removeprefix("had:") for key in row if key.startswith("had:"))
    own = frozenset(key.removeprefix("own:") for key in row if key.startswith("own:"))
    return Host(name, tuple(nodes), _drained(row.get("drained")), known, had, own, now, silent)


def _node(
    name: str, told: Mapping[str, Any], seen: int, state: NodeState = NodeState.STOPPING, active: int = 0
) -> Node:
    if not isinstance(told["labels"], dict) or not isinstance(told["facts"], dict):
        raise TypeError("labels and facts must be objects")
    return Node(
        name,
        tuple(told["queues"]),
        tuple(told["own"]),
        str(told["version"]),
        told["labels"],
        told["facts"],
        int(told["since"]),
        seen,
        state,
        active,
        told.get("health", {}),
        told.get("accepts", {}),
    )
