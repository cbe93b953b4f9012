"""`stacks.check` and `stacks.rebuild`: validation and rebuild of the cached inventory of a host."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.stacks import CHECK, REBUILD, CheckParams, RebuildParams
from longshore.orchestration.stacks.drift import Stale, find_drift
from longshore.orchestration.stacks.inventory import RATE_LIMITED, Inventory, Remote, difference, inventory_of
from longshore.orchestration.store.caches import STACK_CACHE, Caches, Entry, Found
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    NoUndo,
    Outcome,
    Prediction,
    implements,
    unchanged,
)
from longshore.tasks.operations.cache import joined, mine, summary
from longshore.tasks.operations.stacks.inspect_host import HostInspection, rules_of


def _remotes(seen: Inventory | None, *, fresh: bool) -> dict[str, Remote]:
    """The earlier responses of registries; for a fresh build, their rate limits only."""
    remotes = seen.remotes if seen else {}
    return {ref: one for ref, one in remotes.items() if not fresh or one.error == RATE_LIMITED}


def _read(caches: Caches, found: Found) -> tuple[Inventory | None, str]:
    """The inventory of a generation, also an invalid one; and the reason why it is invalid."""
    seen, unreadable = inventory_of(found)
    return seen, found.problem(caches.now()) or unreadable


@implements(CHECK)
class Check(NoUndo[CheckParams]):
    """Compares the cached inventory with the host."""

    def change(self, ctx: Context, params: CheckParams, before: dict[str, Any]) -> Change:
        caches = ctx.caches()
        found = caches.get(STACK_CACHE + ctx.host.name)
        seen, why = _read(caches, found)
        trusted = None if why else seen
        data: dict[str, Any] = {"generation": found.generation}
        data["age_s"] = round(found.entry.age(caches.now()), 3) if found.entry else None
        if trusted is not None or params.state:
            look = HostInspection(ctx, engine(), params, trusted, params.state, _remotes(seen, fresh=False))
            now = look.look()
            why = why or (difference(trusted, now) if trusted else "")
            if params.state:
                data["seen"] = now.as_json()
        data |= {"valid": not why, "reason": why or None}
        yield Prediction(f"the cache {f'needs a rebuild: {why}' if why else 'is valid'}", changed=False, data=data)
        return data


@implements(REBUILD)
class Rebuild(Implementation[RebuildParams]):
    """Inspects the host and stores the inventory as a new generation, which atomically replaces the current one."""

    def before(self, ctx: Context, params: RebuildParams) -> dict[str, Any]:
        return {"generation": ctx.caches().get(STACK_CACHE + ctx.host.name).generation}

    def change(self, ctx: Context, params: RebuildParams, before: dict[str, Any]) -> Change:
        caches, name = ctx.caches(), STACK_CACHE + ctx.host.name
        requested_at = params.asked or caches.now()
        with ctx.lock(f"cache {name}", f"the cache of {ctx.host.name}"):
            found = caches.get(name)
            seen, why = _read(caches, found)
            built = mine(ctx, found)
            if seen is not None and (built or (not why and _is_equivalent(seen, found, requested_at, params))):
                yield unchanged(ctx, "the cache is valid")
                return Outcome(changed=built, data=_summary(caches, name, found, before, seen, built=built))
            trusted = None if why or params.fresh else seen
            undo = "restore the previous generation" if found.entry else "remove the generation"
            if trusted is None:
                yield Prediction(f"would build the cache from scratch: {why or 'no generation is valid'}", undo=undo)
            began = caches.now()
            remotes, stores = _remotes(seen, fresh=params.fresh), not ctx.dry_run
            now = HostInspection(ctx, engine(), params, trusted, stores, remotes, keep=stores).look()
            if trusted is not None:
                why = difference(trusted, now)
                action = f"would inspect the changes: {why}"
                yield Prediction(action, undo=undo) if why else unchanged(ctx, "the cache is valid")
                if not why and now.remotes == trusted.remotes:
                    return Outcome(changed=False, data=_summary(caches, name, found, before, trusted))
            entry = Entry(
                caches.number(name), now.as_json(), now.fingerprint, began, caches.now(), params.ttl, ctx.op_id,
                fresh=trusted is None,
            )  # fmt: skip
            caches.swap(name, entry)
            point("cache.swapped")
        why = why or ("a fresh build was requested" if params.fresh else "registries were queried")
        data = _summary(caches, name, Found(entry), before, now, built=True) | {"why": why}
        return Outcome(changed=True, data=data)

    def undo(self, ctx: Context, params: RebuildParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=ctx.caches().back(STACK_CACHE + ctx.host.name, ctx.op_id))


def _is_equivalent(seen: Inventory, found: Found, requested_at: int, params: RebuildParams) -> bool:
    """Reports whether another run has built an equivalent generation meanwhile: same rules, no registry queries."""
    same = seen.rules == rules_of(params) and not params.registry
    return same and joined(found, requested_at, seen.fingerprint, fresh=params.fresh)


def _summary(
    caches: Caches, name: str, found: Found, before: dict[str, Any], seen: Inventory, *, built: bool = False
) -> dict[str, Any]:
    stale = sum(isinstance(one, Stale) for one in find_drift("", seen))
    services = sum(len(project.services) for project in seen.projects.values())
    counts = {"projects": len(seen.projects), "services": services, "stale": stale}
    return summary(caches, name, found, before, built=built) | counts
