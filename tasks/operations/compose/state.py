"""The containers of a Compose project: read from the engine, compared, ordered, and awaited until healthy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.cli import PROJECT, Resolved
from longshore.tasks.operations.compose.config_hashes import aliases, hash_of_files
from longshore.tasks.operations.docker.evidence import collect, reason_of
from longshore.tasks.operations.docker.levels import HealthCheck, levels, stop_levels

_LABEL = "com.docker.compose."
#: Seconds in which an undo awaits the health of former containers.
_HEALTHY_DEADLINE = 60.0
_POLL = 0.2
#: Seconds: the engine's default grace, and the time that a stop may take beyond its grace.
_GRACE, _MARGIN = 10.0, 5.0
#: Conditions of `depends_on` that need more than a start.
_AWAITED = {"service_healthy", "service_completed_successfully"}


@dataclass(frozen=True)
class Member:
    """One container of a project, stored as JSON in a step's `before`."""

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
    def restarting(self) -> bool:
        return self.status == "restarting"

    @property
    def key(self) -> tuple[str, int]:
        return self.service, self.number

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_result(self) -> dict[str, Any]:
        kept = ("id", "name", "service", "number", "status", "health", "image_id")
        return {name: getattr(self, name) for name in kept} | {"config_hash": self.hash}


def containers(docker: Engine, project: str) -> list[Container]:
    """All containers of a project except one-off ones of `compose run`."""
    found = docker.containers({PROJECT: project})
    return [one for one in found if one.labels.get(_LABEL + "oneoff", "False") != "True"]


def members(docker: Engine, project: str) -> list[Member]:
    known = aliases(project)
    found = (Member.of(container) for container in containers(docker, project))
    found = (replace(member, hash=hash_of_files(known, member.service, member.hash)) for member in found)
    return sorted(found, key=lambda member: (*member.key, member.name))


def is_well(member: Member) -> bool:
    """Reports whether a container runs and is not unhealthy, or has ended with 0."""
    if member.status == "exited":
        return not member.exit_code
    return member.running and member.status != "restarting" and member.health in {None, "healthy"}


def was_held_back(member: Member) -> bool:
    """Reports whether a container was created but not started: a failed start leaves an exit code."""
    return member.status == "created" and not member.exit_code


def has_failed(member: Member) -> bool:
    """Reports whether a container is unhealthy, restarts, has ended with an error, or could not start."""
    return member.restarting or (member.health == "unhealthy" if member.running else bool(member.exit_code))


def fingerprint(found: Iterable[Member]) -> Counter[tuple[str, str, str, bool]]:
    """The state that an undo restores, without container ids, numbers and start times."""
    return Counter((one.service, one.hash, one.image_id, one.running) for one in found)


def in_order(found: Iterable[Member]) -> list[list[Member]]:
    """Members in levels: a level depends only on earlier levels."""
    groups: dict[str, list[Member]] = {}
    for member in found:
        groups.setdefault(member.service, []).append(member)
    order = levels({name: _waits_for(group) for name, group in groups.items()})
    return [[member for name in sorted(level) for member in groups[name]] for level in order]


def _waits_for(group: list[Member]) -> set[str]:
    return {name for member in group for name in member.depends_on}


def stop_in_order(found: Iterable[Member], grace: float | None = None) -> None:
    """Stop members, dependents first."""
    for _ in stop_levels(in_order(found), lambda docker, member: docker.stop(member.id, grace)):
        pass


def await_stops(ctx: Context, docker: Engine, found: Iterable[Member], grace: float | None = None) -> None:
    """Wait until the engine executes no stop of these members.

    The engine continues a stop after the death of the program that requested it. Until the grace is over, the
    container appears as running. `grace`: the grace that the program may have requested.
    """
    running = {member.id for member in found if member.running}
    if not running:
        return
    signalled: dict[str, float] = {}
    for event in docker.events(("start", "kill", "die"), 0.0, time.time()):
        signalled.pop(event["Actor"]["ID"], None)
        if event["Action"] == "kill":
            signalled[event["Actor"]["ID"]] = float(event["time"])
    for container_id in running & signalled.keys():
        container = docker.inspect(container_id)
        own = container.stop_timeout if container is not None else None
        limit = max(_GRACE if own is None else own, grace or 0.0) + _MARGIN
        end = time.monotonic() + limit - max(0.0, time.time() - signalled[container_id])
        while container is not None and container.running and time.monotonic() < end:
            ctx.sleep(_POLL)
            container = docker.inspect(container_id)


def jobs(found: Iterable[Member]) -> set[str]:
    """One-shot services: another service depends on their successful end."""
    return {
        name
        for member in found
        for name, condition in member.depends_on.items()
        if condition == "service_completed_successfully"
    }


def to_do(docker: Engine, target: Resolved, services: list[str], found: list[Member]) -> dict[str, str]:
    """The services that `up` would change, with the reasons."""
    why: dict[str, str] = {}
    for service in services:
        there = [member for member in found if member.service == service]
        image_id = docker.image_id(target.image(service))
        one_shot = service in target.jobs()
        if len(there) != target.replicas(service):
            why[service] = "missing" if not there else f"{len(there)} of {target.replicas(service)}"
        elif any(member.hash != target.hashes[service] for member in there):
            why[service] = "configuration changed"
        elif any(member.image_id != image_id for member in there):
            why[service] = "image changed"
        elif not all(m.running or (one_shot and m.status == "exited" and m.exit_code == 0) for m in there):
            why[service] = "not running"
    return why


@dataclass
class HealthWaiter:
    """Waits until services are healthy or, without a health check, have run for `settle` seconds.

    `up --wait` is unsuitable: it accepts a container that dies a moment later, rejects a completed one-shot service,
    and cannot be cancelled.
    """

    ctx: Context
    docker: Engine
    project: str
    deadline: float
    settle: float
    #: One-shot services, which must exit with 0.
    jobs: set[str] = field(default_factory=set)
    #: Services that may exit with 0, without a service that waits for their end.
    may_end: set[str] = field(default_factory=set)
    #: Ignored containers by service and number: stopped by an operator.
    stopped: set[tuple[str, int]] = field(default_factory=set)
    #: The start times of containers that ran before, by id: these need no settling.
    steady: dict[str, str | None] = field(default_factory=dict)
    #: The ids of the containers for which the wait has failed: the failed one, or all that were late.
    failed: set[str] = field(default_factory=set)

    def wait(self, services: Iterable[str]) -> list[Member]:
        """The members, all healthy. Raises OperationError with the unhealthy containers and their last output."""
        wanted = set(services)
        end = time.monotonic() + self.deadline
        check = HealthCheck(self.settle)
        while True:
            there = members(self.docker, self.project)
            found = [member for member in there if member.service in wanted and member.key not in self.stopped]
            now = time.monotonic()
            waiting = [(member, why) for member in found if (why := self._not_yet(member, check))]
            if not waiting:
                return found
            if now >= end:
                late, reasons = [member for member, _ in waiting], [f"{member.name} {why}" for member, why in waiting]
                self.failed |= {member.id for member in late}
                raise self._failure(late, f"not healthy after {self.deadline:g} s: {{}}", reasons)
            self.ctx.sleep(min(_POLL, max(0.01, end - now)))

    def _not_yet(self, member: Member, check: HealthCheck) -> str:
        """The reason to wait longer; '' if the member is healthy. Raises if it cannot become healthy."""
        if member.status == "exited" and not member.exit_code and member.service in self.jobs | self.may_end:
            return ""
        why = check.problem(member)
        if member.restarting:
            return why
        if not member.running:
            hint = "" if member.exit_code else "; a one-shot service needs another service that depends on its end"
            raise self._failed(member, why + hint)
        if member.health == "unhealthy":
            raise self._failed(member, why)
        if member.health is None and member.service in self.jobs:
            return "still runs"
        return "" if member.health is None and self.steady.get(member.id) == member.started_at else why

    def _failed(self, member: Member, how: str) -> OperationError:
        self.failed.add(member.id)
        others = [one for one in members(self.docker, self.project) if not is_well(one) and one.id != member.id]
        return self._failure([member, *others], "{}", [f"container {member.name} {how}"])

    def _failure(self, ill: list[Member], text: str, why: list[str]) -> OperationError:
        """The error, with the evidence about these containers; the text names the reasons of the first ones."""
        found = collect(self.ctx, self.docker, (member.id for member in ill))
        reasons = [reason_of(one) for one in found] + [""] * len(why)
        said = [f"{one}: {reason}" if reason else one for one, reason in zip(why, reasons, strict=False)]
        return OperationError(text.format("; ".join(said)), data={"evidence": found})


def former_health(ctx: Context, docker: Engine, project: str, found: list[Member]) -> HealthWaiter:
    """The waiter of an undo, which awaits containers that were healthy before."""
    return HealthWaiter(ctx, docker, project, deadline=_HEALTHY_DEADLINE, settle=0.0, jobs=jobs(found))


def start_in_order(waiter: HealthWaiter, wanted: list[Member], everything: list[Member]) -> list[str]:
    """Start members that do not run, dependencies first, and wait for the conditions of their dependents."""
    started: list[str] = []
    conditions: dict[str, set[str]] = {}
    for member in everything:
        for name, condition in member.depends_on.items():
            conditions.setdefault(name, set()).add(condition)
    for level in in_order(wanted):
        started += [member.name for member in level if not member.running and waiter.docker.start(member.id)]
        held = {member.service for member in level if conditions.get(member.service, set()) & _AWAITED}
        if held:
            waiter.wait(held)
    return started
