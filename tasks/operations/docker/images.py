"""`docker.build`, `tag` and `image-remove`: operations that move names of images, and restore them."""

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
from longshore.tasks.host.engine.sdk import sdk
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
    unfit,
)
from longshore.tasks.operations.docker.kept_names import bound
from longshore.tasks.operations.docker.spec import KEEP, RUN, need, one_offs, safe
from longshore.tasks.operations.docker.tag_backup import TagBackup

#: Bytes of a .dockerignore.
_LARGEST_IGNORE = 1024 * 1024


def keep_name(ctx: Context, image_id: str) -> str:
    """The name that keeps an image for an undo; the prefix makes any op_id a valid tag."""
    return f"{KEEP}/images:k-{safe(ctx.op_id)}-{image_id.removeprefix('sha256:')[:12]}"


def release(ctx: Context, docker: Engine, image_id: str | None) -> None:
    """Remove the name that keeps an image for the undo."""
    if image_id is not None:
        docker.untag(keep_name(ctx, image_id))


class Named(Implementation[Any]):
    """The base of operations that move one name to another image."""

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
    """Tag an image that is about to lose its name, so that no prune deletes it."""
    if image_id is None:
        return None
    name = keep_name(ctx, image_id)
    docker.tag(image_id, name)
    bound(ctx, docker, name)
    return name


def give_back(ctx: Context, docker: Engine, ref: str, image_id: str | None, ours: str | None) -> bool:
    """Move a name back to its former image. `ours`: the image that the step gave the name; None if not recorded."""
    now = docker.image_id(ref)
    changed = now != image_id
    if changed and now is not None and now != ours:
        who = "outside of this run" if ours is not None else "since, and this step has no record of moving it"
        what = f"the name {ref} was moved to another image {who}"
        raise OperationError(what, remedy="check the image, then run: longshore runs resolve --undone")
    if changed and image_id is None:
        changed = docker.untag(ref) or _untag_after_run(ctx, docker, ref, str(now))
        if not changed:
            raise OperationError(
                f"the name {ref} cannot be removed: a container uses it", remedy="remove the container"
            )
    elif changed and image_id is not None:
        try:
            docker.tag(image_id, ref)
        except NotThere as error:
            raise OperationError(f"image {image_id}, the former {ref}, was removed outside of this run") from error
    release(ctx, docker, image_id)
    return changed


def _untag_after_run(ctx: Context, docker: Engine, ref: str, image_id: str) -> bool:
    """Remove a name that only ended one-off containers of this run use; failed ones that are kept lose the name."""
    for row in one_offs(docker, ctx.run_id):
        if row["ImageID"] == image_id:
            docker.remove(row["Id"])
    if docker.untag(ref):
        return True
    rows = [row for row in docker.rows({"ancestor": [ref]}, all_of_them=True) if row["ImageID"] == image_id]
    if any(row["Labels"].get(RUN) != ctx.run_id or row["State"] == "running" for row in rows):
        return False
    keep(ctx, docker, image_id)  # the engine refuses to remove the last name of an image in use
    return docker.untag(ref)


def familiar(ref: str) -> str:
    """A name as the engine lists it: without the default registry and library, with a tag."""
    index = sdk().auth.INDEX_NAME
    for host in (index, f"index.{index}"):
        ref = ref.removeprefix(f"{host}/library/").removeprefix(f"{host}/")
    return ref if ":" in ref.rpartition("/")[2] else f"{ref}:latest"


@implements(BUILD)
class Build(Named):
    """Builds an image from a folder, sent as an archive without the files that .dockerignore excludes."""

    def change(self, ctx: Context, params: BuildParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), before["image_id"]
        policy.check_build(params.image)
        if _has_dockerfile(params):
            undo = "move the name back to its present image, or remove it"
            yield Prediction(f"would build {params.image} from {params.context}", changed=None, undo=undo)
        else:
            yield obstacle(ctx, f"{params.dockerfile} does not exist in {params.context}")
        archive = _archive(ctx, params)
        keep(ctx, docker, was)
        live = Live(ctx)
        output: list[str] = []

        def add_output(text: str) -> None:
            live(1, text.encode())
            output.append(text)
            del output[:-50]

        try:
            with archive:
                built = docker.build(archive, _build_params(params), add_output, ctx.check)
        except (StepCancelled, StepTimeout):
            raise
        except Transient as error:
            raise Transient(f"build of {params.image}: {error.message}") from None
        except OperationError as error:
            data = {"output": "".join(output)[-4096:]}
            raise OperationError(f"build of {params.image}: {error.message}", data=data) from None
        finally:
            live.flush()
        image = docker.image(params.image)
        if image is None:
            raise OperationError(
                f"image {params.image} was built ({built}) and does not exist: another process has removed it"
            )
        TagBackup(ctx).note(params.image, image.id)
        if image.id == was:
            release(ctx, docker, image.id)
        data = {"name": params.image, "image_id": image.id, "before_id": was}
        return Outcome(changed=image.id != was, data=data)


def _has_dockerfile(params: BuildParams) -> bool:
    """Reports whether the Dockerfile exists. Raises NotAllowed for a forbidden context, or a Dockerfile outside it."""
    root = paths.require_tree(params.context)
    path = os.path.join(root, params.dockerfile)
    if not within(os.path.realpath(path), root):
        raise paths.outside(path)
    return os.path.isfile(path)


def _archive(ctx: Context, params: BuildParams) -> BinaryIO:
    if not _has_dockerfile(params):
        raise unfit(ctx, f"{params.dockerfile} does not exist in {params.context}", "correct dockerfile or context")
    root = paths.require_tree(params.context)
    ignore = os.path.join(root, ".dockerignore")
    lines = (
        paths.read(ignore, _LARGEST_IGNORE).decode("utf-8", "replace").splitlines() if os.path.isfile(ignore) else []
    )
    excluded = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    docker_build = sdk().utils.build
    files = sorted(docker_build.exclude_paths(root, excluded, dockerfile=params.dockerfile))
    archive: Any = docker_build.create_archive(root, files=files, gzip=False)
    return cast("BinaryIO", archive)


def _build_params(params: BuildParams) -> dict[str, Any]:
    options = {
        "t": params.image,
        "dockerfile": params.dockerfile,
        "buildargs": json.dumps(params.args),
        "labels": json.dumps(params.labels),
        "pull": int(params.pull),
        "nocache": int(params.no_cache),
        "rm": 1,
        "forcerm": 1,
    }
    return options | ({"target": params.target} if params.target else {})


@implements(TAG)
class Tag(Named):
    """Gives an image a further name."""

    def name(self, params: TagParams) -> str:
        return params.name

    def before(self, ctx: Context, params: TagParams) -> dict[str, Any]:
        return note(engine(), params.name) | {"wanted": need(engine(), params.image, "tag").id}

    def change(self, ctx: Context, params: TagParams, before: dict[str, Any]) -> Change:
        docker, was, wanted = engine(), before["image_id"], before["wanted"]
        policy.check_image(params.image)  # a new name could bypass the allow-list
        if wanted == was:
            yield unchanged(ctx, f"{params.name} is {params.image}")
        else:
            undo = f"move {params.name} back to {was[7:19]}" if was else f"remove the name {params.name}"
            yield Prediction(f"would move {params.name} to {params.image} ({wanted[7:19]})", undo=undo)
        if docker.image_id(params.name) != wanted:
            keep(ctx, docker, was)
            docker.tag(wanted, params.name)
            TagBackup(ctx).note(params.name, wanted)
        return {"name": params.name, "image_id": wanted, "before_id": was}

    def undo(self, ctx: Context, params: TagParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, wanted = engine(), before["wanted"]
        image = docker.image(wanted)
        if before["image_id"] is None and image is not None and set(image.tags) == {familiar(params.name)}:
            keep(ctx, docker, wanted)  # the image had no name before, and would be deleted with its only name
        return super().undo(ctx, params, before, {"image_id": wanted})


@implements(IMAGE_REMOVE)
class ImageRemove(Implementation[ImageRemoveParams]):
    """Removes the name; the image stays under a keep-tag until gc, so that the undo can restore it."""

    def before(self, ctx: Context, params: ImageRemoveParams) -> dict[str, Any]:
        docker = engine()
        image = docker.image(params.image)
        tags = self._names(image, params.image) if image is not None else []
        if image is None or (not tags and image.tags):
            return {"image_id": None, "tags": []}  # only keep-tags are left
        if not params.force:
            self._unused(docker, image, tags)
        return {"image_id": image.id, "tags": tags}

    def change(self, ctx: Context, params: ImageRemoveParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), before["image_id"]
        if was is None:
            yield unchanged(ctx, f"image {params.image} does not exist")
            return {"image": params.image}
        size = getattr(docker.image(was), "size", 0)
        yield Prediction(f"would remove {params.image} ({size} bytes)", undo="restore its name")
        try:
            kept = keep(ctx, docker, was)
        except NotThere as error:
            raise OperationError(f"image {params.image} was removed outside of this run") from error
        untagged = [tag for tag in before["tags"] if docker.image_id(tag) != was or docker.untag(tag)]
        return {"image": params.image, "image_id": was, "untagged": untagged, "kept_as": kept}

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
                raise OperationError(
                    f"the name {tag} was moved to another image outside of this run",
                    remedy="remove that name, then resume the undo",
                )
            if now is None:
                try:
                    docker.tag(was, tag)
                except NotThere as error:
                    raise OperationError(
                        f"image {was} was removed outside of this run and cannot be restored"
                    ) from error
                changed = True
        release(ctx, docker, was)
        return Outcome(changed=changed)

    @staticmethod
    def _names(image: Image, ref: str) -> list[str]:
        """The names to remove: the given name, or all names but keep-tags if an id was given."""
        if "@" in ref:
            raise Preflight(f"{ref} is a digest, which an undo cannot restore", remedy="name a tag or an id")
        if familiar(ref) in image.tags:
            return [familiar(ref)]
        return [tag for tag in image.tags if not tag.startswith(f"{KEEP}/")]

    @staticmethod
    def _unused(docker: Engine, image: Image, tags: list[str]) -> None:
        """Raise Preflight for the last name of an image that containers use, which the engine would not remove."""
        if {tag for tag in image.tags if not tag.startswith(f"{KEEP}/")} - set(tags):
            return
        users = [row for row in docker.rows({"ancestor": [image.id]}, all_of_them=True) if row["ImageID"] == image.id]
        if users:
            names = ", ".join(sorted(str(row["Names"][0]).removeprefix("/") for row in users))
            raise Preflight(
                f"image {', '.join(tags) or image.id} is used by {names}",
                remedy="remove these containers first, or set force: true",
            )
