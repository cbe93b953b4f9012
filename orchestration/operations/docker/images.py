"""Images: pull, push, build, tag and remove."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import docker_operation, is_template

Ref = Annotated[str, Field(min_length=1, description="[registry/]name[:tag] or name@sha256:…")]


class Login(Params):
    """Registry credentials. By default the worker's docker configuration is used."""

    username: str = Field(min_length=1)
    password: str = Field(min_length=1, description="{{ secret('env:NAME') }}")


class OfRegistry(Params):
    """Parameters of an operation that queries a registry."""

    image: Ref
    auth: Login | None = Field(None, description="By default the worker's docker configuration")


class PullParams(OfRegistry):
    """The former image keeps a backup tag until `longshore gc`, so that an undo needs no download."""

    policy: Literal["always", "missing", "never"] = Field(
        "always", description="missing: pull only if the host lacks the image; never: the image must exist"
    )
    platform: str | None = Field(None, description="os/architecture; an image for another platform is an error")


class PullResult(Result):
    """`before_id`: the image that the tag referred to before; null for none."""

    image: str
    image_id: str
    before_id: str | None = None
    digest: str | None = None
    size: int = 0
    kept_as: str | None = None


class PushParams(OfRegistry):
    """The name of the image contains the registry."""


class PushResult(Result):
    """`before`: the former digest of the tag at the registry."""

    image: str
    image_id: str
    digest: str | None = None
    before: str | None = None


class BuildParams(Params):
    """The folder is on the worker's host."""

    image: Ref
    context: str = Field(description="Absolute path of the folder; .dockerignore applies")
    dockerfile: str = Field("Dockerfile", description="Path relative to the folder")
    args: dict[str, str] = Field({}, description="Build arguments")
    target: str | None = Field(None, description="Build stage")
    labels: dict[str, str] = Field({}, description="Labels of the image")
    pull: bool = Field(default=False, description="Pull newer base images")
    no_cache: bool = Field(default=False, description="Build without the cache of the engine")

    @field_validator("context")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") and not is_template(value):
            raise ValueError(f"{value!r} is not an absolute path on the worker's host")
        return value


class TagParams(Params):
    """The image must be on the host."""

    image: Ref
    name: str = Field(min_length=1, description="The new tag")


class TagResult(Result):
    """`before_id`: the image that the tag referred to before; null for none."""

    name: str
    image_id: str
    before_id: str | None = None


class ImageRemoveParams(Params):
    """The step removes one tag. An image without another tag keeps a backup tag, which `longshore gc` removes."""

    image: Ref
    force: bool = Field(default=False, description="Remove the tag even if containers use the image")


class ImageRemoveResult(Result):
    """The removed tags. `kept_as`: the backup tag."""

    image: str
    image_id: str | None = None
    untagged: list[str] = []
    kept_as: str | None = None


class DigestParams(OfRegistry):
    """Nothing is downloaded."""


class DigestResult(Result):
    """`local`: digests of the image on the host. `stale`: they differ; null without an image on the host."""

    image: str
    digest: str
    local: list[str] = []
    stale: bool | None = None


_REGISTRY_ERRORS = "temporary errors: an unreachable registry or engine, a rate limit, or an interrupted download"
_CONVERGES: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}
_NAMED_AS_WANTED = "finds the tag at the image of the first attempt"

PULL = docker_operation(
    "pull.execute",
    PullParams,
    PullResult,
    "Pull an image from its registry",
    About(
        changed="the tag refers to another image",
        undo="restores or removes the tag; layers stay on disk",
        duplicate=_NAMED_AS_WANTED,
        dry_run="compares the registry's digest with the local ones; unknown if the registry is unreachable",
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
    "Push an image to its registry",
    About(
        changed="the registry had another image for the tag, or none",
        undo="none: a push cannot be reverted, and clients may have pulled the image",
        duplicate="finds the image at the registry",
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
        changed="the tag refers to another image",
        undo="restores or removes the tag; layers and cache stay on disk",
        duplicate="builds again; the engine's cache returns the same image",
        dry_run="shows the build; the resulting image is not known in advance",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.PARTIAL,
)
TAG = docker_operation(
    "tag.execute",
    TagParams,
    TagResult,
    "Tag an image",
    About(
        changed="the tag referred to another image, or did not exist",
        undo="restores or removes the tag; fails if the tag was moved since",
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
        changed="the image existed",
        undo="restores the tag from the backup tag",
        duplicate="finds the image removed",
    ),
    **_CONVERGES,
)
DIGEST = docker_operation(
    "digest.get",
    DigestParams,
    DigestResult,
    "Get the current digest of a tag from its registry",
    About(
        changed="never: the operation only reads",
        undo="none needed",
        duplicate="queries again",
        dry_run="shows the query",
        retried=_REGISTRY_ERRORS,
    ),
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    secrets=frozenset({"auth"}),
)
