"""`compose.down`: removes the containers and networks of a project that its undo can create again."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.compose import DOWN
from longshore.orchestration.operations.compose_params import DownParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements
from longshore.tasks.operations.compose import command_lines, restoration, revisions, way_back
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
        return before | way_back.keep(ctx, docker, project, found, params.no_way_back, resolved)

    def change(self, ctx: Context, params: DownParams, before: dict[str, Any]) -> Change:
        docker, project, was = engine(), before["project"], members_of(before)
        if was:
            why_not = before["no_way_back"]
            undo = "create the containers again, with the same volumes, and start those that ran"
            yield Prediction(f"would remove {names(was)}", undo=f"none: {why_not}" if why_not else undo)
        else:
            changed = None if ctx.has_upstream else bool(before["networks"])
            yield Prediction(f"project {project} has no containers", changed=changed)
        with project_lock(ctx, docker, project):
            if members(docker, project) or docker.networks({PROJECT: project}):
                revisions.keep_images(ctx, docker, project, (member.image_id for member in was))
                source = Source(project)  # without a revision, everything with the project's label is removed
                path = revisions.path_of(ctx, project, "before")
                former = revisions.load(path) if before["revision"] else None
                if former is not None and not former.containers:
                    source = Source(project, None, (str(path),), (), ("*",))
                Compose(ctx, docker).execute(source, command_lines.down(params.grace, orphans=params.remove_orphans))
            left = {member.key for member in members(docker, project)}
            networks = docker.networks({PROJECT: project}).values()
        removed = [member.name for member in was if member.key not in left]
        changed = bool(removed) or any(name not in networks for name in before["networks"])
        return Outcome(changed=changed, data={"project": project, "removed": removed})

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
