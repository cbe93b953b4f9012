"""`compose.stop`, `start` and `restart`, which neither create nor remove containers."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.compose import RESTART, START, STOP, RestartParams, StartParams, StopParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements
from longshore.tasks.operations.compose.cli import Compose, Resolved
from longshore.tasks.operations.compose.project import failing, members_of, named, names, project_lock
from longshore.tasks.operations.compose.state import (
    HealthWaiter,
    Member,
    await_stops,
    jobs,
    members,
    start_in_order,
    stop_in_order,
)

_HEALTHY_DEADLINE = 60.0


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


@implements(STOP)
class Stop(Implementation[StopParams]):
    """Stops services. The undo starts exactly the stopped containers; `compose start` would start all."""

    def before(self, ctx: Context, params: StopParams) -> dict[str, Any]:
        docker = engine()
        project, resolved = named(ctx, docker, params)
        found = members(docker, project)
        self._check(project, resolved, found, params.services)
        chosen = [member for member in found if not params.services or member.service in params.services]
        return {"project": project, "containers": [member.as_json() for member in chosen]}

    def act(self, ctx: Context, params: StopParams, before: dict[str, Any]) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            ids = {member.id for member in was}
            running = [member for member in members(docker, project) if member.running and member.id in ids]
            if running:
                Compose(ctx, docker).stop(project, sorted({member.service for member in running}), params.grace)
            still = {member.id for member in members(docker, project) if member.running}
        stopped = [member.name for member in was if member.running and member.id not in still]
        if any(member.id in still for member in was):
            raise OperationError(f"project {project} was started outside of this run during the stop")
        return Outcome(changed=bool(stopped), data={"project": project, "stopped": stopped})

    def predict(self, ctx: Context, params: StopParams) -> Prediction:
        docker = engine()
        try:
            project, resolved = named(ctx, docker, params)
            found = members(docker, project)
            self._check(project, resolved, found, params.services)
        except Preflight as error:
            return failing(ctx, "stop", str(error))
        chosen = [member for member in found if not params.services or member.service in params.services]
        running = [member for member in chosen if member.running]
        if not running:
            changed = None if ctx.has_upstream else False
            return Prediction(f"none of these services runs in project {project}", changed=changed)
        return Prediction(f"would stop {names(running)}", undo=f"start {names(running)}")

    def undo(self, ctx: Context, params: StopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        was = [member for member in members_of(before) if member.running]
        with project_lock(ctx, docker, project):
            await_stops(ctx, docker, members(docker, project), params.grace)
            everything = members(docker, project)
            replacements = _replacements(was, everything)
            waiter = HealthWaiter(ctx, docker, project, deadline=_HEALTHY_DEADLINE, settle=0.0, jobs=jobs(everything))
            # The remaining containers start before a missing one is reported.
            wanted = [replacements[member.id] for member in was if member.id in replacements]
            started = start_in_order(waiter, wanted, everything)
            for member in was:
                if member.paused and member.id in replacements and not replacements[member.id].paused:
                    docker.pause(replacements[member.id].id)
            gone = [member for member in was if member.id not in replacements]
            if gone:
                raise OperationError(f"containers of project {project} were removed outside of this run: {names(gone)}")
            waiter.wait({member.service for member in was if member.health == "healthy" and not member.paused})
        return Outcome(changed=bool(started), data={"project": project, "started": started})

    @staticmethod
    def _check(project: str, resolved: Resolved | None, found: list[Member], services: list[str]) -> None:
        """Raise Preflight for a project without containers, unless its files prove that its name is correct."""
        lacking = _lacking(project, found, services)
        if lacking and resolved is None:
            raise Preflight(lacking, remedy="list the projects with: docker compose ls -a")


@implements(START)
class Start(Implementation[StartParams]):
    """Starts services and their dependencies, except one-shot services that have completed."""

    def before(self, ctx: Context, params: StartParams) -> dict[str, Any]:
        docker = engine()
        project, _ = named(ctx, docker, params)
        found = members(docker, project)
        self._check(project, found, params.services)
        chosen = self._chosen(found, params.services)
        return {"project": project, "containers": [member.as_json() for member in chosen]}

    def act(self, ctx: Context, params: StartParams, before: dict[str, Any]) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            ids = {member.id for member in was}
            everything = members(docker, project)
            found = [member for member in everything if member.id in ids]
            if len(found) < len(ids):
                raise OperationError(f"containers of project {project} were removed outside of this run")
            waiter = self._waiter(ctx, docker, project, params, was)
            start_in_order(waiter, found, everything)
            now = waiter.wait({member.service for member in was})
        ran = {member.id for member in was if member.running}
        started = [member.name for member in now if member.id in ids - ran]
        return Outcome(changed=bool(started), data={"project": project, "started": started})

    def predict(self, ctx: Context, params: StartParams) -> Prediction:
        docker = engine()
        try:
            project, _ = named(ctx, docker, params)
            found = members(docker, project)
            self._check(project, found, params.services)
        except Preflight as error:
            return failing(ctx, "start", str(error))
        wanted = [member for member in self._chosen(found, params.services) if not member.running]
        if not wanted:
            changed = None if ctx.has_upstream else False
            return Prediction(f"all of these services run in project {project}", changed=changed)
        return Prediction(f"would start {names(wanted)}", undo=f"stop {names(wanted)}")

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

    @staticmethod
    def _check(project: str, found: list[Member], services: list[str]) -> None:
        lacking = _lacking(project, found, services)
        if lacking:
            raise Preflight(lacking, remedy="run compose.up.execute first")

    @staticmethod
    def _chosen(found: list[Member], services: list[str]) -> list[Member]:
        """The services and their dependencies, without completed one-shot services."""
        wanted = set(services) or {member.service for member in found}
        while True:
            more = {name for member in found if member.service in wanted for name in member.depends_on} - wanted
            if not more:
                break
            wanted |= more
        ended = {m.service for m in found if m.status == "exited" and not m.exit_code} & jobs(found)
        return [member for member in found if member.service in wanted - ended]

    @staticmethod
    def _waiter(ctx: Context, docker: Engine, project: str, params: StartParams, was: list[Member]) -> HealthWaiter:
        steady = {member.id: member.started_at for member in was if member.running}
        return HealthWaiter(
            ctx,
            docker,
            project,
            deadline=params.healthy_deadline,
            settle=params.min_healthy_time,
            jobs=jobs(was),
            steady=steady,
        )


@implements(RESTART)
class Restart(Implementation[RestartParams]):
    """Restarts the containers that ran when the step began; a later attempt skips containers started since."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        docker = engine()
        project, _ = named(ctx, docker, params)
        found = members(docker, project)
        if lacking := _lacking(project, found, params.services):
            raise Preflight(lacking, remedy="run compose.up.execute first")
        chosen = [m for m in found if m.running and (not params.services or m.service in params.services)]
        return {"project": project, "containers": [member.as_json() for member in chosen]}

    def act(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        began = {member.id: member.started_at for member in was}
        with project_lock(ctx, docker, project):
            everything = members(docker, project)
            mine = [member for member in everything if member.id in began]
            if len(mine) < len(was):
                raise OperationError(f"containers of project {project} were removed outside of this run")
            left = [member for member in mine if member.started_at == began[member.id]]
            stop_in_order((member for member in left if member.running), params.grace)
            waiter = HealthWaiter(
                ctx, docker, project, params.healthy_deadline, params.min_healthy_time, jobs(everything)
            )
            everything = members(docker, project)
            start_in_order(waiter, [member for member in everything if member.id in began], everything)
            now = waiter.wait({member.service for member in was})
        restarted = [member.name for member in now if member.id in began]
        return Outcome(changed=bool(was), data={"project": project, "restarted": restarted})

    def predict(self, ctx: Context, params: RestartParams) -> Prediction:
        docker = engine()
        try:
            before = self.before(ctx, params)
        except Preflight as error:
            return failing(ctx, "restart", str(error))
        running = members_of(before)
        if not running:
            changed = None if ctx.has_upstream else False
            return Prediction(
                f"none of these services runs in project {before['project']} on {docker.url}", changed=changed
            )
        return Prediction(f"would restart {names(running)}", undo="start the containers that it left stopped")

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            await_stops(ctx, docker, members(docker, project), params.grace)
            everything = members(docker, project)
            replacements = _replacements(was, everything)
            waiter = HealthWaiter(ctx, docker, project, deadline=_HEALTHY_DEADLINE, settle=0.0, jobs=jobs(everything))
            wanted = [replacements[member.id] for member in was if member.id in replacements]
            started = start_in_order(waiter, wanted, everything)
            if gone := [member for member in was if member.id not in replacements]:
                raise OperationError(f"containers of project {project} were removed outside of this run: {names(gone)}")
        return Outcome(changed=bool(started), data={"project": project, "started": started})
