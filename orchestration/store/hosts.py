"""The registry of hosts: which there are, what they are like, and what their workers do. Plain commands, no scripts.

Each worker is a node of its host. It registers what it is, and says every few seconds that it lives; one that ends
in order says so, too. What a host is taken for follows from its nodes and from whether somebody drained it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from longshore.orchestration.errors import UNREADABLE, UnknownName
from longshore.orchestration.language.targets import listed
from longshore.orchestration.store.caches import CACHE as DEPLOYED
from longshore.orchestration.store.connection import Connection

#: The queue whose workers have an engine.
QUEUE = "docker"


def with_engine(store: Connection) -> set[str]:
    """The hosts a worker of which is alive and has an engine."""
    return {
        name
        for name, host in Hosts(store).all().items()
        if any(QUEUE in node.queues for node in host.alive) and host.facts.get("docker", "") is not None
    }


#: A node whose last word is older than so many leases is lost: two words may come late.
SILENT_LEASES = 3
#: Seconds after which a lost worker of a host that has others will not come back.
_NODE_KEPT = 3600.0


class HostState(StrEnum):
    """What a host is taken for."""

    #: It takes work.
    READY = "ready"
    #: Somebody drained it: it ends what it is at.
    DRAINING = "draining"
    #: The same, and it is at nothing any more.
    DRAINED = "drained"
    #: Each of its workers is ending.
    STOPPING = "stopping"
    #: No worker of it says anything, and none has said good-bye.
    LOST = "lost"
    #: Its workers have ended in order.
    STOPPED = "stopped"


class NodeState(StrEnum):
    """What a worker says of itself."""

    READY = "ready"
    DRAINED = "drained"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Node:
    """One worker. Times are ms of Redis's clock."""

    name: str
    queues: tuple[str, ...] = ()
    #: The operations of applications' own that it knows; it knows all others of its version.
    own: tuple[str, ...] = ()
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    since: int = 0
    seen: int = 0
    state: NodeState = NodeState.READY
    #: Steps that it is at.
    active: int = 0
    #: What it tells of how its host stands (`longshore.tasks.host.health`).
    health: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drained:
    """That nothing new is to be done on a host: by whose word, since when, and whether its workers end then."""

    by: str
    since: int
    stop: bool = False


@dataclass(frozen=True)
class Host:
    """A machine with workers. `nodes` are those that have not said good-bye, `silent` ms is how long one may be."""

    name: str
    nodes: tuple[Node, ...] = ()
    drained: Drained | None = None
    #: What its last node was, where none is left.
    last: Node | None = None
    #: What its workers have ever consumed, and which operations of applications' own they have ever known.
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
            # Where the last word of all was a good-bye, those that were killed before are not waited for.
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
        """The nodes that tell what it is like; where they differ the one that was started last, which comes first."""
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
        """What its workers consume that have not said good-bye."""
        return tuple(sorted({queue for node in self.nodes for queue in node.queues}))

    @property
    def healthy(self) -> bool:
        """Whether it takes work, and its engine, if it has one, answers."""
        return self.state is HostState.READY and self.facts.get("docker") != ""

    @property
    def seen(self) -> int:
        return max((node.seen for node in self._known), default=0)

    def why_not(self) -> str:
        """Why it takes no new work now; '' where it does."""
        if self.drained is not None:
            return f"host {self.name} is drained by {self.drained.by}"
        ago = f"{max(0, self.now - self.seen) / 1000:.0f} s"
        match self.state:
            case HostState.STOPPING:
                return f"host {self.name} is stopping"
            case HostState.LOST:
                return f"host {self.name} is lost: no worker of it has been heard of for {ago}"
            case HostState.STOPPED:
                return f"host {self.name} has no worker: the last one ended {ago} ago"
            case _:
                return ""

    def as_data(self) -> dict[str, Any]:
        """JSON types."""
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

    # --- what workers say -------------------------------------------------------------------------

    def register(self, host: str, node: Node) -> None:
        """Say what a worker is; it counts as heard of."""
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
        """Say that a worker lives; what has been asked of its host."""
        now = self._store.now()
        pipe = self._client.pipeline(transaction=False)
        pipe.hset(self._keys.host(host), f"beat:{node}", _beat(now, state, active))
        pipe.zadd(self._keys.hosts, {host: now})
        pipe.hget(self._keys.host(host), "drained")
        return _drained(self._store.call(pipe.execute)[2])

    def request_drain(self, host: str) -> Drained | None:
        """What has been asked of a host."""
        return _drained(self._store.call(self._client.hget, self._keys.host(host), "drained"))

    def knows(self, host: str, node: str) -> bool:
        """Whether a worker's registration is there: somebody, or a Redis that lost data, may have taken it away."""
        return bool(self._store.call(self._client.hexists, self._keys.host(host), f"node:{node}"))

    def leave(self, host: str, node: str) -> None:
        """Say good-bye: the worker is not lost. What it was is kept, for the host's description."""
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
        """UnknownName where no worker of it was ever seen."""
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
        # A description of the wrong type, or one that cannot be read, is no host: the others are known all the same.
        found = zip(names, rows, strict=True)
        return {name: _host(name, row, now, silent) for name, row in found if row and isinstance(row, dict)}

    # --- what people ask --------------------------------------------------------------------------

    def drain(self, name: str, by: str, *, stop: bool = False) -> Host:
        """Have a host take no new work; `stop`: and have its workers end after it. Atomic; may be repeated.

        UnknownName for a host that is not known.
        """
        self.get(name)
        request_drain = Drained(by, self._store.now(), stop)
        self._store.call(self._client.hset, self._keys.host(name), "drained", json.dumps(asdict(request_drain)))
        return self.get(name)

    def undrain(self, name: str) -> Host:
        """Have it take work again. UnknownName for a host that is not known."""
        self.get(name)
        self._store.call(self._client.hdel, self._keys.host(name), "drained")
        return self.get(name)

    def forget(self, name: str) -> None:
        """Take a host out of the registry; if it has a worker, that registers again."""
        pipe = self._client.pipeline()
        pipe.zrem(self._keys.hosts, name)
        pipe.delete(self._keys.host(name))
        pipe.hdel(self._keys.job_snapshots, name)
        pipe.delete(self._keys.cache(f"{DEPLOYED}{name}"))
        pipe.hdel(self._keys.active_rollouts, name)
        self._store.call(pipe.execute)

    def forget_old(self, seconds: float) -> list[str]:
        """Forget the hosts that have not been heard of for so long; their names. Of the others, the workers that are
        lost for an hour and more.
        """
        until = self._store.now() - round(seconds * 1000)
        names = list(self._store.call(self._client.zrangebyscore, self._keys.hosts, 0, until))
        for name in names:
            self.forget(name)
        for host in self.all().values():
            # Workers in containers get a name with each container: those that were killed would be kept for ever.
            gone = [node.name for node in host.nodes if host.alive and host.now - node.seen > _NODE_KEPT * 1000]
            if gone:
                fields = [f"{kind}:{node}" for node in gone for kind in ("node", "beat")]
                self._store.call(self._client.hdel, self._keys.host(host.name), *fields)
        return names


def _beat(now: int, state: NodeState, active: int) -> str:
    return f"{now} {state} {active}"


def _drained(text: str | None) -> Drained | None:
    try:
        return Drained(**json.loads(text)) if text else None
    except UNREADABLE:
        return None


def unreadable(row: Mapping[str, str]) -> dict[str, str]:
    """Fields of a host's description that cannot be read, and why."""
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
    """A field that cannot be read is left out."""
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
    )
