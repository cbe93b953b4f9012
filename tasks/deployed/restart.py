"""`deployed.restart`: services of a project brought right, and nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longshore.orchestration.deployed.images import registry_of
from longshore.orchestration.deployed.stale import Stale, stale_of
from longshore.orchestration.deployed.state import CACHE, Project, seen_in
from longshore.orchestration.errors import Preflight
from longshore.orchestration.operations.deployed import RESTART, LookParams, RestartParams, Wanted
from longshore.tasks.compose import revisions
from longshore.tasks.compose.bringing import UNKNOWN, Bringing, difference, former, keep_former
from longshore.tasks.compose.cli import Compose, Resolved, Source
from longshore.tasks.compose.scope import alone, failing, members_of, snapshot
from longshore.tasks.compose.state import Gate, Member, containers, levels, members, start_in_order, stop_in_order
from longshore.tasks.crash import point
from longshore.tasks.deployed.survey import Survey
from longshore.tasks.docker.registry import fetch
from longshore.tasks.engine import Engine, Login, engine
from longshore.tasks.operation import Context, Implementation, Outcome, Prediction, implements, unfit


@dataclass(frozen=True)
class _Found:
    """The project as it is now, and what is to be done about it."""

    source: Source
    todo: dict[str, Wanted]
    #: It is another than when its services were selected.
    moved: bool
    project: Project


@implements(RESTART)
class Restart(Implementation[RestartParams]):
    """What a killed attempt has done is known by the containers that are not there any more, or were started since."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        docker = engine()
        found = self._look(ctx, docker, params)
        names = sorted(found.todo)
        was = [member for member in members(docker, params.project) if member.service in names]
        before = snapshot(docker, params.project, was)
        before |= {"services": names, "moved": found.moved, "revision": False}
        before["todo"] = {name: wanted.model_dump() for name, wanted in found.todo.items()}
        if names:
            target = Compose(ctx, docker).resolve(found.source, names)
            before["refs"] |= {ref: docker.image_id(ref) for ref in map(target.image, names)}
            before["revision"] = keep_former(ctx, docker, params.project, was, target)
        return before

    def act(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Outcome:
        docker, project = engine(), params.project
        todo = {name: Wanted(**said) for name, said in before["todo"].items()}
        left = sorted(params.services.keys() - todo.keys())
        data: dict[str, Any] = {"project": project, "moved": before["moved"], "left": left, "services": {}}
        if not todo:
            return Outcome(changed=False, data=data)
        point("deployed.chosen")
        with alone(ctx, docker, project):
            source = _source(docker, project)
            target = Compose(ctx, docker).resolve(source, list(todo))
            revisions.save(ctx, "after", target)
            fetched = self._images(ctx, docker, params, before, target, todo)
            bringing = Bringing(ctx, docker, params, before, target)

            def change(gate: Gate) -> None:
                bringing.keep_images()
                for level in levels({name: _needs(target, name) for name in todo}):
                    self._level(bringing, gate, source, {name: todo[name].do for name in level})
                    gate.wait(level)

            now = bringing.carefully(change, todo)
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
            if not found.todo:
                return Prediction(f"project {params.project} is right as it is", changed=False)
            target = Compose(ctx, docker).resolve(found.source, list(found.todo))
        except Preflight as error:
            return failing(ctx, "bring right", str(error))
        missing = [
            name for name, one in found.todo.items() if not one.fetch and not docker.image_id(target.image(name))
        ]
        if missing:
            return failing(ctx, "bring right", f"image {target.image(missing[0])} is not on the Docker host")
        listed = "; ".join(f"{name}: {one.do} ({', '.join(one.why)})" for name, one in sorted(found.todo.items()))
        was = [member for member in members(docker, params.project) if member.service in found.todo]
        known = not was or former(ctx, docker, params.project, was, target)
        undo = "bring back the former configuration and images" if known else "none: " + UNKNOWN.format(params.project)
        return Prediction(f"would bring {params.project} right: {listed}", undo=undo)

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), params.project
        with alone(ctx, docker, project):
            known = revisions.brought(ctx, project)
            return Outcome(changed=bool(known) and revisions.restore(ctx, docker, before, known=known))

    @staticmethod
    def _look(ctx: Context, docker: Engine, params: RestartParams) -> _Found:
        """Again: what it was selected by may not be so any more, and then it is not applied blindly."""
        seen, _ = seen_in(ctx.caches().get(CACHE + ctx.host.name))
        said = LookParams(stacks=params.stacks, only=params.only)
        look = Survey(ctx, docker, said, seen, True, seen.remotes if seen else {})
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
        return _Found(_source(docker, params.project), todo, moved, project)

    @staticmethod
    def _images(
        ctx: Context,
        docker: Engine,
        params: RestartParams,
        before: dict[str, Any],
        target: Resolved,
        todo: dict[str, Wanted],
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
    def _level(bringing: Bringing, gate: Gate, source: Source, do: dict[str, str]) -> None:
        """Services that do not need each other."""
        docker, target, params = bringing.docker, bringing.target, bringing.params
        project = bringing.before["project"]
        began = {member.id: member.started_at for member in members_of(bringing.before)}
        there = [member for member in members(docker, project) if member.service in do]

        def untouched(name: str) -> list[Member]:
            return [m for m in there if m.service == name and m.id in began and m.started_at == began[m.id]]

        grace = [] if params.grace is None else ["--timeout", str(round(params.grace))]
        for options, names in (
            ([], [name for name, what in do.items() if what == "up"]),
            (["--force-recreate"], [name for name, what in do.items() if what == "redeploy" and untouched(name)]),
        ):
            if names:
                bringing.up_alone(source, names, [*options, *grace, *_scale(target, names, there)])
        again = [m for name, what in do.items() if what == "restart" for m in untouched(name) if m.running]
        point("deployed.half")
        stop_in_order(again, params.grace)
        everything = members(docker, project)
        start_in_order(gate, [m for m in everything if do.get(m.service) == "restart" and m.id in began], everything)


def wanted_of(stale: Stale, *, fetch: bool | None = None) -> Wanted:
    """What brings it right."""
    return Wanted(do=stale.action, fetch=stale.fetch if fetch is None else fetch, why=list(map(str, stale.reasons)))


def _source(docker: Engine, project: str) -> Source:
    found = revisions.recorded_source(project, containers(docker, project))
    if found is None:
        raise Preflight(f"the containers of project {project} do not say which files they were made from")
    return found


def _needs(target: Resolved, name: str) -> set[str]:
    return set(target.services[name].get("depends_on") or {})


def _scale(target: Resolved, names: list[str], there: list[Member]) -> list[str]:
    """More containers than the files say are somebody's wish."""
    counts = {name: sum(member.service == name for member in there) for name in names}
    more = {name: count for name, count in counts.items() if count > target.replicas(name)}
    return [word for name, count in more.items() for word in ("--scale", f"{name}={count}")]
