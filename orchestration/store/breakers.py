"""Circuit breakers: what is known of the services that operations need, shared by all workers.

A service is closed (it answers) unless somebody found it down. While it is open nobody tries it; after
`slow_retry` one run may, as a probe; what that finds closes it or leaves it open. Kept in Redis for as long as
it is open, so that a restart forgets nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from longshore.orchestration.errors import WrongType
from longshore.orchestration.operations.base import service_of
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.run_store import Store

#: ms by which a run that waits for a service looks again later at most.
_LATEST = 3_600_000
#: Runs that are woken by one call.
_AT_ONCE = 1000


@dataclass(frozen=True)
class BreakerDecision:
    """Whether a service may be tried now; else until when not, ms, and why."""

    allowed: bool
    until: int = 0
    why: str = ""
    #: It is allowed to find out whether the service is back.
    probe: bool = False


@dataclass(frozen=True)
class Breaker:
    """An open one. Times are ms of Redis's clock; `waiting` is how many runs wait for it."""

    service: str
    why: str
    since: int
    until: int
    trips: int
    waiting: int
    probe: str = ""


class Breakers:
    """Those of one installation. Plain commands: the probe alone has to be one run's, and `SET NX` makes it so."""

    def __init__(self, store: Store, chance: Callable[[], float] = random.random) -> None:
        self._store = store
        self._chance = chance

    def _slow(self) -> int:
        """ms until the next probe, jittered."""
        return round(self._store.settings.slow_retry * 1000 * (0.8 + 0.4 * self._chance()))

    @property
    def _longest(self) -> int:
        """ms that `_slow` gives at most."""
        return round(self._store.settings.slow_retry * 1200)

    def ask(self, service: str, run_id: str) -> BreakerDecision:
        """Whether this run may try the service. To be allowed while it is open is to be its probe."""
        store, keys = self._store, self._store.keys
        found = store.call(store.client.hgetall, keys.breaker(service))
        if not found:
            return BreakerDecision(allowed=True)
        why, until, now = f"service {service} is down: {found.get('why', '')}", _ms(found, "until"), store.now()
        probe = store.call(store.client.get, keys.half_open(service))
        if probe == run_id:
            return BreakerDecision(allowed=True, why=why, probe=True)
        # Farther ahead than it can have been put: Redis's clock was set back since.
        if probe is None and not now < until <= now + self._longest:
            taken = store.call(store.client.set, keys.half_open(service), run_id, nx=True, px=max(1000, self._slow()))
            if taken:
                return BreakerDecision(allowed=True, why=why, probe=True)
        # A run that waits looks again when the probe must have ended. Of many that wait one is to be the next probe:
        # the others look again as much later as there are of them, and are woken once it is back.
        others = max(0, int(store.call(store.client.scard, keys.blocked(service))) - 1)
        later = min(_LATEST, round(self._slow() * others * self._chance()))
        soonest = now + min(1000, self._slow())
        return BreakerDecision(allowed=False, until=max(min(until, now + self._longest), soonest) + later, why=why)

    def is_open(self, service: str) -> bool:
        return bool(self._store.call(self._store.client.exists, self._store.keys.breaker(service)))

    def give_back(self, service: str, run_id: str) -> None:
        """This run does not try it after all."""
        store, key = self._store, self._store.keys.half_open(service)
        if store.call(store.client.get, key) == run_id:
            store.call(store.client.delete, key)

    def trip(self, service: str, why: str, run_id: str) -> BreakerDecision:
        """It was found down, by this run."""
        store, key = self._store, self._store.keys.breaker(service)
        now = store.now()
        until = now + self._slow()
        pipe = store.client.pipeline()
        pipe.hsetnx(key, "since", now)
        pipe.hset(key, mapping={"why": why, "until": until})
        pipe.hincrby(key, "trips", 1)
        pipe.delete(store.keys.half_open(service))
        pipe.sadd(store.keys.breakers, service)
        pipe.sadd(store.keys.blocked(service), run_id)
        store.call(pipe.execute)
        return BreakerDecision(allowed=False, until=until, why=f"service {service} is down: {why}")

    def hold(self, service: str, why: str) -> bool:
        """It is not to be tried until somebody says so (`close`); whether that was news."""
        store, key = self._store, self._store.keys.breaker(service)
        now = store.now()
        pipe = store.client.pipeline()
        pipe.hsetnx(key, "since", now)
        pipe.hset(key, mapping={"why": why, "until": 0, "trips": 1})
        pipe.sadd(store.keys.breakers, service)
        return bool(store.call(pipe.execute)[0])

    def wait(self, service: str, run_id: str) -> None:
        """Have this run be woken when the service is back."""
        self._store.call(self._store.client.sadd, self._store.keys.blocked(service), run_id)

    def close(self, service: str) -> bool:
        """It answers; whether that was news. The runs that waited for it go on, spread over `retry_spread`."""
        store, keys = self._store, self._store.keys
        if not store.call(store.client.exists, keys.breaker(service)):
            return False
        pipe = store.client.pipeline()
        pipe.delete(keys.breaker(service), keys.half_open(service))
        pipe.srem(keys.breakers, service)
        store.call(pipe.execute)
        self.wake(service)
        return True

    def wake(self, service: str) -> None:
        """Have the runs that wait for it looked at, after `fast_retry`."""
        store, settings = self._store, self._store.settings
        now = store.now()
        while waiting := store.call(store.client.srandmember, store.keys.blocked(service), _AT_ONCE):
            for run_id in waiting:
                store.look_at(run_id, now + round(1000 * settings.fast_retry), sooner=True)
            # After they were told: one that is told twice does no harm.
            store.call(store.client.srem, store.keys.blocked(service), *waiting)

    def open(self) -> list[Breaker]:
        """Those that are open, by name."""
        store, keys = self._store, self._store.keys
        found = []
        for service in sorted(store.call(store.client.smembers, keys.breakers)):
            pipe = store.client.pipeline(transaction=False)
            pipe.hgetall(keys.breaker(service))
            pipe.scard(keys.blocked(service))
            pipe.get(keys.half_open(service))
            try:
                fields, waiting, probe = store.call(pipe.execute)
            except WrongType:  # one of its keys, and of nobody else's
                continue
            if fields:
                since, until, trips = (_ms(fields, name) for name in ("since", "until", "trips"))
                found.append(Breaker(service, fields.get("why", ""), since, until, trips, waiting, probe or ""))
        return found


def _ms(fields: Mapping[str, str], name: str) -> int:
    """A number of a breaker's; 0, by which it may be tried at once, for a field that is missing or damaged."""
    return as_number(fields.get(name)) or 0


def services(plan: CompiledPlan, host: str = "") -> list[str]:
    """The services that a plan's operations say that they need, but for those of a host that is not known yet."""
    found = (service_of(step.operation, host) for step in plan.steps if not step.always)
    return sorted({service for service in found if service})
