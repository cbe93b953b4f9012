"""`stacks.check` and `stacks.rebuild`: whether the cache says what is there, and making it say so."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.stacks import CHECK, REBUILD, CheckParams, RebuildParams
from longshore.orchestration.stacks.drift import Stale, find_drift
from longshore.orchestration.stacks.inventory import Inventory, Remote, difference, inventory_of
from longshore.orchestration.store.caches import CACHE, Caches, Entry, Found
from longshore.tasks.crash_points import point
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, ReadOnly, implements
from longshore.tasks.operations.cache import joined, mine, told
from longshore.tasks.operations.stacks.inspect_host import HostInspection, rules_of


def _remotes(seen: Inventory | None, *, fresh: bool) -> dict[str, Remote]:
    """What registries have said; of a look from nothing only that they want to be left alone."""
    remotes = seen.remotes if seen else {}
    return {ref: one for ref, one in remotes.items() if not fresh or one.error == "limited"}


def _read(caches: Caches, found: Found) -> tuple[Inventory | None, str]:
    """What a generation says, whatever it is worth; and why nothing of it is trusted."""
    seen, unreadable = inventory_of(found)
    return seen, found.wrong(caches.now()) or unreadable


@implements(CHECK)
class Check(ReadOnly[CheckParams]):
    """See its schema."""

    def act(self, ctx: Context, params: CheckParams, before: dict[str, Any]) -> Outcome:
        caches = ctx.caches()
        found = caches.get(CACHE + ctx.host.name)
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
        said = "is valid" if data["valid"] else f"needs a rebuild: {data['reason']}"
        return Prediction(f"the cache {said}", changed=False, data=data)


@implements(REBUILD)
class Rebuild(Implementation[RebuildParams]):
    """Looks at the host and keeps what it sees, aside at first, then in the place of what was kept before."""

    def before(self, ctx: Context, params: RebuildParams) -> dict[str, Any]:
        return {"generation": ctx.caches().get(CACHE + ctx.host.name).generation}

    def act(self, ctx: Context, params: RebuildParams, before: dict[str, Any]) -> Outcome:
        caches, name = ctx.caches(), CACHE + ctx.host.name
        asked = params.asked or caches.now()
        with ctx.lock(f"cache {name}", f"the cache of {ctx.host.name}"):
            found = caches.get(name)
            seen, why = _read(caches, found)
            if seen is not None and mine(ctx, found):
                return Outcome(changed=True, data=_told(caches, name, found, before, seen, built=True))
            if seen is not None and not why and _is_mine(seen, found, asked, params):
                return Outcome(changed=False, data=_told(caches, name, found, before, seen))
            trusted = None if why or params.fresh else seen
            began = caches.now()
            remotes = _remotes(seen, fresh=params.fresh)
            now = HostInspection(ctx, engine(), params, trusted, True, remotes, keep=True).look()
            if trusted is not None:
                why = difference(trusted, now)
                if not why and now.remotes == trusted.remotes:
                    return Outcome(changed=False, data=_told(caches, name, found, before, trusted))
            entry = Entry(
                caches.number(name), now.as_json(), now.fingerprint, began, caches.now(), params.ttl, ctx.op_id,
                fresh=trusted is None,
            )  # fmt: skip
            caches.swap(name, entry)
            point("cache.swapped")
        why = why or ("it was to be built from nothing" if params.fresh else "registries were asked")
        data = _told(caches, name, Found(entry), before, now, built=True) | {"why": why}
        return Outcome(changed=True, data=data)

    def predict(self, ctx: Context, params: RebuildParams) -> Prediction:
        caches, name = ctx.caches(), CACHE + ctx.host.name
        found = caches.get(name)
        seen, why = _read(caches, found)
        undo = "bring the generation before it back" if found.entry else "take it away"
        if params.fresh or why or seen is None:
            return Prediction(f"would build it from nothing: {why or 'nothing of it is to be trusted'}", undo=undo)
        look = HostInspection(ctx, engine(), params, seen, False, _remotes(seen, fresh=False))
        why = difference(seen, look.look())
        if not why:
            return Prediction("the cache is valid", changed=None if ctx.has_upstream else False)
        return Prediction(f"would look at what has changed: {why}", undo=undo)

    def undo(self, ctx: Context, params: RebuildParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=ctx.caches().back(CACHE + ctx.host.name, ctx.op_id))


def _is_mine(seen: Inventory, found: Found, asked: int, params: RebuildParams) -> bool:
    """Whether somebody has built meanwhile what this step would: by the same rules, and without asking registries."""
    same = seen.rules == rules_of(params) and not params.registry
    return same and joined(found, asked, seen.fingerprint, fresh=params.fresh)


def _told(
    caches: Caches, name: str, found: Found, before: dict[str, Any], seen: Inventory, *, built: bool = False
) -> dict[str, Any]:
    stale = sum(isinstance(one, Stale) for one in find_drift("", seen))
    services = sum(len(project.services) for project in seen.projects.values())
    counts = {"projects": len(seen.projects), "services": services, "stale": stale}
    return told(caches, name, found, before, built=built) | counts
