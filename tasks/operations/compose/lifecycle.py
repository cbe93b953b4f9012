"""`compose.stop`, `start` and `restart`: nothing is made or removed."""

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

_WELL = 60.0


def _lacking(project: str, found: list[Member], services: list[str]) -> str | None:
    """Why these services of the project cannot be meant; None if they can."""
    missing = [name for name in services if name not in {member.service for member in found}]
    if missing:
        return f"project {project} has no container of service {missing[0]!r}"
    return None if found else f"there are no containers of project {project}"


def _heirs(was: list[Member], now: list[Member]) -> dict[str, Member]:
    """By id, the same containers now; or those that were made again, out of the same, in their place."""
    found = {member.id: member for member in now}
    for member in was:
        if member.id not in found:
            same = [o for o in now if (o.key, o.hash, o.image_id) == (member.key, member.hash, member.image_id)]
            found |= {member.id: same[0]} if same else {}
    return found


@implements(STOP)
class Stop(Implementation[StopParams]):
    """Its undo starts exactly those that it stopped; `compose start` would start the others as well."""

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
            raise OperationError(f"project {project} was started by somebody else meanwhile")
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
            return Prediction(f"nothing of it runs in project {project}", changed=changed)
        return Prediction(f"would stop {names(running)}", undo=f"start {names(running)}")

    def undo(self, ctx: Context, params: StopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        was = [member for member in members_of(before) if member.running]
        with project_lock(ctx, docker, project):
            await_stops(ctx, docker, members(docker, project), params.grace)
            everything = members(docker, project)
            heirs = _heirs(was, everything)
            gate = HealthWaiter(ctx, docker, project, deadline=_WELL, settle=0.0, jobs=jobs(everything))
            # Those that are left are started, before it is said that one is gone.
            wanted = [heirs[member.id] for member in was if member.id in heirs]
            started = start_in_order(gate, wanted, everything)
            for member in was:
                if member.paused and member.id in heirs and not heirs[member.id].paused:
                    docker.pause(heirs[member.id].id)
            gone = [member for member in was if member.id not in heirs]
            if gone:
                raise OperationError(f"gone, and cannot be started again: {names(gone)}")
            gate.wait({member.service for member in was if member.health == "healthy" and not member.paused})
        return Outcome(changed=bool(started), data={"project": project, "started": started})

    @staticmethod
    def _check(project: str, resolved: Resolved | None, found: list[Member], services: list[str]) -> None:
        """A project that is not up has nothing to stop, as long as its files prove the name right."""
        lacking = _lacking(project, found, services)
        if lacking and resolved is None:
            raise Preflight(lacking, remedy="docker compose ls -a lists the projects")


@implements(START)
class Start(Implementation[StartParams]):
    """Starts the services and what they depend on, but no job that has ended well."""

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
                raise OperationError(f"containers of project {project} were removed meanwhile")
            gate = self._gate(ctx, docker, project, params, was)
            start_in_order(gate, found, everything)
            now = gate.wait({member.service for member in was})
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
            return Prediction(f"all of it runs in project {project}", changed=changed)
        return Prediction(f"would start {names(wanted)}", undo=f"stop {names(wanted)}")

    def undo(self, ctx: Context, params: StartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        idle = [member for member in members_of(before) if not member.running]
        with project_lock(ctx, docker, project):
            heirs = _heirs(idle, members(docker, project))
            running = [heirs[member.id] for member in idle if member.id in heirs and heirs[member.id].running]
            stop_in_order(running)
        stopped = [member.name for member in running]
        return Outcome(changed=bool(stopped), data={"project": project, "stopped": stopped})

    @staticmethod
    def _check(project: str, found: list[Member], services: list[str]) -> None:
        lacking = _lacking(project, found, services)
        if lacking:
            raise Preflight(lacking, remedy="compose.up.execute makes it")

    @staticmethod
    def _chosen(found: list[Member], services: list[str]) -> list[Member]:
        """The services with what they depend on, without the jobs that have ended well."""
        wanted = set(services) or {member.service for member in found}
        while True:
            more = {name for member in found if member.service in wanted for name in member.depends_on} - wanted
            if not more:
                break
            wanted |= more
        ended = {m.service for m in found if m.status == "exited" and not m.exit_code} & jobs(found)
        return [member for member in found if member.service in wanted - ended]

    @staticmethod
    def _gate(ctx: Context, docker: Engine, project: str, params: StartParams, was: list[Member]) -> HealthWaiter:
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
    """Stops and starts what ran when the step began; what was not started since is what is left to do."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        docker = engine()
        project, _ = named(ctx, docker, params)
        found = members(docker, project)
        if lacking := _lacking(project, found, params.services):
            raise Preflight(lacking, remedy="compose.up.execute makes it")
        chosen = [m for m in found if m.running and (not params.services or m.service in params.services)]
        return {"project": project, "containers": [member.as_json() for member in chosen]}

    def act(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        began = {member.id: member.started_at for member in was}
        with project_lock(ctx, docker, project):
            everything = members(docker, project)
            mine = [member for member in everything if member.id in began]
            if len(mine) < len(was):
                raise OperationError(f"containers of project {project} were removed meanwhile")
            left = [member for member in mine if member.started_at == began[member.id]]
            stop_in_order((member for member in left if member.running), params.grace)
            gate = HealthWaiter(
                ctx, docker, project, params.healthy_deadline, params.min_healthy_time, jobs(everything)
            )
            everything = members(docker, project)
            start_in_order(gate, [member for member in everything if member.id in began], everything)
            now = gate.wait({member.service for member in was})
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
            return Prediction(f"nothing of it runs in project {before['project']} on {docker.url}", changed=changed)
        return Prediction(f"would restart {names(running)}", undo="start what it left stopped")

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            await_stops(ctx, docker, members(docker, project), params.grace)
            everything = members(docker, project)
            heirs = _heirs(was, everything)
            gate = HealthWaiter(ctx, docker, project, deadline=_WELL, settle=0.0, jobs=jobs(everything))
            wanted = [heirs[member.id] for member in was if member.id in heirs]
            started = start_in_order(gate, wanted, everything)
            if gone := [member for member in was if member.id not in heirs]:
                raise OperationError(f"gone, and cannot be started again: {names(gone)}")
        return Outcome(changed=bool(started), data={"project": project, "started": started})
