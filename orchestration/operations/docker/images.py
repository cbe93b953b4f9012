"""Images: fetched, sent, built, named and removed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import docker_operation, is_template

Ref = Annotated[str, Field(min_length=1, description="name[:tag], with its registry, or name@sha256:…")]


class Login(Params):
    """Who asks the registry. Without one, the worker's own docker configuration is asked."""

    username: str = Field(min_length=1)
    password: str = Field(min_length=1, description="{{ secret('env:NAME') }}")


class OfRegistry(Params):
    """An operation that asks a registry."""

    image: Ref
    auth: Login | None = Field(None, description="username and password, the latter as secret('env:NAME')")


class PullParams(OfRegistry):
    """The former image of that name keeps a name until gc, so that nothing is fetched to go back to it."""

    policy: Literal["always", "missing", "never"] = Field(
        "always", description="missing: not asked for, if it is there; never: it has to be there"
    )
    platform: str | None = Field(None, description="os/architecture; an image of another one is refused")


class PullResult(Result):
    """`before_id` is what the name meant before, null where there was none."""

    image: str
    image_id: str
    before_id: str | None = None
    digest: str | None = None
    size: int = 0
    kept_as: str | None = None


class PushParams(OfRegistry):
    """Send an image that is here to the registry in its name."""


class PushResult(Result):
    """`before` is the digest that the registry had under this name."""

    image: str
    image_id: str
    digest: str | None = None
    before: str | None = None


class BuildParams(Params):
    """From a folder on the worker's host. Base images are not asked for anew, unless `pull` says so."""

    image: Ref
    context: str = Field(description="The folder, absolute; .dockerignore is obeyed")
    dockerfile: str = Field("Dockerfile", description="Its path in the folder")
    args: dict[str, str] = Field({}, description="Build arguments")
    target: str | None = Field(None, description="The stage to stop at")
    labels: dict[str, str] = {}
    pull: bool = Field(default=False, description="Ask for newer base images")
    no_cache: bool = False

    @field_validator("context")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") and not is_template(value):
            raise ValueError(f"{value!r} is not an absolute path on the worker's host")
        return value


class TagParams(Params):
    """Let a name mean an image that is here."""

    image: Ref
    name: str = Field(min_length=1, description="The name that it gets")


class TagResult(Result):
    """`before_id` is what the name meant before, null where there was none."""

    name: str
    image_id: str
    before_id: str | None = None


class ImageRemoveParams(Params):
    """Its name is taken off; with its last one the image goes, in the end: until gc it keeps a name of ours."""

    image: Ref
    force: bool = Field(default=False, description="Also where containers use it")


class ImageRemoveResult(Result):
    """What is gone, and under which name it is kept until gc."""

    image: str
    image_id: str | None = None
    untagged: list[str] = []
    kept_as: str | None = None


class DigestParams(OfRegistry):
    """What the name means at its registry now; nothing is fetched."""


class DigestResult(Result):
    """`stale`: the image here is another one; null where there is none here."""

    image: str
    digest: str
    local: list[str] = []
    stale: bool | None = None


_REGISTRY_ERRORS = (
    "a registry or an engine that does not answer, or too many requests; a download that breaks off. "
    "A name that is not there, wrong credentials and a full disk are final"
)
_CONVERGES: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}
_NAMED_AS_WANTED = "the name means the image that the first attempt gave it"

PULL = docker_operation(
    "pull.execute",
    PullParams,
    PullResult,
    "Fetch an image from its registry",
    About(
        changed="the name means another image than before",
        undo="lets the name mean what it meant, or takes it off; the layers stay on the disk",
        duplicate=_NAMED_AS_WANTED,
        dry_run="compares the registry's digest with the local ones; not known where the registry is away",
        retried=_REGISTRY_ERRORS,
    ),
    kind=Kind.CONVERGES,
    undo=Undo.PARTIAL,
    secrets=frozenset({"auth"}),
)
PUSH = docker_operation(
    "push.execute",
    PushParams,
    PushResult,
    "Send an image to its registry",
    About(
        changed="the registry had another image under that name, or none",
        undo="none: a registry does not take back what it has, and others may have fetched it",
        duplicate="the registry has it already",
        dry_run="compares the registry's digest with the local ones",
        retried=_REGISTRY_ERRORS,
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
    secrets=frozenset({"auth"}),
)
BUILD = docker_operation(
    "build.execute",
    BuildParams,
    TagResult,
    "Build an image from a folder",
    About(
        changed="the name means another image than before",
        undo="lets the name mean what it meant, or takes it off; layers and cache stay on the disk",
        duplicate="the engine's cache gives the same image again",
        dry_run="says what would be built; whether that gives another image is not known before",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.PARTIAL,
)
TAG = docker_operation(
    "tag.execute",
    TagParams,
    TagResult,
    "Let a name mean an image",
    About(
        changed="the name meant another image, or none",
        undo="lets the name mean what it meant, or takes it off; refuses where somebody else has moved it since",
        duplicate=_NAMED_AS_WANTED,
    ),
    **_CONVERGES,
)
IMAGE_REMOVE = docker_operation(
    "image-remove.execute",
    ImageRemoveParams,
    ImageRemoveResult,
    "Remove an image",
    About(
        changed="it was there",
        undo="gives it its name back: until gc it is kept under another one",
        duplicate="finds it gone",
    ),
    **_CONVERGES,
)
DIGEST = docker_operation(
    "digest.get",
    DigestParams,
    DigestResult,
    "Ask a registry what a name means now",
    About(
        changed="never: it only looks",
        undo="nothing to take back",
        duplicate="asks again",
        dry_run="says what would be asked",
        retried=_REGISTRY_ERRORS,
    ),
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    secrets=frozenset({"auth"}),
)
