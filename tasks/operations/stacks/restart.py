"""`stacks.restart`: repairs the drift of selected services of a project, and leaves the others unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from longshore.orchestration.errors import Preflight
from longshore.orchestration.operations.stacks import RESTART, InspectParams, RestartParams, ServiceAction
from longshore.orchestration.stacks.drift import stale_of
from longshore.orchestration.stacks.image_names import registry_of
from longshore.orchestration.stacks.inventory import Replica, Service, inventory_of
from longshore.orchestration.store.caches import STACK_CACHE
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine, Login
from longshore.tasks.implementation import Change, Context, Outcome, Prediction, implements
from longshore.tasks.operations.compose import command_lines, revisions, way_back
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.project import members_of, project_lock, snapshot
from longshore.tasks.operations.compose.rollout import Rollout, RolloutStep, difference
from longshore.tasks.operations.compose.standing import reported_on_failure, standing
from longshore.tasks.operations.compose.state import (
    HealthWaiter,
    Member,
    containers,
    members,
    start_in_order,
    stop_in_order,
)
from longshore.tasks.operations.docker.levels import levels
from longshore.tasks.operations.docker.registry import fetch, require_images
from longshore.tasks.operations.stacks.inspect_host import HostInspection

_REMEDY = "pull or build it first, or select with --registry"


@dataclass(frozen=True)
class _Found:
    """The present state of the project, and the actions to take."""

    target: Resolved
    todo: dict[str, ServiceAction]
    #: Whether the project has changed since the selection.
    moved: bool
    #: The containers of these services.
    was: list[Member]
    #: The names of containers that were stopped on purpose and stay stopped.
    stopped: list[str]


@implements(RESTART)
class Restart(RolloutStep[RestartParams]):
    """Repairs services. Replaced or restarted containers show the progress of an earlier attempt."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        docker = engine()
        found = self._inspect(ctx, docker, params)
        before = snapshot(docker, params.project, found.was)
        before |= {"services": sorted(found.todo), "moved": found.moved, "stopped": found.stopped}
        before["todo"] = {name: wanted.model_dump() for name, wanted in found.todo.items()}
        if found.todo:
            before["refs"] |= {ref: docker.image_id(ref) for ref in map(found.target.image, found.todo)}
            before |= way_back.keep(ctx, docker, params.project, found.was, params.no_way_back, found.target)
            unfetched = {name: wanted for name, wanted in found.todo.items() if not wanted.fetch}
            require_images(ctx, docker, _images_of(found.target, unfetched), _REMEDY)
        return before

    def change(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Change:
        docker, project = engine(), params.project
        todo = {name: ServiceAction(**action) for name, action in before["todo"].items()}
        left = sorted(params.services.keys() - todo.keys())
        data: dict[str, Any] = {"project": project, "moved": before["moved"], "left": left, "services": {}}
        if not todo:
            yield Prediction(f"project {project} has no drift", changed=False)
            return data
        listed = "; ".join(f"{name}: {one.do} ({', '.join(one.why)})" for name, one in sorted(todo.items()))
        yield Prediction(f"would repair project {project}: {listed}", undo=before["undo"])
        with project_lock(ctx, docker, project), reported_on_failure(ctx, docker, project):
            source = _source(docker, project)
            target = Compose(ctx, docker).resolve(source, list(todo))
            revisions.save(ctx, "after", target)
            fetched = self._images(ctx, docker, params, before, target, todo)
            rollout = Rollout(ctx, docker, params, before, target)

            def change(waiter: HealthWaiter) -> None:
                rollout.keep_images()
                waiter.may_end = _may_end(target, todo, members_of(before))
                waiter.stopped = {member.key for member in members_of(before) if member.name in before["stopped"]}
                for level in levels({name: _needs(target, name) for name in todo}):
                    self._level(rollout, waiter, source, {name: todo[name].do for name in level})
                    waiter.wait(level)

            now = rollout.within_limits(change, todo)
            point("stacks.restarted")
            rollout.note()
            data["standing"] = [standing(ctx, docker, project)]
        what = difference(before, now)
        data |= {key: what[key] for key in ("created", "recreated", "started", "unchanged")}
        data["services"] = {name: wanted.why for name, wanted in todo.items()}
        return Outcome(changed=fetched or any(what[k] for k in ("created", "recreated", "started")), data=data)

    @staticmethod
    def _inspect(ctx: Context, docker: Engine, params: RestartParams) -> _Found:
        """Inspect the project again: if it has changed since the selection, the actions are derived anew.

        Without `index` there was no selection, and the actions are those of the plan.
        """
        seen, _ = inventory_of(ctx.caches().get(STACK_CACHE + ctx.host.name))
        inspection = InspectParams(stacks=params.stacks, only=params.only)
        look = HostInspection(ctx, docker, inspection, seen, True, seen.remotes if seen else {})
        project = look.look(params.project).projects.get(params.project)
        if project is None:
            raise Preflight(
                f"project {params.project} has no containers any more", remedy="run compose.up.execute first"
            )
        if project.error:
            raise Preflight(f"project {params.project}: {project.error}")
        moved = params.index not in {"", project.fingerprint}
        stale = stale_of(project, retry=params.retry) if moved else {}
        if unknown := sorted(name for name in params.services if not getattr(project.services.get(name), "hash", "")):
            raise Preflight(f"service {unknown[0]} is not in the files of project {params.project}")
        todo = {}
        for name, wanted in params.services.items():
            if not moved or params.asked:
                todo[name] = wanted
            elif name in stale:
                one = stale[name]
                todo[name] = ServiceAction(do=one.action, fetch=wanted.fetch, why=list(map(str, one.reasons)))
        if moved:
            repaired = sorted(params.services.keys() - todo.keys())
            ctx.log(f"project {params.project} has changed since the selection and was inspected again"
                    + (f"; without drift now: {', '.join(repaired)}" if repaired else ""))  # fmt: skip
        target = Compose(ctx, docker).resolve(_source(docker, params.project), list(todo))
        there = members(docker, params.project)
        _add_sharers(target, todo, there)
        was = [member for member in there if member.service in todo]
        stopped = [one.name for name in todo for one in _stopped(project.services[name])]
        return _Found(target, todo, moved, was, stopped)

    @staticmethod
    def _images(
        ctx: Context,
        docker: Engine,
        params: RestartParams,
        before: dict[str, Any],
        target: Resolved,
        todo: dict[str, ServiceAction],
    ) -> bool:
        """Provide all images before the first stop. Returns whether an image was pulled."""
        refs = sorted({target.image(name) for name, wanted in todo.items() if wanted.fetch})
        if refs:
            revisions.keep_images(ctx, docker, target.project, filter(None, before["refs"].values()))
        for number, ref in enumerate(refs):
            login = params.registries.get(registry_of(ref))
            credentials = Login(login.username, login.password) if login else None
            fetch(ctx, docker, ref, credentials, touched=number > 0)
        require_images(ctx, docker, _images_of(target, todo), _REMEDY, touched=bool(refs))
        return any(docker.image_id(ref) != before["refs"].get(ref) for ref in refs)

    @staticmethod
    def _level(rollout: Rollout, waiter: HealthWaiter, source: Source, do: dict[str, str]) -> None:
        """Repair services that do not depend on each other."""
        docker, target, params = rollout.docker, rollout.target, rollout.params
        project = rollout.before["project"]
        was = members_of(rollout.before)
        began = {member.id: member.started_at for member in was}
        there = [member for member in members(docker, project) if member.service in do]
        untouched = {m.service for m in there if m.id in began and m.started_at == began[m.id]}
        anew = [name for name, what in do.items() if what == "redeploy" and name in untouched]
        # Containers that an earlier attempt has redeployed may need a start only.
        up = [name for name, what in do.items() if what == "up" or (what == "redeploy" and name not in untouched)]
        for names, options in ((up, []), (anew, ["--force-recreate"])):
            if names:
                more = command_lines.scale(_more(target, names, was))
                rollout.up_alone(source, names, [*options, *command_lines.timeout(params.grace), *more])
        point("stacks.restarting")
        # Containers that ran are started again; of a service that did not run at all, all containers.
        ran = {member.id: member.running for member in was}
        some = {member.service for member in there if ran.get(member.id)}
        restarted = [m for name, what in do.items() if what == "restart" for m in there if m.service == name]
        restarted = [m for m in restarted if m.id in began and (ran[m.id] or m.service not in some)]
        stop_in_order((m for m in restarted if m.started_at == began[m.id] and m.running), params.grace)
        ids = {member.id for member in restarted}
        everything = members(docker, project)
        start_in_order(waiter, [member for member in everything if member.id in ids], everything)
        # Compose starts all containers of a service, including those that stay stopped.
        stop_in_order(
            (m for m in everything if m.service in do and m.key in waiter.stopped and m.running), params.grace
        )


def _source(docker: Engine, project: str) -> Source:
    found = revisions.recorded_source(project, containers(docker, project))
    if found is None:
        what = f"the labels of the containers of project {project} name no Compose files"
        raise Preflight(what, remedy="bring the project up again with compose.up.execute")
    return found


def _images_of(target: Resolved, todo: dict[str, ServiceAction]) -> list[str]:
    """The images of containers that are created anew."""
    return [target.image(name) for name, wanted in todo.items() if wanted.do != "restart"]


def _needs(target: Resolved, name: str) -> set[str]:
    return set(target.services[name].get("depends_on") or {})


def _stopped(service: Service) -> list[Replica]:
    """Replicas that were stopped on purpose; none if all replicas of the service are stopped."""
    found = [one for one in service.containers if one.by_hand]
    return found if len(found) < len(service.containers) else []


def _may_end(target: Resolved, todo: Iterable[str], was: list[Member]) -> set[str]:
    """Services that may complete and exit: they did not run before and have no always-restart policy."""
    ran = {member.service for member in was if member.running}
    restarted = {
        name for name, config in target.services.items() if config.get("restart") in {"always", "unless-stopped"}
    }
    return set(todo) - ran - restarted


def _add_sharers(target: Resolved, todo: dict[str, ServiceAction], there: list[Member]) -> None:
    """Add running services that share a namespace with a container that is replaced or restarted."""
    running = {member.service for member in there if member.running}
    found = True
    while found:
        found = False
        for name in running - todo.keys():
            for key in ("network_mode", "ipc", "pid"):
                kind, _, other = str(target.services.get(name, {}).get(key) or "").partition(":")
                if kind == "service" and other in todo and name not in todo:
                    do: Literal["restart", "redeploy"] = "restart" if todo[other].do == "restart" else "redeploy"
                    todo[name] = ServiceAction(do=do, why=[f"shares the {key} of {other}"])
                    found = True


def _more(target: Resolved, names: list[str], was: list[Member]) -> dict[str, int]:
    """The counts of services with more containers than the files specify, which stay."""
    counts = {name: sum(member.service == name for member in was) for name in names}
    return {name: count for name, count in counts.items() if count > target.replicas(name)}
