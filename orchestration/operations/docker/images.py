"""Images: pull, push, build, tag and remove."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import docker_operation, is_template

#: A name with a tag; `latest` by default.
_TAG = "[registry/]name[:tag]"


def _without_digest(value: str) -> str:
    if "@" in value and not is_template(value):
        raise ValueError(f"{value!r} contains a digest, which follows from the content of the image: give {_TAG}")
    return value


Tag = Annotated[str, Field(min_length=1, description=_TAG)]
#: A name that the step gives to an image, on the host or at a registry.
NewTag = Annotated[str, Field(min_length=1, description=_TAG), AfterValidator(_without_digest)]
Ref = Annotated[str, Field(min_length=1, description=f"{_TAG}, or name@sha256:…")]
IdOrRef = Annotated[str, Field(min_length=1, description=f"{_TAG}, name@sha256:…, or the id of an image")]


class Login(Params):
    """Registry credentials. By default the worker's docker configuration is used."""

    username: str = Field(min_length=1)
    password: str = Field(min_length=1, description="{{ secret('env:NAME') }}")


class OfRegistry(Params):
    """Parameters of an operation that queries a registry."""

    image: Ref
    auth: Login | None = Field(None, description="Registry credentials; by default the worker's docker configuration")


class PullParams(OfRegistry):
    """If the tag moves, the former image gets a backup tag, so that the undo needs no download. Later, `longshore gc`
    removes the backup tag.
    """

    policy: Literal["always", "missing", "never"] = Field(
        "always", description="missing: pull only if the host lacks the image; never: do not pull"
    )
    platform: str | None = Field(None, description="os/architecture, such as linux/arm64")


class PullResult(Result):
    """`before_id` is the image of the tag before the step, or null. `kept_as` is the backup tag of this image."""

    image: str
    image_id: str
    before_id: str | None = None
    digest: str | None = None
    size: int = 0
    kept_as: str | None = None


class PushParams(OfRegistry):
    """The name of the image contains the registry."""

    image: NewTag


class PushResult(Result):
    """`digest` is the digest of the tag at the registry after the step, and `before` the former one."""

    image: str
    image_id: str
    digest: str | None = None
    before: str | None = None


class BuildParams(Params):
    """The step sends the folder to the engine, without the files that .dockerignore excludes."""

    image: NewTag
    context: str = Field(description="Absolute path of the folder on the worker's host")
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
    """If the tag moves, the former image gets a backup tag for the undo."""

    image: IdOrRef
    name: Annotated[NewTag, Field(description=f"The new tag: {_TAG}")]


class TagResult(Result):
    """`before_id` is the image of the tag before the step, or null."""

    name: str
    image_id: str
    before_id: str | None = None


class ImageRemoveParams(Params):
    """The step removes the given tag, or all tags if `image` is an id. The image gets a backup tag, which
    `longshore gc` removes later.
    """

    image: Annotated[str, Field(min_length=1, description=f"{_TAG}, or the id of an image")]
    force: bool = Field(default=False, description="Remove the last tag even if containers use the image")


class ImageRemoveResult(Result):
    """`untagged` lists the removed tags. `kept_as` is the backup tag."""

    image: str
    image_id: str | None = None
    untagged: list[str] = []
    kept_as: str | None = None


class DigestParams(OfRegistry):
    """The step does not download the image."""

    image: Tag


class DigestResult(Result):
    """`digest` is the digest at the registry. `local` lists the digests of the image on the host. `stale` is true if
    `digest` is not in `local`, and null if the host lacks the image.
    """

    image: str
    digest: str
    local: list[str] = []
    stale: bool | None = None


_REFUSED = "if the registry has no such image, or refuses the access"
_MOVED_TAG = "restores the former tag, or removes a new one; fails if the tag was moved since"
_CONVERGES: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}

PULL = docker_operation(
    "pull.execute",
    PullParams,
    PullResult,
    "Pull an image from its registry",
    About(
        changed="the tag refers to another image than before",
        undo=f"{_MOVED_TAG}. Layers stay on disk",
        duplicate="pulls again; complete layers are not downloaded again",
        fails=f"{_REFUSED}; if the image is for another `platform`; with `policy: never`, if the host lacks the image",
        dry_run="compares the digests on the host with that of the registry",
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
        undo="none: another host may have pulled the image",
        duplicate="pushes again, unless the registry has the image",
        fails="if the image is not on the host, or the registry refuses the access",
        dry_run="compares the digests on the host with that of the registry",
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
        changed="the tag refers to another image than before",
        undo=f"{_MOVED_TAG}. Layers and build cache stay on disk",
        duplicate="builds again, with the cache of the engine",
        fails="if the folder or the Dockerfile does not exist, or the build fails",
        dry_run="shows the build",
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
        undo=_MOVED_TAG,
        duplicate="finds the tag moved, or moves the tag",
        fails="if the image is not on the host",
    ),
    **_CONVERGES,
)
IMAGE_REMOVE = docker_operation(
    "image-remove.execute",
    ImageRemoveParams,
    ImageRemoveResult,
    "Remove tags of an image",
    About(
        changed="the image existed under this name or id",
        undo="restores the removed tags; fails if one of them refers to another image now",
        duplicate="removes the remaining tags",
        fails="if `image` is a digest; without `force`, also if a container uses the image, and no other tag of the "
        "image would remain",
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
        fails=_REFUSED,
        dry_run="shows the query",
    ),
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    secrets=frozenset({"auth"}),
)
