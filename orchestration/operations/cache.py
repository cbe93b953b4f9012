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
    """The operation `builder` runs within the step. The data of the builder become the next generation of the cache,
    which `Client().cached(NAME)` reads.

    The step builds nothing if the current generation is valid, unless `force` is set. A generation is valid if it is
    intact, has the given `fingerprint`, is not older than its `ttl`, and was not invalidated.
    """

    builder: Annotated[str, Field(min_length=1)] = Field(description="Operation that returns the data of the cache")
    params: dict[str, Any] = Field({}, description="Parameters of the builder")
    fingerprint: str = Field(
        "", description="Version of the builder's input; a generation of another version is not valid"
    )
    ttl: Duration = Field(0.0, description="Lifetime of the new generation; 0: unlimited")
    force: bool = Field(default=False, description="Build even if the current generation is valid")


class RebuildResult(Result):
    """`generation` is the current generation after the step, `age_s` its age in seconds, and `previous` the generation
    before the step. If the step built `generation`, `built` is true, and `why` is the reason.
    """

    cache: str
    generation: int
    previous: int | None = None
    built: bool = False
    why: str = ""
    age_s: float = 0.0


class CheckParams(CacheParams):
    """A cache is valid if its current generation is intact, is not older than its `ttl`, and was not invalidated."""

    fingerprint: str = Field(
        "", description="Version of the builder's input; if set, a generation of another version is not valid"
    )


class CheckResult(Result):
    """`reason` says why the cache is not valid. `generation` is the current generation, or 0 if the cache has none;
    `age_s` is its age in seconds.
    """

    cache: str
    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None


class InvalidateParams(CacheParams):
    """The next `cache.rebuild.execute` builds a new generation."""


class InvalidateResult(Result):
    """`generation` is the invalidated generation, or 0 if the cache has none."""

    cache: str
    generation: int = 0


REBUILD = register(
    name="cache.rebuild.execute",
    params=RebuildParams,
    result=RebuildResult,
    queue="cache",
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
    summary="Build a cache with an operation, unless the cache is valid",
    secrets=frozenset({"params"}),
    about=About(
        changed="the step built a generation",
        undo="restores the previous generation, or empties the cache; changes nothing if another generation was built "
        "since. Other effects of the builder remain",
        duplicate="waits for the lock of the cache; uses the new generation, if the first attempt has stored it",
        fails="if the builder is unknown or fails, or if its data exceed `LONGSHORE_MAX_OBJECT`",
        dry_run="shows whether the step would build, and the builder",
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
        changed="a generation existed that was not invalidated",
        undo="makes the generation valid again; changes nothing if another generation was built since",
        duplicate="finds the generation invalidated",
        dry_run="names the generation that would be invalidated",
    ),
)
