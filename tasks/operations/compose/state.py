"""What is there of a Compose project: read from the engine, compared, ordered, watched until it is well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.factory import close_engine, engine
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.cli import PROJECT, Resolved
from longshore.tasks.operations.compose.config_hashes import aliases, meant

_LABEL = "com.docker.compose."
_LOOK = 0.2
#: What the engine takes for a grace where a container has none of its own, and how much longer a stop may take.
_GRACE, _MARGIN = 10.0, 5.0
#: Conditions of `depends_on` that more than a start fulfils.
_AWAITED = {"service_healthy", "service_completed_successfully"}


@dataclass(frozen=True)
class Member:
    """One container of a project. As JSON it goes into a step's `before`."""

    id: str
    name: str
    service: str
    number: int
    image: str
    image_id: str
    hash: str
    running: bool
    paused: bool
    status: str
    health: str | None
    exit_code: int | None
    started_at: str | None
    #: Condition by service.
    depends_on: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, container: Container) -> Member:
        labels = container.labels
        pairs = [part.split(":") for part in labels.get(_LABEL + "depends_on", "").split(",") if part]
        return cls(
            id=container.id,
            name=container.name,
            service=labels.get(_LABEL + "service", ""),
            number=int(labels.get(_LABEL + "container-number") or 0),
            image=container.image,
            image_id=container.image_id,
            hash=labels.get(_LABEL + "config-hash", ""),
            running=container.running,
            paused=container.paused,
            status="restarting" if container.restarting else container.status,
            health=container.health,
            exit_code=container.exit_code,
            started_at=container.started_at,
            depends_on={pair[0]: pair[1] if len(pair) > 1 else "service_started" for pair in pairs},
        )

    @property
    def key(self) -> tuple[str, int]:
        return self.service, self.number

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_result(self) -> dict[str, Any]:
        kept = ("id", "name", "service", "number", "status", "health", "image_id")
        return {name: getattr(self, name) for name in kept} | {"config_hash": self.hash}


def containers(docker: Engine, project: str) -> list[Container]:
    """All of the project's containers but those of `compose run`."""
    found = docker.containers({PROJECT: project})
    return [one for one in found if one.labels.get(_LABEL + "oneoff", "False") != "True"]


def members(docker: Engine, project: str) -> list[Member]:
    known = aliases(project)
    found = (Member.of(container) for container in containers(docker, project))
    found = (replace(member, hash=meant(known, member.service, member.hash)) for member in found)
    return sorted(found, key=lambda member: (*member.key, member.name))


def fingerprint(found: Iterable[Member]) -> Counter[tuple[str, str, str, bool]]:
    """What an undo promises to bring back: container ids and numbers, and the time of their start, are not in it."""
    return Counter((one.service, one.hash, one.image_id, one.running) for one in found)


def in_order(found: Iterable[Member]) -> list[list[Member]]:
    """Levels: each depends only on what stands before it."""
    groups: dict[str, list[Member]] = {}
    for member in found:
        groups.setdefault(member.service, []).append(member)
    order = levels({name: _waits_for(group) for name, group in groups.items()})
    return [[member for name in sorted(level) for member in groups[name]] for level in order]


def levels(needs: Mapping[str, Set[str]]) -> list[list[str]]:
    """Each needs only what stands in a level before its own. Those that need each other stand together; what is needed
    and is not there counts for nothing.
    """
    left = dict(needs)
    found: list[list[str]] = []
    while left:
        free = [name for name, others in left.items() if not (others - {name}) & left.keys()] or list(left)
        found.append(free)
        for name in free:
            del left[name]
    return found


def _waits_for(group: list[Member]) -> set[str]:
    return {name for member in group for name in member.depends_on}


def stop_in_order(found: Iterable[Member], grace: float | None = None) -> None:
    """Stop these, dependents first; those of one level at once, for each may take its whole grace."""

    def stop(member: Member) -> None:
        try:
            engine().stop(member.id, grace)  # a client of this thread's own
        finally:
            close_engine()

    for level in reversed(in_order(found)):
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(stop, level))


def await_stops(ctx: Context, docker: Engine, found: Iterable[Member], grace: float | None = None) -> None:
    """Wait until no stop of these is under way in the engine.

    A stop goes on in the engine when the program that asked for it has ended. Until the grace is over, its container
    looks as if it ran on. `grace`: what the program may have asked for.
    """
    running = {member.id for member in found if member.running}
    if not running:
        return
    told: dict[str, float] = {}
    for event in docker.events(("start", "kill", "die"), 0.0, time.time()):
        told.pop(event["Actor"]["ID"], None)
        if event["Action"] == "kill":
            told[event["Actor"]["ID"]] = float(event["time"])
    for container_id in running & told.keys():
        container = docker.inspect(container_id)
        own = container.stop_timeout if container is not None else None
        limit = max(_GRACE if own is None else own, grace or 0.0) + _MARGIN
        end = time.monotonic() + limit - max(0.0, time.time() - told[container_id])
        while container is not None and container.running and time.monotonic() < end:
            ctx.sleep(_LOOK)
            container = docker.inspect(container_id)


def jobs(found: Iterable[Member]) -> set[str]:
    """Services whose end another one waits for."""
    return {
        name
        for member in found
        for name, condition in member.depends_on.items()
        if condition == "service_completed_successfully"
    }


def to_do(docker: Engine, target: Resolved, services: list[str], found: list[Member]) -> dict[str, str]:
    """Which services `up` would have to touch, and why."""
    why: dict[str, str] = {}
    for service in services:
        there = [member for member in found if member.service == service]
        image_id = docker.image_id(target.image(service))
        ended_well = service in target.jobs()
        if len(there) != target.replicas(service):
            why[service] = "missing" if not there else f"{len(there)} of {target.replicas(service)}"
        elif any(member.hash != target.hashes[service] for member in there):
            why[service] = "configuration changed"
        elif any(member.image_id != image_id for member in there):
            why[service] = "image changed"
        elif not all(m.running or (ended_well and m.status == "exited" and m.exit_code == 0) for m in there):
            why[service] = "not running"
    return why


@dataclass
class HealthWaiter:
    """Waits until services are well: healthy, or without a health check steady for `settle` seconds.

    `up --wait` cannot be asked: it takes a container that dies a moment later for well, a service that
    has done its work and ended for ill, and cannot be cancelled in between.
    """

    ctx: Context
    docker: Engine
    project: str
    deadline: float
    settle: float
    #: Services that are meant to end, with 0.
    jobs: set[str] = field(default_factory=set)
    #: Services that may have done their work and ended, with 0; nobody waits for it.
    may_end: set[str] = field(default_factory=set)
    #: Containers that are not looked at, by service and number: somebody has stopped them.
    stopped: set[tuple[str, int]] = field(default_factory=set)
    #: Containers that ran before, by id, with their start: there is nothing to settle.
    steady: dict[str, str | None] = field(default_factory=dict)

    def wait(self, services: Iterable[str]) -> list[Member]:
        """The members, all well. OperationError says which service is not, and its last words."""
        wanted = set(services)
        end = time.monotonic() + self.deadline
        since: dict[tuple[str, str | None], float] = {}
        while True:
            there = members(self.docker, self.project)
            found = [member for member in there if member.service in wanted and member.key not in self.stopped]
            now = time.monotonic()
            waiting = [why for member in found if (why := self._not_yet(member, since, now))]
            if not waiting:
                return found
            if now >= end:
                raise OperationError(f"not well after {self.deadline:g} s: {'; '.join(waiting)}")
            self.ctx.sleep(min(_LOOK, max(0.01, end - now)))

    def _not_yet(self, member: Member, since: dict[tuple[str, str | None], float], now: float) -> str | None:
        """Why it is not well yet; None if it is. Raises if it will not be."""
        if member.service in self.jobs and member.status == "exited":
            if member.exit_code:
                raise self._ill(member, f"ended with {member.exit_code}")
            return None
        if member.status == "restarting":
            return f"{member.name} keeps restarting (exit code {member.exit_code})"
        if not member.running and member.status == "exited" and not member.exit_code and member.service in self.may_end:
            return None
        if not member.running:
            hint = "" if member.exit_code else "; a service that is meant to end needs another that waits for it"
            raise self._ill(member, f"ended with {member.exit_code}{hint}")
        if member.health is not None:
            if member.health == "unhealthy":
                raise self._ill(member, "is unhealthy")
            return None if member.health == "healthy" else f"{member.name} is {member.health}"
        if member.service in self.jobs:
            return f"{member.name} is still at work"
        if self.steady.get(member.id) == member.started_at:
            return None
        steady = now - since.setdefault((member.id, member.started_at), now)
        return None if steady >= self.settle else f"{member.name} runs for {steady:.0f} s"

    def _ill(self, member: Member, how: str) -> OperationError:
        output = self.docker.logs(member.id, 4096)
        said = (output.stderr or output.stdout).strip().splitlines()[-1:]
        return OperationError(f"container {member.name} {how}" + (f": {said[0]}" if said else ""))


def start_in_order(gate: HealthWaiter, wanted: list[Member], everything: list[Member]) -> list[str]:
    """Start these where they do not run, dependencies first, waiting for the conditions of dependents."""
    started: list[str] = []
    conditions: dict[str, set[str]] = {}
    for member in everything:
        for name, condition in member.depends_on.items():
            conditions.setdefault(name, set()).add(condition)
    for level in in_order(wanted):
        started += [member.name for member in level if not member.running and gate.docker.start(member.id)]
        held = {member.service for member in level if conditions.get(member.service, set()) & _AWAITED}
        if held:
            gate.wait(held)
    return started
