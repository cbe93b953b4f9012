"""`cache.*`: generations of values that are expensive to compute."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from longshore.orchestration.errors import Preflight, UnknownName
from longshore.orchestration.operations import Params, find
from longshore.orchestration.operations.cache import (
    CHECK,
    INVALIDATE,
    REBUILD,
    CheckParams,
    InvalidateParams,
    RebuildParams,
)
from longshore.orchestration.store.caches import Caches, Entry, Found
from longshore.tasks.crash_points import point
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    NoUndo,
    Outcome,
    Prediction,
    implementation,
    implements,
    unchanged,
)


@implements(REBUILD)
class Rebuild(Implementation[RebuildParams]):
    """Runs the builder operation within this step and its context, and stores the result as a new generation."""

    def before(self, ctx: Context, params: RebuildParams) -> dict[str, Any]:
        self._builder(params)
        return {"generation": ctx.caches().get(params.cache).generation}

    def change(self, ctx: Context, params: RebuildParams, before: dict[str, Any]) -> Change:
        caches = ctx.caches()
        requested_at = caches.now()
        name, given = self._builder(params)
        with ctx.lock(f"cache {params.cache}", f"cache {params.cache}"):
            found = caches.get(params.cache)
            why = found.problem(caches.now(), params.fingerprint) or ("a rebuild was requested" if params.force else "")
            built = mine(ctx, found)
            if built or not why or joined(found, requested_at, params.fingerprint):
                yield unchanged(ctx, f"cache {params.cache} is valid")
                return Outcome(changed=built, data=summary(caches, params.cache, found, before, built=built))
            undo = "restore the previous generation"
            yield Prediction(f"would build cache {params.cache} by {name}: {why}", undo=undo)
            began = caches.now()
            builder = implementation(name)
            done = builder.act(ctx, given, builder.before(ctx, given))
            value = ctx.redact_data(done.data)
            number, at = caches.number(params.cache), caches.now()
            entry = Entry(number, value, params.fingerprint, began, at, params.ttl, ctx.op_id)
            caches.swap(params.cache, entry)
            point("cache.swapped")
        return summary(caches, params.cache, Found(entry), before, built=True, why=why)

    def undo(self, ctx: Context, params: RebuildParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=ctx.caches().back(params.cache, ctx.op_id))

    @staticmethod
    def _builder(params: RebuildParams) -> tuple[str, Params]:
        try:
            operation = find(params.builder)
            return operation.name, operation.params.model_validate(params.params)
        except UnknownName as error:
            raise Preflight(f"builder: {error.message}", remedy=error.remedy) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["params", *map(str, first["loc"])])
            raise Preflight(f"builder {params.builder}: {where}: {first['msg']}") from None


@implements(CHECK)
class Check(NoUndo[CheckParams]):
    """Reports whether the current generation is valid."""

    def change(self, ctx: Context, params: CheckParams, before: dict[str, Any]) -> Change:
        caches = ctx.caches()
        now, found = caches.now(), caches.get(params.cache)
        why = found.problem(now, params.fingerprint)
        age = round(found.entry.age(now), 3) if found.entry else None
        data = {"cache": params.cache, "valid": not why, "reason": why or None, "generation": found.generation}
        data |= {"age_s": age}
        yield Prediction(f"would check whether cache {params.cache} is valid", changed=False, data=data)
        return data


@implements(INVALIDATE)
class Invalidate(Implementation[InvalidateParams]):
    """Marks the current generation as invalid."""

    def change(self, ctx: Context, params: InvalidateParams, before: dict[str, Any]) -> Change:
        caches = ctx.caches()
        found = caches.get(params.cache)
        if found.entry is None or found.entry.invalidated:
            yield unchanged(ctx, f"cache {params.cache} is already invalid")
        else:
            yield Prediction(f"would invalidate generation {found.generation} of cache {params.cache}")
        # A redelivered attempt finds its own mark and still counts as the change.
        done = caches.mark(params.cache, ctx.op_id) or bool(found.entry and found.entry.invalidated == ctx.op_id)
        return Outcome(changed=done, data={"cache": params.cache, "generation": found.generation})

    def undo(
        self, ctx: Context, params: InvalidateParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        found = ctx.caches().get(params.cache)
        if found.entry is None or found.entry.invalidated != ctx.op_id:
            return Outcome(changed=False)
        return Outcome(changed=ctx.caches().mark(params.cache, ""))


def mine(ctx: Context, found: Found) -> bool:
    """Reports whether an earlier attempt of this step has built the generation."""
    return found.entry is not None and found.entry.by == ctx.op_id


def joined(found: Found, requested_at: int, fingerprint: str = "", *, fresh: bool = False) -> bool:
    """Reports whether another run began to build the generation after this request, so that it satisfies the request.

    `fresh`: only a generation that was built from scratch does.
    """
    entry = found.entry
    if entry is None or entry.invalidated or entry.fingerprint != fingerprint:
        return False
    return entry.began > requested_at and (entry.fresh or not fresh)


def summary(
    caches: Caches, name: str, found: Found, before: dict[str, Any], *, built: bool = False, why: str = ""
) -> dict[str, Any]:
    """The result of a rebuild: the current generation and its age."""
    age = round(found.entry.age(caches.now()), 3) if found.entry else 0.0
    previous = before["generation"] or None
    return {"cache": name, "generation": found.generation, "previous": previous, "built": built, "age_s": age} | (
        {"why": why} if why else {}
    )
