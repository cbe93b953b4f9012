"""`compose.stop`, `start` and `restart`, which neither create nor remove containers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.compose import RESTART, START, STOP
from longshore.orchestration.operations.compose_params import RestartParams, StartParams, StopParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements, unchanged
from longshore.tasks.operations.compose import command_lines
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.project import members_of, named, names, project_lock
from longshore.tasks.operations.compose.state import (
    HealthWaiter,
    Member,
    await_stops,
    former_health,
    jobs,
    members,
    start_in_order,
    stop_in_order,
)


def _lacking(project: str, found: list[Member], services: list[str]) -> str | None:
    """The reason why the project or its services have no containers; None if all have."""
    missing = [name for name in services if name not in {member.service for member in found}]
    if missing:
        return f"project {project} has no container of service {missing[0]!r}"
    return None if found else f"project {project} has no containers"


def _replacements(was: list[Member], now: list[Member]) -> dict[str, Member]:
    """The present containers by former id: the same, or replacements from the same configuration and image."""
    found = {member.id: member for member in now}
    for member in was:
        if member.id not in found:
            same = [o for o in now if (o.key, o.hash, o.image_id) == (member.key, member.hash, member.image_id)]
            found |= {member.id: same[0]} if same else {}
    return found


class _OfContainers(Implementation[Any]):
    """The base of operations on the containers of a project; `before` lists those that the step concerns."""

    def chosen(self, found: list[Member], services: list[str]) -> list[Member]:
        return [member for member in found if not services or member.service in services]

    def refuse(self, lacking: str, resolved: Resolved | None) -> None:
        """Raise Preflight where the project or one of its services has no containers."""
        raise Preflight(lacking, remedy="run compose.up.execute first")

    def before(self, ctx: Context, params: Any) -> dict[str, Any]:
        docker = engine()
        project, resolved = named(ctx, docker, params)
        found = members(docker, project)
        if lacking := _lacking(project, found, params.services):
            self.refuse(lacking, resolved)
        return {"project": project, "containers": [one.as_json() for one in self.chosen(found, params.services)]}


def _start_former(
    ctx: Context, docker: Engine, project: str, was: list[Member], grace: float | None
) -> tuple[dict[str, Member], HealthWaiter, list[str]]:
    """Start the former containers that remain: their replacements, a waiter for their health, and the started names.

    The caller holds the project's lock.
    """
    await_stops(ctx, docker, members(docker, project), grace)
    everything = members(docker, project)
    replacements = _replacements(was, everything)
    waiter = former_health(ctx, docker, project, everything)
    remaining = [replacements[member.id] for member in was if member.id in replacements]
    return replacements, waiter, start_in_order(waiter, remaining, everything)


def _refuse_missing(project: str, was: list[Member], found: Collection[str]) -> None:
    if gone := [member for member in was if member.id not in found]:
        raise OperationError(f"containers of project {project} were removed outside of this run: {names(gone)}")


def _decision(ctx: Context, before: dict[str, Any], verb: str, undo: str, *, running: bool) -> Prediction:
    """The decision of a step that changes the containers that run, or those that do not."""
    concerned = [member for member in members_of(before) if member.running is running]
    if not concerned:
        which = "none" if running else "all"
        return unchanged(ctx, f"{which} of these services run in project {before['project']}")
    return Prediction(f"would {verb} {names(concerned)}", undo=undo.format(names(concerned)))


@implements(STOP)
class Stop(_OfContainers):
    """Stops services. The undo starts exactly the stopped containers; `compose start` would start all."""

    def refuse(self, lacking: str, resolved: Resolved | None) -> None:
        if resolved is None:  # resolved files prove that the project's name is correct
            raise Preflight(lacking, remedy="list the projects with: docker compose ls -a")

    def change(self, ctx: Context, params: StopParams, before: dict[str, Any]) -> Change:
        yield _decision(ctx, before, "stop", "start {}", running=True)
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            ids = {member.id for member in was}
            running = [member for member in members(docker, project) if member.running and member.id in ids]
            if running:
                command = command_lines.stop(sorted({member.service for member in running}), params.grace)
                Compose(ctx, docker).execute(Source(project), command)
            still = {member.id for member in members(docker, project) if member.running}
        stopped = [member.name for member in was if member.running and member.id not in still]
        if any(member.id in still for member in was):
            raise OperationError(f"project {project} was started outside of this run during the stop")
        return {"project": project, "stopped": stopped}

    def undo(self, ctx: Context, params: StopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        was = [member for member in members_of(before) if member.running]
        with project_lock(ctx, docker, project):
            replacements, waiter, started = _start_former(ctx, docker, project, was, params.grace)
            for member in was:
                if member.paused and member.id in replacements and not replacements[member.id].paused:
                    docker.pause(replacements[member.id].id)
            # The remaining containers start before a missing one is reported.
            _refuse_missing(project, was, replacements)
            waiter.wait({member.service for member in was if member.health == "healthy" and not member.paused})
        return Outcome(changed=bool(started), data={"project": project, "started": started})


@implements(START)
class Start(_OfContainers):
    """Starts services and their dependencies, except one-shot services that have completed."""

    def chosen(self, found: list[Member], services: list[str]) -> list[Member]:
        """The services and their dependencies, without completed one-shot services."""
        wanted = set(services) or {member.service for member in found}
        while more := {name for member in found if member.service in wanted for name in member.depends_on} - wanted:
            wanted |= more
        ended = {m.service for m in found if m.status == "exited" and not m.exit_code} & jobs(found)
        return [member for member in found if member.service in wanted - ended]

    def change(self, ctx: Context, params: StartParams, before: dict[str, Any]) -> Change:
        yield _decision(ctx, before, "start", "stop {}", running=False)
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            ids = {member.id for member in was}
            everything = members(docker, project)
            found = [member for member in everything if member.id in ids]
            _refuse_missing(project, was, {member.id for member in found})
            steady = {member.id: member.started_at for member in was if member.running}
            limits = (params.healthy_deadline, params.min_healthy_time)
            waiter = HealthWaiter(ctx, docker, project, *limits, jobs(was), steady=steady)
            start_in_order(waiter, found, everything)
            now = waiter.wait({member.service for member in was})
        ran = {member.id for member in was if member.running}
        started = [member.name for member in now if member.id in ids - ran]
        return {"project": project, "started": started}

    def undo(self, ctx: Context, params: StartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        idle = [member for member in members_of(before) if not member.running]
        with project_lock(ctx, docker, project):
            replacements = _replacements(idle, members(docker, project))
            running = [
                replacements[member.id]
                for member in idle
                if member.id in replacements and replacements[member.id].running
            ]
            stop_in_order(running)
        stopped = [member.name for member in running]
        return Outcome(changed=bool(stopped), data={"project": project, "stopped": stopped})


@implements(RESTART)
class Restart(_OfContainers):
    """Restarts the containers that ran when the step began; a later attempt skips containers started since."""

    def chosen(self, found: list[Member], services: list[str]) -> list[Member]:
        return [member for member in super().chosen(found, services) if member.running]

    def change(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Change:
        yield _decision(ctx, before, "restart", "start the containers that it left stopped", running=True)
        docker, project, was = engine(), before["project"], members_of(before)
        began = {member.id: member.started_at for member in was}
        with project_lock(ctx, docker, project):
            everything = members(docker, project)
            mine = [member for member in everything if member.id in began]
            _refuse_missing(project, was, {member.id for member in mine})
            left = [member for member in mine if member.started_at == began[member.id]]
            stop_in_order((member for member in left if member.running), params.grace)
            limits = (params.healthy_deadline, params.min_healthy_time)
            waiter = HealthWaiter(ctx, docker, project, *limits, jobs(everything))
            everything = members(docker, project)
            start_in_order(waiter, [member for member in everything if member.id in began], everything)
            now = waiter.wait({member.service for member in was})
        restarted = [member.name for member in now if member.id in began]
        return {"project": project, "restarted": restarted}

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            replacements, _, started = _start_former(ctx, docker, project, was, params.grace)
            _refuse_missing(project, was, replacements)
        return Outcome(changed=bool(started), data={"project": project, "started": started})
