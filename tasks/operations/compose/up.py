"""`compose.up`: the step reads the state from the engine, and the Compose program applies the changes."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import Preflight
from longshore.orchestration.operations.compose import UP
from longshore.orchestration.operations.compose_params import UpParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Change, Context, Outcome, Prediction, implements
from longshore.tasks.operations.compose import revisions, way_back
from longshore.tasks.operations.compose.cli import Compose, Resolved
from longshore.tasks.operations.compose.project import project_lock, snapshot, source_for
from longshore.tasks.operations.compose.rollout import Rollout, RolloutStep, difference, reasons
from longshore.tasks.operations.compose.standing import reported_on_failure, standing
from longshore.tasks.operations.compose.state import Member, members, to_do
from longshore.tasks.operations.docker.registry import fetch, login_of, require_images

_REMEDY = "pull or build it in an earlier step, or set pull: missing"


@implements(UP)
class Up(RolloutStep[UpParams]):
    """Brings services up. The undo restores the former configuration from its stored file, without pulls."""

    def before(self, ctx: Context, params: UpParams) -> dict[str, Any]:
        docker = engine()
        target = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
        project, services = target.project, target.with_dependencies(params.services)
        refs = list(map(target.image, services))
        if params.pull == "never":
            require_images(ctx, docker, refs, _REMEDY)
        found = members(docker, project)
        orphans = self._orphans(ctx, params, target, found)
        todo = to_do(docker, target, services, found) | dict.fromkeys(orphans, "no longer in the files")
        scope = {*services, *orphans}
        found = [member for member in found if member.service in scope]
        before = snapshot(docker, project, found) | {"services": sorted(scope), "todo": todo}
        before["refs"] |= {ref: docker.image_id(ref) for ref in refs}
        policy = params.no_way_back if params.pull == "always" or todo else "accept"
        return before | way_back.keep(ctx, docker, project, found, policy, target)

    def change(self, ctx: Context, params: UpParams, before: dict[str, Any]) -> Change:
        project, todo = before["project"], before["todo"]
        if todo:
            yield Prediction(f"would bring up {project} ({reasons(todo)})", undo=before["undo"])
        else:
            unknown = ctx.has_upstream or params.pull == "always"
            yield Prediction(f"project {project} is up and matches its files", changed=None if unknown else False)
        docker, compose = engine(), Compose(ctx, engine())
        with project_lock(ctx, docker, project), reported_on_failure(ctx, docker, project):
            source = source_for(docker, params)
            target = compose.resolve(source, params.services)
            path = revisions.save(ctx, "after", target)
            self._images(ctx, docker, params, before, target)
            # The rollout compares again: images may have been pulled, and an earlier attempt may have acted.
            orphans = self._orphans(ctx, params, target, members(docker, project))
            options = ["--remove-orphans"] if params.remove_orphans else []
            rollout = Rollout(ctx, docker, params, before, target, params.max_parallel)
            now = rollout.run(source, params.services, options, also=bool(orphans))
            rollout.note()
            stands = [standing(ctx, docker, project)]
        data = difference(before, now) | {"project": project, "revision": str(path), "standing": stands}
        changed = any(data[what] for what in ("created", "recreated", "started", "removed"))
        pulled = params.pull != "never" and any(docker.image_id(r) != i for r, i in before["refs"].items())
        return Outcome(changed=changed or pulled, data=data)

    @staticmethod
    def _orphans(ctx: Context, params: UpParams, target: Resolved, found: list[Member]) -> list[str]:
        if not params.remove_orphans:
            return []
        known = Compose(ctx, engine()).services(target.source)
        return sorted({member.service for member in found if member.service not in known})

    @staticmethod
    def _images(ctx: Context, docker: Engine, params: UpParams, before: dict[str, Any], target: Resolved) -> None:
        """Provide all images before the first stop."""
        refs = list(dict.fromkeys(map(target.image, target.with_dependencies(params.services))))
        wanted = [ref for ref in refs if params.pull == "always" or docker.image_id(ref) is None]
        if wanted and params.pull != "never":
            revisions.keep_images(ctx, docker, target.project, filter(None, before["refs"].values()))
            try:
                for number, ref in enumerate(wanted):
                    fetch(ctx, docker, ref, login_of(params), touched=number > 0)
            except Preflight:
                revisions.release_images(ctx, docker, target.project, filter(None, before["refs"].values()))
                raise
        require_images(ctx, docker, refs, _REMEDY, touched=bool(wanted) and params.pull != "never")
