"""`stacks.check` and `stacks.rebuild`: validation and rebuild of the cached inventory of a host."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.stacks import CHECK, REBUILD, CheckParams, RebuildParams
from longshore.orchestration.stacks.drift import Stale, find_drift
from longshore.orchestration.stacks.inventory import RATE_LIMITED, Inventory, Remote, difference, inventory_of
from longshore.orchestration.store.caches import STACK_CACHE, Caches, Entry, Found
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, ReadOnly, implements, unchanged
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
class Check(ReadOnly[CheckParams]):
    """Compares the cached inventory with the host."""

    def act(self, ctx: Context, params: CheckParams, before: dict[str, Any]) -> Outcome:
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
        return Outcome(changed=False, data={"valid": not why, "reason": why or None} | data)

    def predict(self, ctx: Context, params: CheckParams) -> Prediction:
        data = self.act(ctx, params, {}).data
        state = "is valid" if data["valid"] else f"needs a rebuild: {data['reason']}"
        return Prediction(f"the cache {state}", changed=False, data=data)


@implements(REBUILD)
class Rebuild(Implementation[RebuildParams]):
    """Inspects the host and stores the inventory as a new generation, which atomically replaces the current one."""

    def before(self, ctx: Context, params: RebuildParams) -> dict[str, Any]:
        return {"generation": ctx.caches().get(STACK_CACHE + ctx.host.name).generation}

    def act(self, ctx: Context, params: RebuildParams, before: dict[str, Any]) -> Outcome:
        caches, name = ctx.caches(), STACK_CACHE + ctx.host.name
        requested_at = params.asked or caches.now()
        with ctx.lock(f"cache {name}", f"the cache of {ctx.host.name}"):
            found = caches.get(name)
            seen, why = _read(caches, found)
            if seen is not None and mine(ctx, found):
                return Outcome(changed=True, data=_summary(caches, name, found, before, seen, built=True))
            if seen is not None and not why and _is_equivalent(seen, found, requested_at, params):
                return Outcome(changed=False, data=_summary(caches, name, found, before, seen))
            trusted = None if why or params.fresh else seen
            began = caches.now()
            remotes = _remotes(seen, fresh=params.fresh)
            now = HostInspection(ctx, engine(), params, trusted, True, remotes, keep=True).look()
            if trusted is not None:
                why = difference(trusted, now)
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

    def predict(self, ctx: Context, params: RebuildParams) -> Prediction:
        # Apart from `act`: the step decides under the lock of the cache.
        caches, name = ctx.caches(), STACK_CACHE + ctx.host.name
        found = caches.get(name)
        seen, why = _read(caches, found)
        undo = "restore the previous generation" if found.entry else "remove the generation"
        if params.fresh or why or seen is None:
            return Prediction(f"would build the cache from scratch: {why or 'no generation is valid'}", undo=undo)
        look = HostInspection(ctx, engine(), params, seen, False, _remotes(seen, fresh=False))
        why = difference(seen, look.look())
        if not why:
            return unchanged(ctx, "the cache is valid")
        return Prediction(f"would inspect the changes: {why}", undo=undo)

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
