"""`docker.build`, `tag` and `image-remove`: what the names of images mean, and what they meant before."""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, cast

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, StepTimeout, Transient
from longshore.orchestration.operations.docker.images import (
    BUILD,
    IMAGE_REMOVE,
    TAG,
    BuildParams,
    ImageRemoveParams,
    TagParams,
)
from longshore.tasks.host import paths, policy
from longshore.tasks.host.allow_lists import within
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine, Image, NotThere
from longshore.tasks.host.machine.live import Live
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements, unfit
from longshore.tasks.operations.docker.spec import KEEP, need, safe
from longshore.tasks.operations.docker.tag_backup import TagBackup

#: Bytes of a .dockerignore.
_LARGEST_IGNORE = 1024 * 1024


def keep_name(ctx: Context, image_id: str) -> str:
    """The op_id may begin as no tag may."""
    return f"{KEEP}/images:k-{safe(ctx.op_id)}-{image_id.removeprefix('sha256:')[:12]}"


def release(ctx: Context, docker: Engine, image_id: str | None) -> None:
    """It needs the other name no more."""
    if image_id is not None:
        docker.untag(keep_name(ctx, image_id))


class Named(Implementation[Any]):
    """What an operation that moves one name to an image has in common with the others."""

    def name(self, params: Any) -> str:
        return str(params.image)

    def before(self, ctx: Context, params: Any) -> dict[str, Any]:
        return note(engine(), self.name(params))

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        name, given = self.name(params), TagBackup(ctx)
        ours = data["image_id"] if data else given.names().get(name)
        changed = give_back(ctx, engine(), name, before["image_id"], ours)
        given.forget()
        return Outcome(changed=changed)


def note(docker: Engine, ref: str) -> dict[str, Any]:
    return {"image_id": docker.image_id(ref)}


def keep(ctx: Context, docker: Engine, image_id: str | None) -> str | None:
    """Give an image that is about to lose its name another one, so that no prune takes it."""
    if image_id is None:
        return None
    name = keep_name(ctx, image_id)
    docker.tag(image_id, name)
    return name


def give_back(ctx: Context, docker: Engine, ref: str, image_id: str | None, ours: str | None) -> bool:
    """Let a name mean what it meant. `ours` is what the step made of it; None where it has noted nothing."""
    now = docker.image_id(ref)
    changed = now != image_id
    if changed and now is not None and now != ours:
        who = "by somebody else since" if ours is not None else "since, and this step has not noted that it did"
        what = f"the name {ref} was given to another image {who}"
        raise OperationError(what, remedy="look at it, then: longshore runs resolve --undone")
    if changed and image_id is None:
        docker.untag(ref)
        changed = docker.image_id(ref) is None
        if not changed:
            raise OperationError(f"the name {ref} cannot be taken off: a container uses it")
    elif changed and image_id is not None:
        try:
            docker.tag(image_id, ref)
        except NotThere as error:
            raise OperationError(f"image {image_id}, which {ref} meant, is gone") from error
    release(ctx, docker, image_id)
    return changed


def familiar(ref: str) -> str:
    """A name as the engine lists it: without the registry and library that it adds itself, with a tag."""
    from docker.auth import INDEX_NAME  # noqa: PLC0415 - docker is an extra

    for host in (INDEX_NAME, f"index.{INDEX_NAME}"):
        ref = ref.removeprefix(f"{host}/library/").removeprefix(f"{host}/")
    return ref if ":" in ref.rpartition("/")[2] else f"{ref}:latest"


def impossible(ctx: Context, why: str) -> Prediction:
    if ctx.has_upstream:
        return Prediction(f"would fail, unless an earlier step changes this: {why}", changed=None)
    return Prediction(f"would fail: {why}", changed=False, impossible=why)


def lacking(ctx: Context, ref: str, verb: str) -> Prediction:
    if ctx.has_upstream:
        return Prediction(f"would {verb} {ref}, which is not there yet", changed=None)
    what = f"image {ref!r} is not on the Docker host"
    return Prediction(f"would fail: {what}", changed=False, impossible=what)


@implements(BUILD)
class Build(Named):
    """The folder goes to the engine as an archive, without what .dockerignore names."""

    def act(self, ctx: Context, params: BuildParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), before["image_id"]
        policy.check_build(params.image)
        archive = _archive(ctx, params)
        keep(ctx, docker, was)
        live = Live(ctx)
        said: list[str] = []

        def hear(text: str) -> None:
            live(1, text.encode())
            said.append(text)
            del said[:-50]

        try:
            with archive:
                built = docker.build(archive, _build_params(params), hear, ctx.check)
        except (StepCancelled, StepTimeout):
            raise
        except Transient as error:
            raise Transient(f"build of {params.image}: {error.message}") from None
        except OperationError as error:
            data = {"output": "".join(said)[-4096:]}
            raise OperationError(f"build of {params.image}: {error.message}", data=data) from None
        finally:
            live.flush()
        image = docker.image(params.image)
        if image is None:
            raise OperationError(f"{params.image} was built ({built}), and is not there")
        TagBackup(ctx).note(params.image, image.id)
        if image.id == was:
            release(ctx, docker, image.id)
        data = {"name": params.image, "image_id": image.id, "before_id": was}
        return Outcome(changed=image.id != was, data=data)

    def predict(self, ctx: Context, params: BuildParams) -> Prediction:
        if not _has_dockerfile(params):
            return impossible(ctx, f"there is no {params.dockerfile} in {params.context}")
        undo = "let the name mean what it means now, or take it off"
        return Prediction(f"would build {params.image} from {params.context}", changed=None, undo=undo)


def _has_dockerfile(params: BuildParams) -> bool:
    """NotAllowed for a context that this worker may not read, or a Dockerfile outside of its context."""
    root = paths.require_tree(params.context)
    path = os.path.join(root, params.dockerfile)
    if not within(os.path.realpath(path), root):
        raise paths.outside(path)
    return os.path.isfile(path)


def _archive(ctx: Context, params: BuildParams) -> BinaryIO:
    from docker.utils import build as docker_build  # noqa: PLC0415 - docker is an extra

    if not _has_dockerfile(params):
        raise unfit(ctx, f"there is no {params.dockerfile} in {params.context}")
    root = paths.require_tree(params.context)
    ignore = os.path.join(root, ".dockerignore")
    lines = (
        paths.read(ignore, _LARGEST_IGNORE).decode("utf-8", "replace").splitlines() if os.path.isfile(ignore) else []
    )
    excluded = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    files = sorted(docker_build.exclude_paths(root, excluded, dockerfile=params.dockerfile))
    made: Any = docker_build.create_archive(root, files=files, gzip=False)
    return cast("BinaryIO", made)


def _build_params(params: BuildParams) -> dict[str, Any]:
    said = {
        "t": params.image,
        "dockerfile": params.dockerfile,
        "buildargs": json.dumps(params.args),
        "labels": json.dumps(params.labels),
        "pull": int(params.pull),
        "nocache": int(params.no_cache),
        "rm": 1,
        "forcerm": 1,
    }
    return said | ({"target": params.target} if params.target else {})


@implements(TAG)
class Tag(Named):
    """See its schema."""

    def name(self, params: TagParams) -> str:
        return params.name

    def before(self, ctx: Context, params: TagParams) -> dict[str, Any]:
        return note(engine(), params.name) | {"wanted": need(engine(), params.image).id}

    def act(self, ctx: Context, params: TagParams, before: dict[str, Any]) -> Outcome:
        docker, was, wanted = engine(), before["image_id"], before["wanted"]
        policy.check_image(params.image)  # another name would make a listed one of it
        if docker.image_id(params.name) != wanted:
            keep(ctx, docker, was)
            docker.tag(wanted, params.name)
            TagBackup(ctx).note(params.name, wanted)
        return Outcome(wanted != was, {"name": params.name, "image_id": wanted, "before_id": was})

    def predict(self, ctx: Context, params: TagParams) -> Prediction:
        docker = engine()
        wanted, now = docker.image_id(params.image), docker.image_id(params.name)
        if wanted is None:
            return lacking(ctx, params.image, "name")
        if wanted == now:
            return Prediction(f"{params.name} means {params.image}", changed=None if ctx.has_upstream else False)
        undo = f"take {params.name} off" if now is None else f"let {params.name} mean {now[7:19]}"
        return Prediction(f"would let {params.name} mean {params.image} ({wanted[7:19]})", undo=undo)

    def undo(self, ctx: Context, params: TagParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, wanted = engine(), before["wanted"]
        image = docker.image(wanted)
        if before["image_id"] is None and image is not None and set(image.tags) == {familiar(params.name)}:
            keep(ctx, docker, wanted)  # it was there without a name, and would go with its only one
        return super().undo(ctx, params, before, {"image_id": wanted})


@implements(IMAGE_REMOVE)
class ImageRemove(Implementation[ImageRemoveParams]):
    """Takes the name off; the image itself stays under a name of ours until gc, so that it can come back."""

    def before(self, ctx: Context, params: ImageRemoveParams) -> dict[str, Any]:
        docker = engine()
        image = docker.image(params.image)
        tags = self._names(image, params.image) if image is not None else []
        if image is None or (not tags and image.tags):
            return {"image_id": None, "tags": []}  # only the names are left that an undo keeps
        if not params.force:
            self._unused(docker, image, tags)
        return {"image_id": image.id, "tags": tags}

    def act(self, ctx: Context, params: ImageRemoveParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), before["image_id"]
        if was is None:
            return Outcome(changed=False, data={"image": params.image})
        try:
            kept = keep(ctx, docker, was)
        except NotThere as error:
            raise OperationError(f"image {params.image} is gone, by somebody else") from error
        untagged = [tag for tag in before["tags"] if docker.image_id(tag) != was or docker.untag(tag)]
        data = {"image": params.image, "image_id": was, "untagged": untagged, "kept_as": kept}
        return Outcome(changed=True, data=data)

    def predict(self, ctx: Context, params: ImageRemoveParams) -> Prediction:
        docker = engine()
        image = docker.image(params.image)
        try:
            tags = self._names(image, params.image) if image is not None else []
            if image is None or (not tags and image.tags):
                changed = None if ctx.has_upstream else False
                return Prediction(f"there is no image {params.image}", changed=changed)
            if not params.force:
                self._unused(docker, image, tags)
        except Preflight as error:
            return impossible(ctx, error.message)
        return Prediction(f"would remove {params.image} ({image.size} bytes)", undo="give it its name back")

    def undo(
        self, ctx: Context, params: ImageRemoveParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        docker, was = engine(), before["image_id"]
        if was is None:
            return Outcome(changed=False)
        changed = False
        for tag in before["tags"]:
            now = docker.image_id(tag)
            if now is not None and now != was:
                raise OperationError(f"the name {tag} was given to another image by somebody else since")
            if now is None:
                try:
                    docker.tag(was, tag)
                except NotThere as error:
                    raise OperationError(f"image {was} is gone, and cannot be brought back") from error
                changed = True
        release(ctx, docker, was)
        return Outcome(changed=changed)

    @staticmethod
    def _names(image: Image, ref: str) -> list[str]:
        """The names that go: the one that was given; all but ours, where its id was."""
        if "@" in ref:
            raise Preflight(f"{ref} is a digest, which cannot be given back", remedy="name a tag or an id")
        if familiar(ref) in image.tags:
            return [familiar(ref)]
        return [tag for tag in image.tags if not tag.startswith(f"{KEEP}/")]

    @staticmethod
    def _unused(docker: Engine, image: Image, tags: list[str]) -> None:
        """As the engine has it: with its last name an image that containers use does not go."""
        if {tag for tag in image.tags if not tag.startswith(f"{KEEP}/")} - set(tags):
            return
        users = [row for row in docker.rows({"ancestor": [image.id]}, all_of_them=True) if row["ImageID"] == image.id]
        if users:
            names = ", ".join(sorted(str(row["Names"][0]).removeprefix("/") for row in users))
            raise Preflight(f"image {', '.join(tags) or image.id} is used by {names}", remedy="or say force: true")
