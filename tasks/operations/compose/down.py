"""`compose.down`: removes the containers and networks of a project that its undo can create again."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import Preflight
from longshore.orchestration.operations.compose import DOWN, DownParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements, obstacle
from longshore.tasks.operations.compose import restoration, revisions, way_back
from longshore.tasks.operations.compose.cli import PROJECT, Compose, Resolved, Source
from longshore.tasks.operations.compose.project import members_of, named, names, project_lock, snapshot
from longshore.tasks.operations.compose.state import Member, members


@implements(DOWN)
class Down(Implementation[DownParams]):
    """Removes the containers of a project; orphans, which are in no file, only with `remove_orphans`."""

    def before(self, ctx: Context, params: DownParams) -> dict[str, Any]:
        docker = engine()
        project, resolved = named(ctx, docker, params)
        found = self._mine(params, resolved, members(docker, project))
        before = snapshot(docker, project, found) | {"services": sorted({member.service for member in found})}
        way, kept = way_back.keep(ctx, docker, project, found, resolved)
        way.require(params.no_way_back)
        return before | kept

    def act(self, ctx: Context, params: DownParams, before: dict[str, Any]) -> Outcome:
        docker, project, was = engine(), before["project"], members_of(before)
        with project_lock(ctx, docker, project):
            if members(docker, project) or docker.networks({PROJECT: project}):
                revisions.keep_images(ctx, docker, project, (member.image_id for member in was))
                source = Source(project)  # without a revision, everything with the project's label is removed
                path = revisions.path_of(ctx, project, "before")
                former = revisions.load(path) if before["revision"] else None
                if former is not None and not former.containers:
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
            return obstacle(ctx, str(error))
        found = self._mine(params, resolved, members(docker, project))
        if not found:
            changed = None if ctx.has_upstream else bool(docker.networks({PROJECT: project}))
            return Prediction(f"project {project} has no containers", changed=changed)
        way = way_back.find(ctx, docker, project, found, resolved)
        if way.why_not and params.no_way_back != "accept":
            return obstacle(ctx, f"no way back: {way.why_not}")
        undo = "create the containers again, with the same volumes, and start those that ran"
        return Prediction(f"would remove {names(found)}", undo=way.undo if way.why_not else undo)

    def undo(self, ctx: Context, params: DownParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, project = engine(), before["project"]
        if not before["containers"]:
            return Outcome(changed=False)
        with project_lock(ctx, docker, project):
            return restoration.take_back(ctx, docker, before, grace=params.grace)

    @staticmethod
    def _mine(params: DownParams, resolved: Resolved | None, found: list[Member]) -> list[Member]:
        """The containers to remove; orphans only with `remove_orphans`, or if the files are unknown."""
        if resolved is None or params.remove_orphans:
            return found
        return [member for member in found if member.service in resolved.services]
