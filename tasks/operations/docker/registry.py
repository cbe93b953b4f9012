"""`docker.pull`, `push` and `digest`: transfers between an engine and a registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, StepTimeout, Transient
from longshore.orchestration.operations.docker.images import (
    DIGEST,
    PULL,
    PUSH,
    DigestParams,
    OfRegistry,
    PullParams,
    PushParams,
)
from longshore.orchestration.stacks.image_names import repository
from longshore.tasks.host import policy
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine, Image, Login, NotThere
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    Outcome,
    Prediction,
    ReadOnly,
    implements,
    obstacle,
    unchanged,
    unfit,
)
from longshore.tasks.operations.docker.images import Named, give_back, keep, release
from longshore.tasks.operations.docker.spec import need
from longshore.tasks.operations.docker.tag_backup import TagBackup


def login_of(params: Any) -> Login | None:
    return None if params.auth is None else Login(params.auth.username, params.auth.password)


def _digest_of(image: Image, ref: str) -> str | None:
    """The digest of an image in the repository of the name."""
    wanted = repository(ref.partition("@")[0])
    return next((text.partition("@")[2] for text in image.digests if text.partition("@")[0] == wanted), None)


def fetch(
    ctx: Context,
    docker: Engine,
    ref: str,
    login: Login | None,
    platform: str | None = None,
    *,
    touched: bool = False,
) -> Image:
    """Pull an image and verify that it exists. A failed pull leaves the name unchanged.

    `touched`: the step has pulled another image before.
    """
    policy.check_image(ref)
    try:
        docker.pull(ref, login=login, platform=platform, check=ctx.check)
    except NotThere as error:
        raise unfit(ctx, f"image {ref}: {error.message}", "correct the name or the tag", touched=touched) from None
    except (StepCancelled, StepTimeout):
        raise
    except Transient as error:
        raise Transient(f"image {ref}: {error.message}") from None
    except OperationError as error:
        raise unfit(ctx, f"image {ref}: {error.message}", error.remedy, touched=touched) from None
    image = docker.image(ref)
    if image is None:
        raise OperationError(f"image {ref} was pulled and does not exist: another process has removed it")
    TagBackup(ctx).note(ref, image.id)
    return image


def require_images(ctx: Context, docker: Engine, refs: Iterable[str], remedy: str, *, touched: bool = False) -> None:
    """Raise an error for the first image that is not on the Docker host. `touched`: as in `fetch`."""
    for ref in refs:
        if docker.image_id(ref) is None:
            raise unfit(ctx, f"image {ref} is not on the Docker host", remedy, touched=touched)


@implements(PULL)
class Pull(Named):
    """Pulls an image and reads the progress to its end: docker-py's own `pull` ignores a broken download."""

    def change(self, ctx: Context, params: PullParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), before["image_id"]
        image = docker.image(params.image)
        kept = None
        if image is None and params.policy == "never":
            raise unfit(
                ctx,
                f"image {params.image!r} is not on the Docker host, and policy is never",
                "set policy: missing, or pull the image in an earlier step",
            )
        if image is not None and params.policy != "always":
            yield self._present(ctx, params, image)
        else:
            yield self._to_pull(ctx, docker, params, image)
            kept = keep(ctx, docker, was)
            try:
                image = fetch(ctx, docker, params.image, login_of(params), params.platform)
            except Preflight:
                release(ctx, docker, was)  # nothing was changed
                raise
        if wrong := _other_platform(params, image):  # an engine may silently pull an image of another platform
            give_back(ctx, docker, params.image, was, image.id)
            raise OperationError(wrong)
        changed = image.id != was
        if not changed and was is not None:
            release(ctx, docker, was)
            kept = None
        data = {"image": params.image, "image_id": image.id, "before_id": was, "size": image.size, "kept_as": kept}
        return Outcome(changed=changed, data=data | {"digest": _digest_of(image, params.image)})

    @staticmethod
    def _present(ctx: Context, params: PullParams, image: Image) -> Prediction:
        if wrong := _other_platform(params, image):
            return obstacle(ctx, wrong)
        return Prediction(f"{params.image} is on the Docker host", changed=False)

    @staticmethod
    def _to_pull(ctx: Context, docker: Engine, params: PullParams, image: Image | None) -> Prediction:
        undo = f"move {params.image} back to {image.id[7:19]}" if image else f"remove the name {params.image}"
        if not ctx.dry_run:  # a step pulls without a question to the registry
            return Prediction(f"would pull {params.image}", undo=undo)
        try:
            remote = docker.remote_digest(params.image, login=login_of(params))
        except NotThere as error:
            return obstacle(ctx, f"{params.image}: {error.message}")
        except OperationError as error:
            what = f"would pull {params.image}; its registry does not respond: {error.message}"
            # The registry may respond by then; at the moment a run would fail.
            fails = image is None and not ctx.has_upstream
            why = f"image {params.image!r} is not on the Docker host, and its registry does not respond"
            return Prediction(what, changed=None, undo=undo, impossible=f"{why}: {error.message}" if fails else None)
        if image is not None and image.is_at(remote):
            return unchanged(ctx, f"{params.image} is up to date with its registry")
        return Prediction(f"would pull {params.image} ({remote[7:19]})", undo=undo)


def _other_platform(params: PullParams, image: Image) -> str:
    if params.platform is None or [image.os, image.architecture] == params.platform.split("/")[:2]:
        return ""
    return f"image {params.image} is for {image.os}/{image.architecture}, not for {params.platform}"


def _remote(docker: Engine, params: OfRegistry) -> str | None:
    """The registry's digest of the name; None if missing or denied. Raises Transient if the registry is unreachable."""
    try:
        return docker.remote_digest(params.image, login=login_of(params))
    except Transient:
        raise
    except OperationError:
        return None


@implements(PUSH)
class Push(Implementation[PushParams]):
    """Pushes an image to its registry, which has no undo."""

    def before(self, ctx: Context, params: PushParams) -> dict[str, Any]:
        image = need(engine(), params.image, "push")
        return {"image_id": image.id, "remote": _remote(engine(), params)}

    def change(self, ctx: Context, params: PushParams, before: dict[str, Any]) -> Change:
        docker = engine()
        image = need(docker, params.image, "push")
        if before["remote"] is not None and image.is_at(before["remote"]):
            yield unchanged(ctx, f"the registry has this {params.image}")
        else:
            yield Prediction(f"would push {params.image}")
        remote = _remote(docker, params)
        if remote is None or not image.is_at(remote):
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
        try:
            return super().predict(ctx, params)
        except Transient as error:  # the registry may respond by then
            what = f"would push {params.image}; its registry does not respond: {error.message}"
            return Prediction(what, changed=None)

    def undo(self, ctx: Context, params: PushParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        raise OperationError(f"the push of {params.image} has no undo", remedy="give the step an undo")


@implements(DIGEST)
class Digest(ReadOnly[DigestParams]):
    """Compares the digests of a name at its registry and on this host."""

    reads = "query the registry for the digest of {image}"

    def read(self, ctx: Context, params: DigestParams) -> dict[str, Any]:
        docker = engine()
        try:
            remote = docker.remote_digest(params.image, login=login_of(params))
        except NotThere as error:
            raise OperationError(f"image {params.image}: {error.message}") from None
        image = docker.image(params.image)
        local = [text.partition("@")[2] for text in image.digests] if image else []
        data = {"image": params.image, "digest": remote, "local": local}
        return data | {"stale": remote not in local if image else None}
