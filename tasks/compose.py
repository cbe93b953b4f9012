"""`compose.up` and `compose.down`. State is read from the engine; Compose's own program makes the changes."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.compose import DOWN, UP, DownParams, UpParams
from longshore.tasks import compose_power  # noqa: F401 - the other two are known with these
from longshore.tasks import compose_revisions as revisions
from longshore.tasks.compose_cli import PROJECT, Compose, Resolved, Source
from longshore.tasks.compose_scope import alone, failing, members_of, named, names, snapshot, source_for
from longshore.tasks.compose_state import Gate, Member, containers, members, to_do
from longshore.tasks.engine import Engine, engine
from longshore.tasks.operation import Context, Implementation, Outcome, Prediction, implements

_UNKNOWN = "the configuration that project {} runs with is not to be had any more"


def _former(
    ctx: Context, docker: Engine, project: str, found: list[Member], likely: Resolved | None
) -> Resolved | None:
    recorded = revisions.recorded_source(project, containers(docker, project)) or Source(project)
    return revisions.former(ctx, Compose(ctx, docker), found, recorded, likely)


def _keep_former(ctx: Context, docker: Engine, project: str, found: list[Member], likely: Resolved | None) -> bool:
    """Keep the configuration that the containers were made from, for the undo."""
    was = _former(ctx, docker, project, found, likely)
    if was is not None:
        revisions.save(ctx, "before", was)
    elif found:
        ctx.log(f"{_UNKNOWN.format(project)}: this step cannot be undone")
    return was is not None


@implements(UP)
class Up(Implementation[UpParams]):
    """Its undo brings back the former configuration out of the file that was kept, and pulls nothing."""

    def before(self, ctx: Context, params: UpParams) -> dict[str, Any]:
        docker = engine()
        target = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
        project, services = target.project, target.with_dependencies(params.services)
        found = members(docker, project)
        scope = {*services, *self._orphans(params, target, found)}
        found = [member for member in found if member.service in scope]
        before = snapshot(docker, project, found) | {"services": sorted(scope)}
        before["refs"] |= {ref: docker.image_id(ref) for ref in map(target.image, services)}
        return before | {"revision": _keep_former(ctx, docker, project, found, target)}

    def act(self, ctx: Context, params: UpParams, before: dict[str, Any]) -> Outcome:
        docker, compose = engine(), Compose(ctx, engine())
        project, was = before["project"], members_of(before)
        with alone(ctx, docker, project):
            source = source_for(docker, params)
            target = compose.resolve(source, params.services)
            services = target.with_dependencies(params.services)
            path = revisions.save(ctx, "after", target)
            self._images(ctx, docker, params, before, target)
            found = members(docker, project)
            orphans = self._orphans(params, target, found)
            if orphans or to_do(docker, target, services, found):
                revisions.keep_images(ctx, docker, project, (member.image_id for member in was))
                options = ["--remove-orphans"] if params.remove_orphans else []
                options += [] if params.grace is None else ["--timeout", str(round(params.grace))]
                compose.up(source, params.services, options)
            gate = Gate(ctx, docker, project, params.healthy_deadline, params.min_healthy_time, target.jobs())
            gate.steady = {member.id: member.started_at for member in was if member.running}
            gate.wait(services)
            now = [member for member in members(docker, project) if member.service in before["services"]]
        data = self._difference(was, now) | {"project": project, "revision": str(path)}
        changed = any(data[what] for what in ("created", "recreated", "started", "removed"))
        pulled = params.pull != "never" and any(docker.image_id(r) != i for r, i in before["refs"].items())
        return Outcome(changed=changed or pulled, data=data)

    def predict(self, ctx: Context, params: UpParams) -> Prediction:
        docker = engine()
        try:
            target = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
        except Preflight as error:
            return failing(ctx, "bring up", str(error))
        project, services = target.project, target.with_dependencies(params.services)
        missing = [ref for ref in map(target.image, services) if docker.image_id(ref) is None]
        if missing and params.pull == "never":
            return failing(ctx, "bring up", f"image {missing[0]} is not on the Docker host")
        found = members(docker, project)
        orphans = self._orphans(params, target, found)
        why = to_do(docker, target, services, found) | dict.fromkeys(orphans, "not in the files any more")
        if not why:
            unknown = ctx.has_upstream or params.pull == "always"
            action = f"project {project} is up and as its files say"
            return Prediction(action, changed=None if unknown else False)
        listed = "; ".join(f"{name}: {reason}" for name, reason in why.items())
        undo = "take it down again; its volumes stay"
        mine = [member for member in found if member.service in {*services, *orphans}]
        if mine:
            known = _former(ctx, docker, project, mine, target)
            undo = "bring back the former configuration and images" if known else "none: " + _UNKNOWN.format(project)
        return Prediction(f"would bring up {project} ({listed})", undo=undo)

    def undo(self, ctx: Context, params: UpParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        with alone(ctx, docker, project):
            known = revisions.load(revisions.path_of(ctx, project, "after"))
            if known is None:
                return Outcome(changed=False)  # it is kept before anything is touched
            done = revisions.restore(ctx, docker, before, known=known, pulled=params.pull != "never")
        return Outcome(changed=done)

    @staticmethod
    def _orphans(params: UpParams, target: Resolved, found: list[Member]) -> list[str]:
        if not params.remove_orphans:
            return []
        return sorted({member.service for member in found if member.service not in target.services})

    @staticmethod
    def _images(ctx: Context, docker: Engine, params: UpParams, before: dict[str, Any], target: Resolved) -> None:
        """All images are here before anything is stopped."""
        services = target.with_dependencies(params.services)
        refs = dict.fromkeys(map(target.image, services))
        lacking = [ref for ref in refs if docker.image_id(ref) is None]
        if params.pull == "always" or (params.pull == "missing" and lacking):
            revisions.keep_images(ctx, docker, target.project, filter(None, before["refs"].values()))
            Compose(ctx, docker).pull(target.source, services, params.pull)
            lacking = [ref for ref in refs if docker.image_id(ref) is None]
        if lacking:
            # A second attempt proves nothing: the first may have gone further.
            error = Preflight if ctx.attempt == 1 else OperationError
            remedy = "pull or build it in a step before, or say pull: missing"
            raise error(f"image {lacking[0]} is not on the Docker host", remedy=remedy)

    @staticmethod
    def _difference(was: list[Member], now: list[Member]) -> dict[str, Any]:
        old, new = {member.key: member for member in was}, {member.key: member for member in now}
        both = [(old[key], new[key]) for key in new if key in old]
        started = [n for o, n in both if o.id == n.id and o.started_at != n.started_at]
        return {
            "created": [n.name for key, n in new.items() if key not in old],
            "recreated": [n.name for o, n in both if o.id != n.id],
            "started": [n.name for n in started],
            "removed": [o.name for key, o in old.items() if key not in new],
            "unchanged": [n.name for o, n in both if o.id == n.id and n not in started],
            "containers": [n.as_result() for n in now],
        }


@implements(DOWN)
class Down(Implementation[DownParams]):
    """Takes down what its undo can bring back; what no file tells of stays, unless orphans are named."""

    def before(self, ctx: Context, params: DownParams) -> dict[str, Any]:
        docker = engine()
        project, resolved = named(ctx, docker, params)
        found = self._mine(params, resolved, members(docker, project))
        before = snapshot(docker, project, found) | {"services": sorted({member.service for member in found})}
        return before | {"revision": _keep_former(ctx, docker, project, found, resolved)}

    def act(self, ctx: Context, params: DownParams, before: dict[str, Any]) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with alone(ctx, docker, project):
            if members(docker, project) or docker.networks({PROJECT: project}):
                revisions.keep_images(ctx, docker, project, (member.image_id for member in was))
                source = Source(project)  # then all goes that bears the project's label
                if before["revision"]:
                    path = revisions.path_of(ctx, project, "before")
                    source = Source(project, None, (str(path),), (), ("*",))
                Compose(ctx, docker).down(source, params.grace, orphans=params.remove_orphans)
            left = {member.key for member in members(docker, project)}
            networks = docker.networks({PROJECT: project}).values()
        removed = [member.name for member in was if member.key not in left]
        changed = bool(removed) or any(name not in networks for name in before["networks"])
        return Outcome(changed=changed, data={"project": project, "removed": removed})

    def predict(self, ctx: Context, params: DownParams) -> Prediction:
        docker = engine()
        try:
            project, resolved = named(ctx, docker, params)
        except Preflight as error:
            return failing(ctx, "take down", str(error))
        found = self._mine(params, resolved, members(docker, project))
        if not found:
            changed = None if ctx.has_upstream else bool(docker.networks({PROJECT: project}))
            return Prediction(f"project {project} has no containers", changed=changed)
        known = _former(ctx, docker, project, found, resolved)
        undo = "make the containers again, with the same volumes, and start those that ran"
        return Prediction(f"would remove {names(found)}", undo=undo if known else "none: " + _UNKNOWN.format(project))

    def undo(self, ctx: Context, params: DownParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        if not before["containers"]:
            return Outcome(changed=False)
        with alone(ctx, docker, project):
            done = revisions.restore(ctx, docker, before, known=None)
        return Outcome(changed=done)

    @staticmethod
    def _mine(params: DownParams, resolved: Resolved | None, found: list[Member]) -> list[Member]:
        """Those that go; orphans only if that is said, or no file says what is one."""
        if resolved is None or params.remove_orphans:
            return found
        return [member for member in found if member.service in resolved.services]
