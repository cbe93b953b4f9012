"""`docker.pull`, `push` and `digest`: what an engine and a registry give each other."""

from __future__ import annotations

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
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, ReadOnly, implements, unfit
from longshore.tasks.operations.docker.images import Named, give_back, impossible, keep, lacking, release
from longshore.tasks.operations.docker.spec import need
from longshore.tasks.operations.docker.tag_backup import TagBackup


def login_of(params: Any) -> Login | None:
    return None if params.auth is None else Login(params.auth.username, params.auth.password)


def _digest_of(image: Image, ref: str) -> str | None:
    """The one of the repository that the name is in."""
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
    """Pull it, and be sure that it is what was asked for. What an error leaves is what was there before.

    `touched`: the step has fetched another one already.
    """
    policy.check_image(ref)
    try:
        docker.pull(ref, login=login, platform=platform, check=ctx.check)
    except NotThere as error:
        raise unfit(ctx, f"image {ref}: {error.message}", "is its name right?", touched=touched) from None
    except (StepCancelled, StepTimeout):
        raise
    except Transient as error:
        raise Transient(f"image {ref}: {error.message}") from None
    except OperationError as error:
        raise unfit(ctx, f"image {ref}: {error.message}", error.remedy, touched=touched) from None
    image = docker.image(ref)
    if image is None:
        raise OperationError(f"image {ref} was fetched, and is not there")
    TagBackup(ctx).note(ref, image.id)
    return image


@implements(PULL)
class Pull(Named):
    """The stream is read to its end: docker-py's own takes a download that broke off for a success."""

    def act(self, ctx: Context, params: PullParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), before["image_id"]
        image = docker.image(params.image)
        kept = None
        if image is None and params.policy == "never":
            raise unfit(ctx, f"image {params.image!r} is not on the Docker host, and is not to be fetched")
        if image is None or params.policy == "always":
            kept = keep(ctx, docker, was)
            try:
                image = fetch(ctx, docker, params.image, login_of(params), params.platform)
            except Preflight:
                release(ctx, docker, was)  # so that nothing was touched indeed
                raise
        if params.platform is not None:
            self._check(ctx, docker, params, image, was)
        changed = image.id != was
        if not changed and was is not None:
            release(ctx, docker, was)
            kept = None
        data = {"image": params.image, "image_id": image.id, "before_id": was, "size": image.size, "kept_as": kept}
        return Outcome(changed=changed, data=data | {"digest": _digest_of(image, params.image)})

    def predict(self, ctx: Context, params: PullParams) -> Prediction:
        docker = engine()
        image = docker.image(params.image)
        undo = f"let {params.image} mean {image.id[7:19]}" if image else f"take the name {params.image} off"
        if image is None and params.policy == "never":
            return impossible(ctx, f"image {params.image!r} is not on the Docker host, and is not to be fetched")
        if image is not None and params.policy != "always":
            if params.platform and [image.os, image.architecture] != params.platform.split("/")[:2]:
                what = f"{params.image} is for {image.os}/{image.architecture}, not for {params.platform}"
                return impossible(ctx, what)
            return Prediction(f"{params.image} is there", changed=False)
        try:
            remote = docker.remote_digest(params.image, login=login_of(params))
        except NotThere as error:
            return impossible(ctx, f"{params.image}: {error.message}")
        except OperationError as error:
            what = f"would fetch {params.image}; its registry cannot be asked: {error.message}"
            # It may answer by then; as things are, a run would fail.
            fails = image is None and not ctx.has_upstream
            why = f"image {params.image!r} is not on the Docker host, and its registry cannot be asked"
            return Prediction(what, changed=None, undo=undo, impossible=f"{why}: {error.message}" if fails else None)
        if image is not None and image.is_at(remote):
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
        image = need(engine(), params.image)
        return {"image_id": image.id, "remote": _remote(engine(), params)}

    def act(self, ctx: Context, params: PushParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        image = need(docker, params.image)
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
        docker = engine()
        image = docker.image(params.image)
        if image is None:
            return lacking(ctx, params.image, "send")
        try:
            remote = _remote(docker, params)
        except Transient as error:
            return Prediction(f"would send {params.image}; its registry cannot be asked: {error.message}", changed=None)
        if remote is not None and image.is_at(remote):
            return Prediction(f"the registry has {params.image} just so", changed=None if ctx.has_upstream else False)
        return Prediction(f"would send {params.image}")

    def undo(self, ctx: Context, params: PushParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        raise OperationError("a registry does not take back what it was sent", remedy="give the step an undo")


@implements(DIGEST)
class Digest(ReadOnly[DigestParams]):
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
