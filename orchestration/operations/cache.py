"""Caches of expensive results, built by an operation and stored as generations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import (
    READ_ONLY,
    About,
    Kind,
    Params,
    Result,
    Undo,
    expected,
    register,
)

CacheName = Annotated[
    str,
    Field(pattern=r"^(\{\{.*\}\}|[A-Za-z0-9][A-Za-z0-9._@/-]{0,127})$"),
    expected("the name of a cache: letters, digits and ._@/-"),
]


class CacheParams(Params):
    """The name of a cache."""

    cache: CacheName = Field(description="Name of the cache")


class RebuildParams(CacheParams):
    """The data of the builder become the next generation, which `Client().cached(NAME)` reads.

    A valid generation is not rebuilt, unless `force` is set. A generation is valid if it is intact, younger than
    `ttl`, built from the same `fingerprint`, and not invalidated. Other effects of the builder are not undone.
    """

    builder: Annotated[str, Field(min_length=1)] = Field(description="Operation, which runs on the worker of this step")
    params: dict[str, Any] = Field({}, description="Parameters of the builder")
    fingerprint: str = Field("", description="Version of the input; another version needs a rebuild")
    ttl: Duration = Field(0.0, description="Lifetime of a generation; 0: unlimited")
    force: bool = Field(default=False, description="Build even if the current generation is valid")


class RebuildResult(Result):
    """`generation` is the current generation, and `previous` the one before. `built` is false if the step found a valid
    generation; otherwise, `why` is the reason of the build.
    """

    cache: str
    generation: int
    previous: int | None = None
    built: bool = False
    why: str = ""
    age_s: float = 0.0


class CheckParams(CacheParams):
    """A missing cache is not valid."""

    fingerprint: str = Field("", description="Version of the input; a cache of another version is not valid")


class CheckResult(Result):
    """`reason`: the reason why the cache is not valid."""

    cache: str
    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None


class InvalidateParams(CacheParams):
    """The next rebuild builds a new generation. The current generation is kept only for an undo."""


class InvalidateResult(Result):
    """`generation`: the invalidated generation; 0 if the cache had none."""

    cache: str
    generation: int = 0


REBUILD = register(
    name="cache.rebuild.execute",
    params=RebuildParams,
    result=RebuildResult,
    queue="cache",
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
    summary="Build a cache with an operation, unless it is valid",
    secrets=frozenset({"params"}),
    about=About(
        changed="a generation was built",
        undo="restores the previous generation, unless another one was built since",
        duplicate="waits for the lock of the cache; finds the new generation",
        dry_run="shows whether the cache is valid, and its builder",
        retried="temporary errors of the builder",
    ),
)
CHECK = register(
    name="cache.check.get",
    params=CheckParams,
    result=CheckResult,
    queue="cache",
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    summary="Check whether a cache is valid",
    about=READ_ONLY,
)
INVALIDATE = register(
    name="cache.invalidate.execute",
    params=InvalidateParams,
    result=InvalidateResult,
    queue="cache",
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
    summary="Invalidate a cache",
    about=About(
        changed="the cache was valid",
        undo="makes the generation valid again, unless another one was built since",
        duplicate="finds the cache invalidated",
        dry_run="names the generation that would be invalidated",
    ),
)
