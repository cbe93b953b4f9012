"""`compose.pull` and `compose.build` for the images of a project's services."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.compose import BUILD, PULL
from longshore.orchestration.operations.compose_params import BuildParams, ProjectParams, PullParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine, NotThere
from longshore.tasks.host.machine.live import Live
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    Outcome,
    Prediction,
    implements,
    obstacle,
    unchanged,
)
from longshore.tasks.operations.compose import command_lines
from longshore.tasks.operations.compose.cli import Compose, Resolved
from longshore.tasks.operations.compose.project import source_for
from longshore.tasks.operations.docker.images import give_back, keep, release
from longshore.tasks.operations.docker.registry import fetch, login_of
from longshore.tasks.operations.docker.tag_backup import TagBackup

_UNDO = "move the names back to their present images"


def _resolved(ctx: Context, docker: Engine, params: ProjectParams) -> Resolved:
    return Compose(ctx, docker).resolve(source_for(docker, params), params.services)


class _Images(Implementation[Any]):
    """The base of operations that may move the names of images."""

    def services(self, target: Resolved, params: Any) -> list[str]:
        raise NotImplementedError

    def get(self, ctx: Context, docker: Engine, params: Any, target: Resolved, services: list[str]) -> None:
        raise NotImplementedError

    def prediction(self, ctx: Context, params: Any, before: dict[str, Any]) -> Prediction:
        raise NotImplementedError

    def before(self, ctx: Context, params: Any) -> dict[str, Any]:
        docker = engine()
        target = _resolved(ctx, docker, params)
        services = self.services(target, params)
        refs = {ref: docker.image_id(ref) for ref in map(target.image, services)}
        return {"project": target.project, "services": services, "refs": refs}

    def change(self, ctx: Context, params: Any, before: dict[str, Any]) -> Change:
        docker, refs = engine(), before["refs"]
        yield self.prediction(ctx, params, before)
        target = _resolved(ctx, docker, params)
        for image_id in {*refs.values()} - {None}:
            keep(ctx, docker, image_id)
        try:
            self.get(ctx, docker, params, target, before["services"])
        except Preflight:
            for image_id in {*refs.values()}:
                release(ctx, docker, image_id)  # nothing was changed
            raise
        now = {ref: docker.image_id(ref) for ref in refs}
        for image_id in {*refs.values()} & {*now.values()}:
            release(ctx, docker, image_id)
        images = {ref: {"before": refs[ref], "after": now[ref]} for ref in refs}
        return Outcome(changed=now != refs, data={"project": before["project"], "images": images})

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, changed, failures = engine(), False, []
        given = TagBackup(ctx)
        noted = given.names()
        for ref, image_id in before["refs"].items():
            ours = data["images"][ref]["after"] if data else noted.get(ref)
            try:
                changed |= give_back(ctx, docker, ref, image_id, ours)
            except OperationError as error:
                failures.append(str(error))
        if failures:
            raise OperationError("; ".join(failures))
        given.forget()
        return Outcome(changed=changed)


@implements(PULL)
class Pull(_Images):
    """Pulls each image separately, so that a broken download is an error."""

    def services(self, target: Resolved, params: PullParams) -> list[str]:
        """The services whose images are pulled and not built."""
        chosen = params.services or list(target.services)
        return [name for name in chosen if not (target.services[name].get("build") and not _named(target, name))]

    def get(self, ctx: Context, docker: Engine, params: PullParams, target: Resolved, services: list[str]) -> None:
        touched = False
        for ref in dict.fromkeys(map(target.image, services)):
            if params.policy == "always" or docker.image_id(ref) is None:
                fetch(ctx, docker, ref, login_of(params), touched=touched)
                touched = True

    def prediction(self, ctx: Context, params: PullParams, before: dict[str, Any]) -> Prediction:
        docker = engine()
        stale = [ref for ref, image_id in before["refs"].items() if params.policy == "always" or image_id is None]
        unknown: list[str] = []
        if ctx.dry_run:  # a step pulls without a question to the registries
            for ref in stale[:]:
                image = docker.image(ref)
                try:
                    remote = docker.remote_digest(ref, login=login_of(params))
                except NotThere as error:
                    return obstacle(ctx, f"{ref}: {error.message}")
                except OperationError:
                    unknown.append(ref)
                    stale.remove(ref)
                    continue
                if image is not None and image.is_at(remote):
                    stale.remove(ref)
        if unknown:
            action = f"would pull {', '.join([*stale, *unknown])}, if newer ones exist"
            return Prediction(action, changed=None, undo=_UNDO)
        if not stale:
            return unchanged(ctx, "all images are up to date with their registries")
        return Prediction(f"would pull {', '.join(stale)}", undo=_UNDO)


def _named(target: Resolved, service: str) -> bool:
    return bool(target.services[service].get("image"))


@implements(BUILD)
class Build(_Images):
    """Builds images with the Compose program, which interprets `build`."""

    def services(self, target: Resolved, params: BuildParams) -> list[str]:
        chosen = params.services or list(target.services)
        built = [name for name in chosen if target.services[name].get("build")]
        if not built:
            raise Preflight(f"no service of project {target.project} has a build", remedy="add build to a service")
        return built

    def get(self, ctx: Context, docker: Engine, params: BuildParams, target: Resolved, services: list[str]) -> None:
        command = command_lines.build(services, no_cache=params.no_cache, pull=params.pull)
        Compose(ctx, docker).execute(target.source, command, on_output=Live(ctx))
        for ref in map(target.image, services):
            if image_id := docker.image_id(ref):
                TagBackup(ctx).note(ref, image_id)

    def prediction(self, ctx: Context, params: BuildParams, before: dict[str, Any]) -> Prediction:
        return Prediction(f"would build {', '.join(before['services'])}", changed=None, undo=_UNDO)
