"""Caches: what took long to find out, kept by generations, built by an operation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Operation, Params, Result, Undo, register

CacheName = Annotated[str, Field(pattern=r"^(\{\{.*\}\}|[A-Za-z0-9][A-Za-z0-9._@/-]{0,127})$")]


class CacheParams(Params):
    """Which cache."""

    cache: CacheName


class RebuildParams(CacheParams):
    """Has an operation build what is kept: its data are the next generation, read by `Client().cached(NAME)`.

    Nothing is built where the current generation is valid: it is there, as it was written, younger than `ttl`, built
    from the same `fingerprint`, and nobody has invalidated it. `force` builds all the same. What its builder does
    beside that is not taken back.
    """

    builder: Annotated[str, Field(min_length=1)] = Field(description="The operation; it runs on this step's worker")
    params: dict[str, Any] = Field({}, description="Its parameters")
    fingerprint: str = Field("", description="What it is built from, e.g. a version: another one needs another build")
    ttl: Duration = Field(0.0, description="How long a generation is valid; for ever if left out")
    force: bool = Field(default=False, description="Build also where the current generation is valid")


class RebuildResult(Result):
    """`generation` is the one that is current now, `previous` the one before; `built` tells whether this step built it
    or found it valid. `age_s` in seconds.
    """

    cache: str
    generation: int
    previous: int | None = None
    built: bool = False
    why: str = ""
    age_s: float = 0.0


class CheckParams(CacheParams):
    """Whether a cache is valid; with `fingerprint`, for what would be built now."""

    fingerprint: str = ""


class CheckResult(Result):
    """`reason` says why it is not valid."""

    cache: str
    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None


class InvalidateParams(CacheParams):
    """Have the next rebuild build, whatever is there. What is there stays for an undo, and is read no more."""


class InvalidateResult(Result):
    """`generation` is the one that is not valid any more, 0 where there was none."""

    cache: str
    generation: int = 0


REBUILD = register(
    Operation(
        name="cache.rebuild.execute",
        params=RebuildParams,
        result=RebuildResult,
        queue="cache",
        kind=Kind.CONVERGES,
        undo=Undo.FULL,
        summary="Have an operation build a cache, if it is not valid",
        secrets=frozenset({"params"}),
        about=About(
            changed="a generation was built",
            undo="brings the generation before it back, unless another one was built since",
            duplicate="one at a time by the cache's lock; the others find the generation that it built",
            dry_run="says whether it is valid, and what would build it",
            retried="whatever its builder says may pass",
        ),
    )
)
CHECK = register(
    Operation(
        name="cache.check.get",
        params=CheckParams,
        result=CheckResult,
        queue="cache",
        kind=Kind.READ_ONLY,
        undo=Undo.NONE,
        summary="Whether a cache is valid, and why not",
        about=READ_ONLY,
    )
)
INVALIDATE = register(
    Operation(
        name="cache.invalidate.execute",
        params=InvalidateParams,
        result=InvalidateResult,
        queue="cache",
        kind=Kind.CONVERGES,
        undo=Undo.FULL,
        summary="Say that a cache is not valid any more",
        about=About(
            changed="it was valid until then",
            undo="lets it be valid again, unless another generation was built since",
            duplicate="finds it marked",
            dry_run="says which generation would be marked",
        ),
    )
)
