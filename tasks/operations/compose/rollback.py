"""`compose.rollback`: restores a stored revision, without pulls and builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.compose import ROLLBACK
from longshore.orchestration.operations.compose_params import RollbackParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Change, Context, Outcome, Prediction, implements, unchanged
from longshore.tasks.operations.compose import command_lines, reconstruction, revisions, way_back
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.project import project_lock, project_of, snapshot
from longshore.tasks.operations.compose.revisions import Revision
from longshore.tasks.operations.compose.rollout import Rollout, RolloutStep, difference, reasons
from longshore.tasks.operations.compose.standing import reported_on_failure, standing
from longshore.tasks.operations.compose.state import (
    HealthWaiter,
    Member,
    members,
    start_in_order,
    stop_in_order,
    to_do,
)
from longshore.tasks.operations.docker.tag_backup import TagBackup


@implements(ROLLBACK)
class Rollback(RolloutStep[RollbackParams]):
    """An `up` of a stored revision, with the undo of an `up`."""

    def before(self, ctx: Context, params: RollbackParams) -> dict[str, Any]:
        docker = engine()
        project = project_of(ctx, docker, params)
        revision, target = self._wanted(docker, project, params)
        found = members(docker, project)
        todo = self._to_do(docker, revision, target, found)
        before = snapshot(docker, project, found) | {"to": revision.number, "todo": todo}
        before["services"] = sorted({*revision.services, *(member.service for member in found)})
        before["refs"] |= {ref: docker.image_id(ref) for ref in map(target.image, revision.services)}
        if todo and not target.containers:
            Compose(ctx, docker).require_variables(Source(project, target.source.directory), target.config)
        return before | way_back.keep(ctx, docker, project, found, params.no_way_back if todo else "accept")

    def change(self, ctx: Context, params: RollbackParams, before: dict[str, Any]) -> Change:
        docker, project = engine(), before["project"]
        if todo := before["todo"]:
            action = f"would roll back project {project} to revision {before['to']} ({reasons(todo)})"
            yield Prediction(action, undo=before["undo"])
        else:
            yield unchanged(ctx, f"project {project} runs revision {before['to']}")
        with project_lock(ctx, docker, project), reported_on_failure(ctx, docker, project):
            revision, target = self._load(docker, project, before["to"])
            path = revisions.save(ctx, "after", target)
            for service, recorded in revision.services.items():
                ref = target.image(service)
                if docker.image_id(ref) != recorded["image_id"]:
                    was = before["refs"].get(ref)
                    revisions.keep_images(ctx, docker, project, [was] if was else [])
                    docker.tag(recorded["image_id"], ref)
                    TagBackup(ctx).note(ref, recorded["image_id"])
            source = Source(project, target.source.directory, (str(path),), (), ("*",))
            options = ["--remove-orphans", *command_lines.scale(revision.counts)]
            extra = any(member.service not in revision.services for member in members(docker, project))
            rollout = Rollout(ctx, docker, params, before, target, params.max_parallel)
            if target.containers:
                now = self._bring_described(docker, rollout, target)
            else:
                now = rollout.run(source, list(revision.services), options, also=extra)
            stands = [standing(ctx, docker, project)]
        data = difference(before, now) | {"project": project, "revision": str(path), "to": before["to"]}
        data["standing"] = stands
        changed = any(data[what] for what in ("created", "recreated", "started", "removed"))
        return Outcome(changed=changed, data=data)

    @staticmethod
    def _to_do(docker: Engine, revision: Revision, target: Resolved, found: list[Member]) -> dict[str, str]:
        """The services that differ from the revision, with the reasons."""
        images = {member.service: member.image_id for member in found}
        why = to_do(docker, target, list(revision.services), found)
        why |= {
            service: "image changed"
            for service, recorded in revision.services.items()
            if service in images and images[service] != recorded["image_id"]
        }
        extra = {member.service for member in found} - target.services.keys()
        return why | dict.fromkeys(sorted(extra), "not in the revision")

    @staticmethod
    def _bring_described(docker: Engine, rollout: Rollout, target: Resolved) -> list[Member]:
        """Roll out a revision that was reconstructed from containers: the engine creates them as described."""
        project = target.project

        def change(waiter: HealthWaiter) -> None:
            now = members(docker, project)
            described = [reconstruction.Description(**one) for one in target.containers]
            differ = [one for one in described if not reconstruction.runs_as(one, now)]
            if differ or any(member.service not in target.services for member in now):
                rollout.keep_images()
                stop_in_order((m for m in now if m.service not in target.services and m.running), rollout.params.grace)
                for member in now:
                    if member.service not in target.services:
                        docker.remove(member.id)
                reconstruction.create_all(docker, differ, grace=rollout.params.grace)
            everything = members(docker, project)
            start_in_order(waiter, everything, everything)

        return rollout.within_limits(change, target.services)

    def _wanted(self, docker: Engine, project: str, params: RollbackParams) -> tuple[Revision, Resolved]:
        kept = revisions.history(project)
        if not kept:
            raise Preflight(
                f"project {project} has no stored revision", remedy="run compose.up.execute, which stores one"
            )
        if params.to != "previous":
            if params.to not in {revision.number for revision in kept}:
                have = ", ".join(str(revision.number) for revision in kept)
                raise Preflight(f"project {project} has no revision {params.to}", remedy=f"choose one of {have}")
            return self._load(docker, project, params.to)
        now = revisions.images_of(members(docker, project))
        others = [one for one in kept if any(now.get(name) != image for name, image in one.images.items())]
        if not others:
            raise Preflight(f"project {project} has no revision other than the running one")
        return self._load(docker, project, others[-1].number)

    @staticmethod
    def _load(docker: Engine, project: str, number: int) -> tuple[Revision, Resolved]:
        found = [revision for revision in revisions.history(project) if revision.number == number]
        target = revisions.load(found[0].path(project)) if found else None
        if target is None:
            raise OperationError(f"revision {number} of project {project} was deleted")
        for service, recorded in found[0].services.items():
            if docker.image(recorded["image_id"]) is None:
                what = (
                    f"image {recorded['image_id'][7:19]} of service {service} in revision {number} is not on the host"
                )
                raise Preflight(what, remedy="pull the image, or choose another revision")
        return found[0], replace(target, counts=found[0].counts)
