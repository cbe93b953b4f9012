"""`docker.pull`, `push`, `build`, `tag`, `image-remove` and `digest`: what the names of images mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO, cast

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, StepTimeout, Transient
from longshore.orchestration.operations.docker.images import (
    BUILD,
    DIGEST,
    IMAGE_REMOVE,
    PULL,
    PUSH,
    TAG,
    BuildParams,
    DigestParams,
    ImageRemoveParams,
    OfRegistry,
    PullParams,
    PushParams,
    TagParams,
)
from longshore.tasks.docker.spec import safe
from longshore.tasks.engine import Engine, Image, Login, NotThere, engine
from longshore.tasks.machine.live import Live
from longshore.tasks.operation import Context, Implementation, Looks, Outcome, Prediction, implements

_KEEP = "longshore-keep/images"


def keep_name(ctx: Context, image_id: str) -> str:
    return f"{_KEEP}:{safe(ctx.op_id)}-{image_id.removeprefix('sha256:')[:12]}"


def login_of(params: Any) -> Login | None:
    return None if params.auth is None else Login(params.auth.username, params.auth.password)


def _digest_of(image: Image, ref: str) -> str | None:
    """The one of the repository that the name is in."""
    repository = ref.partition("@")[0]
    head, colon, tag = repository.rpartition(":")
    repository = head if colon and "/" not in tag else repository
    return next((text.partition("@")[2] for text in image.digests if text.partition("@")[0] == repository), None)


def fetch(ctx: Context, docker: Engine, ref: str, login: Login | None, platform: str | None = None) -> Image:
    """Pull it, and be sure that it is what was asked for. What an error leaves is what was there before."""
    try:
        docker.pull(ref, login=login, platform=platform, check=ctx.check)
    except NotThere as error:
        raise _first(ctx, f"image {ref}: {error.message}", "is its name right?") from None
    except (StepCancelled, StepTimeout):
        raise
    except Transient as error:
        raise Transient(f"image {ref}: {error.message}") from None
    except OperationError as error:
        raise _first(ctx, f"image {ref}: {error.message}", error.remedy) from None
    image = docker.image(ref)
    if image is None:
        raise OperationError(f"image {ref} was fetched, and is not there")
    return image


def _first(ctx: Context, what: str, remedy: str) -> OperationError:
    """A second attempt proves nothing: the first may have gone further."""
    return (Preflight if ctx.attempt == 1 else OperationError)(what, remedy=remedy)


class Named(Implementation[Any]):
    """What an operation that moves one name to an image has in common with the others."""

    def name(self, params: Any) -> str:
        return str(params.image)

    def before(self, ctx: Context, params: Any) -> dict[str, Any]:
        return note(engine(), self.name(params))

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        ours = data["image_id"] if data else None
        return Outcome(changed=give_back(ctx, engine(), self.name(params), before["image_id"], ours))


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
    """Let a name mean what it meant. `ours` is what the step made of it; None where that is not known."""
    now = docker.image_id(ref)
    changed = now != image_id
    if changed and ours is not None and now is not None and now != ours:
        raise OperationError(f"the name {ref} was given to another image by somebody else since")
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
    if image_id is not None:
        docker.untag(keep_name(ctx, image_id))
    return changed


@implements(PULL)
class Pull(Named):
    """The stream is read to its end: docker-py's own takes a download that broke off for a success."""

    def act(self, ctx: Context, params: PullParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), before["image_id"]
        image = docker.image(params.image)
        kept = None
        if image is None or params.policy == "always":
            kept = keep(ctx, docker, was)
            image = fetch(ctx, docker, params.image, login_of(params), params.platform)
        if params.platform is not None:
            self._check(ctx, docker, params, image, was)
        changed = image.id != was
        if not changed and was is not None:
            docker.untag(keep_name(ctx, was))
            kept = None
        data = {"image": params.image, "image_id": image.id, "before_id": was, "size": image.size, "kept_as": kept}
        return Outcome(changed=changed, data=data | {"digest": _digest_of(image, params.image)})

    def predict(self, ctx: Context, params: PullParams) -> Prediction:
        docker = engine()
        image = docker.image(params.image)
        undo = f"let {params.image} mean {image.id[7:19]}" if image else f"take the name {params.image} off"
        if image is not None and params.policy == "missing":
            return Prediction(f"{params.image} is there", changed=False)
        try:
            remote = docker.remote_digest(params.image, login=login_of(params))
        except NotThere as error:
            return _impossible(ctx, f"{params.image}: {error.message}")
        except OperationError as error:
            what = f"would fetch {params.image}; its registry cannot be asked: {error.message}"
            return Prediction(what, changed=None, undo=undo)
        if image is not None and any(text.endswith(f"@{remote}") for text in image.digests):
            return Prediction(f"{params.image} is what its registry has", changed=None if ctx.has_upstream else False)
        return Prediction(f"would fetch {params.image} ({remote[7:19]})", undo=undo)

    @staticmethod
    def _check(ctx: Context, docker: Engine, params: PullParams, image: Image, was: str | None) -> None:
        """An engine may give an image of another platform without a word."""
        wanted = str(params.platform).split("/")
        if [image.os, image.architecture] == wanted[:2]:
            return
        give_back(ctx, docker, params.image, was, image.id)
        raise OperationError(f"image {params.image} is for {image.os}/{image.architecture}, not for {params.platform}")


def _impossible(ctx: Context, why: str) -> Prediction:
    if ctx.has_upstream:
        return Prediction(f"would fail, unless an earlier step changes this: {why}", changed=None)
    return Prediction(f"would fail: {why}", changed=False, impossible=why)


def _lacking(ctx: Context, ref: str, verb: str) -> Prediction:
    if ctx.has_upstream:
        return Prediction(f"would {verb} {ref}, which is not there yet", changed=None)
    what = f"image {ref!r} is not on the Docker host"
    return Prediction(f"would fail: {what}", changed=False, impossible=what)


def _need(docker: Engine, ref: str) -> Image:
    found = docker.image(ref)
    if found is None:
        raise Preflight(f"image {ref!r} is not on the Docker host", remedy="pull or build it in a step before")
    return found


def _remote(docker: Engine, params: OfRegistry) -> str | None:
    """The registry's digest; None where it has nothing under that name, or does not tell."""
    try:
        return docker.remote_digest(params.image, login=login_of(params))
    except Transient:
        raise
    except OperationError:
        return None


@implements(PUSH)
class Push(Implementation[PushParams]):
    """See its schema."""

    def before(self, ctx: Context, params: PushParams) -> dict[str, Any]:
        image = _need(engine(), params.image)
        return {"image_id": image.id, "remote": _remote(engine(), params)}

    def act(self, ctx: Context, params: PushParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        image = _need(docker, params.image)
        if not self._is_there(image, _remote(docker, params)):
            try:
                docker.push(params.image, login=login_of(params), check=ctx.check)
            except (StepCancelled, StepTimeout):
                raise
            except Transient as error:
                raise Transient(f"image {params.image}: {error.message}") from None
            except OperationError as error:
                raise OperationError(f"image {params.image}: {error.message}") from None
        digest = _remote(docker, params)
        data = {"image": params.image, "image_id": image.id, "digest": digest, "before": before["remote"]}
        return Outcome(changed=digest != before["remote"], data=data)

    def predict(self, ctx: Context, params: PushParams) -> Prediction:
        docker = engine()
        image = docker.image(params.image)
        if image is None:
            return _lacking(ctx, params.image, "send")
        try:
            remote = _remote(docker, params)
        except Transient as error:
            return Prediction(f"would send {params.image}; its registry cannot be asked: {error.message}", changed=None)
        if self._is_there(image, remote):
            return Prediction(f"the registry has {params.image} just so", changed=None if ctx.has_upstream else False)
        return Prediction(f"would send {params.image}")

    def undo(self, ctx: Context, params: PushParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        raise OperationError("a registry does not take back what it was sent", remedy="give the step an undo")

    @staticmethod
    def _is_there(image: Image, remote: str | None) -> bool:
        return remote is not None and any(text.endswith(f"@{remote}") for text in image.digests)


@implements(BUILD)
class Build(Named):
    """The folder goes to the engine as an archive, without what .dockerignore names."""

    def act(self, ctx: Context, params: BuildParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), before["image_id"]
        keep(ctx, docker, was)
        live = Live(ctx)
        said: list[str] = []

        def hear(text: str) -> None:
            live(1, text.encode())
            said.append(text)
            del said[:-50]

        archive = _archive(ctx, params)
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
        if image.id == was:
            docker.untag(keep_name(ctx, image.id))
        data = {"name": params.image, "image_id": image.id, "before_id": was}
        return Outcome(changed=image.id != was, data=data)

    def predict(self, ctx: Context, params: BuildParams) -> Prediction:
        if not (Path(params.context) / params.dockerfile).is_file():
            return _impossible(ctx, f"there is no {params.dockerfile} in {params.context}")
        undo = "let the name mean what it means now, or take it off"
        return Prediction(f"would build {params.image} from {params.context}", changed=None, undo=undo)


def _archive(ctx: Context, params: BuildParams) -> BinaryIO:
    from docker.utils import build as docker_build  # noqa: PLC0415 - docker is an extra

    root = Path(params.context)
    if not (root / params.dockerfile).is_file():
        raise _first(ctx, f"there is no {params.dockerfile} in {params.context}", "")
    ignore = root / ".dockerignore"
    lines = ignore.read_text().splitlines() if ignore.is_file() else []
    excluded = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    files = sorted(docker_build.exclude_paths(str(root), excluded, dockerfile=params.dockerfile))
    made: Any = docker_build.create_archive(str(root), files=files, gzip=False)
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
        return note(engine(), params.name) | {"wanted": _need(engine(), params.image).id}

    def act(self, ctx: Context, params: TagParams, before: dict[str, Any]) -> Outcome:
        docker, was, wanted = engine(), before["image_id"], before["wanted"]
        if docker.image_id(params.name) != wanted:
            keep(ctx, docker, was)
            docker.tag(wanted, params.name)
        return Outcome(wanted != was, {"name": params.name, "image_id": wanted, "before_id": was})

    def predict(self, ctx: Context, params: TagParams) -> Prediction:
        docker = engine()
        wanted, now = docker.image_id(params.image), docker.image_id(params.name)
        if wanted is None:
            return _lacking(ctx, params.image, "name")
        if wanted == now:
            return Prediction(f"{params.name} means {params.image}", changed=None if ctx.has_upstream else False)
        undo = f"take {params.name} off" if now is None else f"let {params.name} mean {now[7:19]}"
        return Prediction(f"would let {params.name} mean {params.image} ({wanted[7:19]})", undo=undo)


@implements(IMAGE_REMOVE)
class ImageRemove(Implementation[ImageRemoveParams]):
    """Takes the name off; the image itself stays under a name of ours until gc, so that it can come back."""

    def before(self, ctx: Context, params: ImageRemoveParams) -> dict[str, Any]:
        docker = engine()
        image = docker.image(params.image)
        if image is None:
            return {"image_id": None, "tags": []}
        by_id = params.image.removeprefix("sha256:") in image.id
        tags = [tag for tag in image.tags if not tag.startswith(f"{_KEEP}:")] if by_id else [params.image]
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
        if image is None:
            changed = None if ctx.has_upstream else False
            return Prediction(f"there is no image {params.image}", changed=changed)
        try:
            if not params.force:
                self._unused(docker, image, [params.image])
        except Preflight as error:
            return _impossible(ctx, error.message)
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
        docker.untag(keep_name(ctx, was))
        return Outcome(changed=changed)

    @staticmethod
    def _unused(docker: Engine, image: Image, tags: list[str]) -> None:
        """As the engine has it: with its last name an image that containers use does not go."""
        if set(image.tags) - set(tags):
            return
        users = [row for row in docker.rows({"ancestor": [image.id]}, all_of_them=True) if row["ImageID"] == image.id]
        if users:
            names = ", ".join(sorted(str(row["Names"][0]).removeprefix("/") for row in users))
            raise Preflight(f"image {', '.join(tags) or image.id} is used by {names}", remedy="or say force: true")


@implements(DIGEST)
class Digest(Looks[DigestParams]):
    """See its schema."""

    def act(self, ctx: Context, params: DigestParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        try:
            remote = docker.remote_digest(params.image, login=login_of(params))
        except NotThere as error:
            raise OperationError(f"image {params.image}: {error.message}") from None
        image = docker.image(params.image)
        local = [text.partition("@")[2] for text in image.digests] if image else []
        data = {"image": params.image, "digest": remote, "local": local}
        return Outcome(changed=False, data=data | {"stale": remote not in local if image else None})

    def predict(self, ctx: Context, params: DigestParams) -> Prediction:
        return Prediction(f"would ask the registry what {params.image} means", changed=False)
