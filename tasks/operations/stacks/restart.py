"""`stacks.restart`: services of a project brought right, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from longshore.orchestration.errors import Preflight
from longshore.orchestration.operations.stacks import RESTART, InspectParams, RestartParams, ServiceAction
from longshore.orchestration.stacks.drift import Stale, stale_of
from longshore.orchestration.stacks.image_names import registry_of
from longshore.orchestration.stacks.inventory import Replica, Service, inventory_of
from longshore.orchestration.store.caches import CACHE
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine, Login
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements, unfit
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.project import failing, members_of, project_lock, snapshot
from longshore.tasks.operations.compose.rollout import UNKNOWN, Rollout, difference, former, keep_former
from longshore.tasks.operations.compose.state import (
    HealthWaiter,
    Member,
    containers,
    levels,
    members,
    start_in_order,
    stop_in_order,
)
from longshore.tasks.operations.docker.registry import fetch
from longshore.tasks.operations.stacks.inspect_host import HostInspection


@dataclass(frozen=True)
class _Found:
    """The project as it is now, and what is to be done about it."""

    target: Resolved
    todo: dict[str, ServiceAction]
    #: It is another than when its services were selected.
    moved: bool
    #: Its containers of these services.
    was: list[Member]
    #: Of those, names of what somebody has stopped: it stays so.
    stopped: list[str]


@implements(RESTART)
class Restart(Implementation[RestartParams]):
    """What a killed attempt has done is known by the containers that are not there any more, or were started since."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        docker = engine()
        found = self._look(ctx, docker, params)
        before = snapshot(docker, params.project, found.was)
        before |= {"services": sorted(found.todo), "moved": found.moved, "stopped": found.stopped, "revision": False}
        before["todo"] = {name: wanted.model_dump() for name, wanted in found.todo.items()}
        if found.todo:
            before["refs"] |= {ref: docker.image_id(ref) for ref in map(found.target.image, found.todo)}
            before["revision"] = keep_former(ctx, docker, params.project, found.was, found.target)
        return before

    def act(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Outcome:
        docker, project = engine(), params.project
        todo = {name: ServiceAction(**said) for name, said in before["todo"].items()}
        left = sorted(params.services.keys() - todo.keys())
        data: dict[str, Any] = {"project": project, "moved": before["moved"], "left": left, "services": {}}
        if not todo:
            return Outcome(changed=False, data=data)
        with project_lock(ctx, docker, project):
            source = _source(docker, project)
            target = Compose(ctx, docker).resolve(source, list(todo))
            revisions.save(ctx, "after", target)
            fetched = self._images(ctx, docker, params, before, target, todo)
            bringing = Rollout(ctx, docker, params, before, target)

            def change(gate: HealthWaiter) -> None:
                bringing.keep_images()
                gate.may_end = _may_end(target, todo, members_of(before))
                gate.stopped = {member.key for member in members_of(before) if member.name in before["stopped"]}
                for level in levels({name: _needs(target, name) for name in todo}):
                    self._level(bringing, gate, source, {name: todo[name].do for name in level})
                    gate.wait(level)

            now = bringing.within_limits(change, todo)
            point("deployed.brought")
            revisions.note(ctx, docker, target)
        what = difference(before, now)
        data |= {key: what[key] for key in ("created", "recreated", "started", "unchanged")}
        data["services"] = {name: wanted.why for name, wanted in todo.items()}
        return Outcome(changed=fetched or any(what[k] for k in ("created", "recreated", "started")), data=data)

    def predict(self, ctx: Context, params: RestartParams) -> Prediction:
        docker = engine()
        try:
            found = self._look(ctx, docker, params)
        except Preflight as error:
            return failing(ctx, "bring right", str(error))
        if not found.todo:
            return Prediction(f"project {params.project} is right as it is", changed=False)
        made = [name for name, one in found.todo.items() if not one.fetch and one.do != "restart"]
        missing = [name for name in made if not docker.image_id(found.target.image(name))]
        if missing:
            return failing(ctx, "bring right", f"image {found.target.image(missing[0])} is not on the Docker host")
        listed = "; ".join(f"{name}: {one.do} ({', '.join(one.why)})" for name, one in sorted(found.todo.items()))
        known = not found.was or former(ctx, docker, params.project, found.was, found.target)
        undo = "bring back the former configuration and images" if known else "none: " + UNKNOWN.format(params.project)
        return Prediction(f"would bring {params.project} right: {listed}", undo=undo)

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), params.project
        with project_lock(ctx, docker, project):
            known = revisions.brought(ctx, project)
            done = bool(known) and revisions.restore(ctx, docker, before, known=known, grace=params.grace)
        return Outcome(changed=done)

    @staticmethod
    def _look(ctx: Context, docker: Engine, params: RestartParams) -> _Found:
        """Again: what it was selected by may not be so any more, and then it is not applied blindly."""
        seen, _ = inventory_of(ctx.caches().get(CACHE + ctx.host.name))
        said = InspectParams(stacks=params.stacks, only=params.only)
        look = HostInspection(ctx, docker, said, seen, True, seen.remotes if seen else {})
        project = look.look(params.project).projects.get(params.project)
        if project is None:
            raise Preflight(f"project {params.project} has no container any more", remedy="compose.up.execute makes it")
        if project.error:
            raise Preflight(f"project {params.project}: {project.error}")
        moved = project.fingerprint != params.index
        stale = stale_of(project) if moved else {}
        if unknown := sorted(name for name in params.services if not getattr(project.services.get(name), "hash", "")):
            raise Preflight(f"the files of project {params.project} tell nothing of {unknown[0]} any more")
        todo = {}
        for name, wanted in params.services.items():
            if not moved or params.asked:
                todo[name] = wanted
            elif name in stale:
                todo[name] = wanted_of(stale[name], fetch=wanted.fetch)
        if moved and params.index:
            gone = sorted(params.services.keys() - todo.keys())
            ctx.log(f"project {params.project} is not as it was when this was selected: looked again"
                    + (f"; right by now: {', '.join(gone)}" if gone else ""))  # fmt: skip
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
        """All are here before anything is stopped. Whether one was fetched."""
        refs = sorted({target.image(name) for name, wanted in todo.items() if wanted.fetch})
        if refs:
            revisions.keep_images(ctx, docker, target.project, filter(None, before["refs"].values()))
        for number, ref in enumerate(refs):
            login = params.registries.get(registry_of(ref))
            asked = Login(login.username, login.password) if login else None
            fetch(ctx, docker, ref, asked, touched=number > 0)
        for name, wanted in todo.items():
            if wanted.do != "restart" and docker.image_id(target.image(name)) is None:
                remedy = "pull or build it before, or look at its registry, too: --registry"
                raise unfit(ctx, f"image {target.image(name)} is not on the Docker host", remedy, touched=bool(refs))
        return any(docker.image_id(ref) != before["refs"].get(ref) for ref in refs)

    @staticmethod
    def _level(bringing: Rollout, gate: HealthWaiter, source: Source, do: dict[str, str]) -> None:
        """Services that do not need each other."""
        docker, target, params = bringing.docker, bringing.target, bringing.params
        project = bringing.before["project"]
        was = members_of(bringing.before)
        began = {member.id: member.started_at for member in was}
        there = [member for member in members(docker, project) if member.service in do]
        untouched = {m.service for m in there if m.id in began and m.started_at == began[m.id]}
        grace = [] if params.grace is None else ["--timeout", str(round(params.grace))]
        anew = [name for name, what in do.items() if what == "redeploy" and name in untouched]
        # What an attempt before this one has begun to make anew may have to be started.
        up = [name for name, what in do.items() if what == "up" or (what == "redeploy" and name not in untouched)]
        for names, options in ((up, []), (anew, ["--force-recreate"])):
            if names:
                bringing.up_alone(source, names, [*options, *grace, *_scale(target, names, was)])
        point("deployed.half")
        # What ran is started again; of what stood as a whole, all of it.
        ran = {member.id: member.running for member in was}
        some = {member.service for member in there if ran.get(member.id)}
        restarted = [m for name, what in do.items() if what == "restart" for m in there if m.service == name]
        restarted = [m for m in restarted if m.id in began and (ran[m.id] or m.service not in some)]
        stop_in_order((m for m in restarted if m.started_at == began[m.id] and m.running), params.grace)
        ids = {member.id for member in restarted}
        everything = members(docker, project)
        start_in_order(gate, [member for member in everything if member.id in ids], everything)
        # Compose starts all of a service.
        stop_in_order((m for m in everything if m.service in do and m.key in gate.stopped and m.running), params.grace)


def wanted_of(stale: Stale, *, fetch: bool | None = None) -> ServiceAction:
    """What brings it right."""
    return ServiceAction(
        do=stale.action, fetch=stale.fetch if fetch is None else fetch, why=list(map(str, stale.reasons))
    )


def _source(docker: Engine, project: str) -> Source:
    found = revisions.recorded_source(project, containers(docker, project))
    if found is None:
        raise Preflight(f"the containers of project {project} do not say which files they were made from")
    return found


def _needs(target: Resolved, name: str) -> set[str]:
    return set(target.services[name].get("depends_on") or {})


def _stopped(service: Service) -> list[Replica]:
    """Replicas that somebody has stopped while others are there; of a service that stands as a whole none."""
    found = [one for one in service.containers if one.by_hand]
    return found if len(found) < len(service.containers) else []


def _may_end(target: Resolved, todo: Iterable[str], was: list[Member]) -> set[str]:
    """Services that may do their work and end: they did not run before, and do not come back by themselves."""
    ran = {member.service for member in was if member.running}
    back = {name for name, said in target.services.items() if said.get("restart") in {"always", "unless-stopped"}}
    return set(todo) - ran - back


def _add_sharers(target: Resolved, todo: dict[str, ServiceAction], there: list[Member]) -> None:
    """What runs in the name space of another one's container is cut off when that is replaced or restarted."""
    running = {member.service for member in there if member.running}
    found = True
    while found:
        found = False
        for name in running - todo.keys():
            for key in ("network_mode", "ipc", "pid"):
                kind, _, other = str(target.services.get(name, {}).get(key) or "").partition(":")
                if kind == "service" and other in todo and name not in todo:
                    do: Literal["restart", "redeploy"] = "restart" if todo[other].do == "restart" else "redeploy"
                    todo[name] = ServiceAction(do=do, why=[f"it has the {key} of {other}"])
                    found = True


def _scale(target: Resolved, names: list[str], was: list[Member]) -> list[str]:
    """More containers than the files say are somebody's wish."""
    counts = {name: sum(member.service == name for member in was) for name in names}
    more = {name: count for name, count in counts.items() if count > target.replicas(name)}
    return [word for name, count in more.items() for word in ("--scale", f"{name}={count}")]
