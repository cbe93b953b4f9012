"""`compose.up`: the step reads the state from the engine, and the Compose program applies the changes."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import Preflight
from longshore.orchestration.operations.compose import UP, UpParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context, Outcome, Prediction, implements, obstacle, unfit
from longshore.tasks.operations.compose import revisions, way_back
from longshore.tasks.operations.compose.cli import Compose, Resolved
from longshore.tasks.operations.compose.project import project_lock, snapshot, source_for
from longshore.tasks.operations.compose.rollout import Rollout, RolloutStep, difference, predicted
from longshore.tasks.operations.compose.standing import reported_on_failure, standing
from longshore.tasks.operations.compose.state import Member, members, to_do
from longshore.tasks.operations.docker.registry import fetch, login_of


@implements(UP)
class Up(RolloutStep[UpParams]):
    """Brings services up. The undo restores the former configuration from its stored file, without pulls."""

    def before(self, ctx: Context, params: UpParams) -> dict[str, Any]:
        docker = engine()
        target = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
        project, services = target.project, target.with_dependencies(params.services)
        found = members(docker, project)
        scope = {*services, *self._orphans(ctx, params, target, found)}
        found = [member for member in found if member.service in scope]
        before = snapshot(docker, project, found) | {"services": sorted(scope)}
        before["refs"] |= {ref: docker.image_id(ref) for ref in map(target.image, services)}
        way, kept = way_back.keep(ctx, docker, project, found, target)
        if params.pull == "always" or to_do(docker, target, services, found) or scope - {*services}:
            way.require(params.no_way_back)
        return before | kept

    def act(self, ctx: Context, params: UpParams, before: dict[str, Any]) -> Outcome:
        docker, compose = engine(), Compose(ctx, engine())
        project = before["project"]
        with project_lock(ctx, docker, project), reported_on_failure(ctx, docker, project):
            source = source_for(docker, params)
            target = compose.resolve(source, params.services)
            path = revisions.save(ctx, "after", target)
            self._images(ctx, docker, params, before, target)
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

    def predict(self, ctx: Context, params: UpParams) -> Prediction:
        # Apart from `act`: the step proves its way back before the journal.
        docker = engine()
        try:
            target = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
        except Preflight as error:
            return obstacle(ctx, str(error))
        project, services = target.project, target.with_dependencies(params.services)
        missing = [ref for ref in map(target.image, services) if docker.image_id(ref) is None]
        if missing and params.pull == "never":
            return obstacle(ctx, f"image {missing[0]} is not on the Docker host")
        found = members(docker, project)
        orphans = self._orphans(ctx, params, target, found)
        why = to_do(docker, target, services, found) | dict.fromkeys(orphans, "no longer in the files")
        if not why:
            unknown = ctx.has_upstream or params.pull == "always"
            action = f"project {project} is up and matches its files"
            return Prediction(action, changed=None if unknown else False)
        listed = "; ".join(f"{name}: {reason}" for name, reason in why.items())
        mine = [member for member in found if member.service in {*services, *orphans}]
        way = way_back.find(ctx, docker, project, mine, target)
        return predicted(ctx, params, way, f"would bring up {project} ({listed})")

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
        lacking = [ref for ref in refs if docker.image_id(ref) is None]
        if lacking:
            remedy = "pull or build it in an earlier step, or set pull: missing"
            touched = bool(wanted) and params.pull != "never"
            raise unfit(ctx, f"image {lacking[0]} is not on the Docker host", remedy, touched=touched)
