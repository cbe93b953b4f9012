"""Circuit breakers of the services that operations need, shared by all workers.

A breaker is closed until an attempt finds the service down. While it is open, no run uses the service; after
`slow_retry`, one run may (half-open), and its result closes the breaker or keeps it open. Redis holds each open
breaker, so that a restart keeps its state.
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

#: The longest extra delay, ms, before a run that waits for a service asks again.
_LATEST = 3_600_000
#: Runs that one call wakes.
_AT_ONCE = 1000


@dataclass(frozen=True)
class BreakerDecision:
    """Whether a run may use a service now; if not, the time of the next question, ms, and the reason."""

    allowed: bool
    until: int = 0
    why: str = ""
    #: Whether the run is the half-open trial.
    probe: bool = False


@dataclass(frozen=True)
class Breaker:
    """An open breaker. Times are in ms of Redis's clock; `waiting` counts waiting runs; `probe` is the run on trial."""

    service: str
    why: str
    since: int
    until: int
    trips: int
    waiting: int
    probe: str = ""


class Breakers:
    """The breakers of an installation. Uses plain commands; `SET NX` makes the half-open trial exclusive."""

    def __init__(self, store: Store, chance: Callable[[], float] = random.random) -> None:
        self._store = store
        self._chance = chance

    def _slow(self) -> int:
        """ms until the next trial, jittered."""
        return round(self._store.settings.slow_retry * 1000 * (0.8 + 0.4 * self._chance()))

    @property
    def _longest(self) -> int:
        """The longest delay of `_slow`, ms."""
        return round(self._store.settings.slow_retry * 1200)

    def ask(self, service: str, run_id: str) -> BreakerDecision:
        """Decide whether this run may use the service; a run that is allowed while the breaker is open is its trial."""
        store, keys = self._store, self._store.keys
        found = store.call(store.client.hgetall, keys.breaker(service))
        if not found:
            return BreakerDecision(allowed=True)
        why, until, now = f"service {service} is down: {found.get('why', '')}", _ms(found, "until"), store.now()
        probe = store.call(store.client.get, keys.half_open(service))
        if probe == run_id:
            return BreakerDecision(allowed=True, why=why, probe=True)
        # A time too far ahead was set before Redis's clock went back.
        if probe is None and not now < until <= now + self._longest:
            taken = store.call(store.client.set, keys.half_open(service), run_id, nx=True, px=max(1000, self._slow()))
            if taken:
                return BreakerDecision(allowed=True, why=why, probe=True)
        # A waiting run asks again when the trial must have ended, and the later the more of them wait: one is enough
        # for the next trial, and a closing breaker wakes the others.
        others = max(0, int(store.call(store.client.scard, keys.blocked(service))) - 1)
        later = min(_LATEST, round(self._slow() * others * self._chance()))
        soonest = now + min(1000, self._slow())
        return BreakerDecision(allowed=False, until=max(min(until, now + self._longest), soonest) + later, why=why)

    def is_open(self, service: str) -> bool:
        """Report whether the breaker of the service is open."""
        return bool(self._store.call(self._store.client.exists, self._store.keys.breaker(service)))

    def give_back(self, service: str, run_id: str) -> None:
        """End the trial of this run without a result."""
        store, key = self._store, self._store.keys.half_open(service)
        if store.call(store.client.get, key) == run_id:
            store.call(store.client.delete, key)

    def trip(self, service: str, why: str, run_id: str) -> BreakerDecision:
        """Open the breaker, or keep it open, because this run found the service down."""
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
        """Open the breaker until `close` is called; report whether it was closed before."""
        store, key = self._store, self._store.keys.breaker(service)
        now = store.now()
        pipe = store.client.pipeline()
        pipe.hsetnx(key, "since", now)
        pipe.hset(key, mapping={"why": why, "until": 0, "trips": 1})
        pipe.sadd(store.keys.breakers, service)
        return bool(store.call(pipe.execute)[0])

    def wait(self, service: str, run_id: str) -> None:
        """Register a run to be woken when the breaker closes."""
        self._store.call(self._store.client.sadd, self._store.keys.blocked(service), run_id)

    def close(self, service: str) -> bool:
        """Close the breaker and wake the waiting runs, spread over `retry_spread`; report whether it was open."""
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
        """Schedule a sweep of the waiting runs after `fast_retry`."""
        store, settings = self._store, self._store.settings
        now = store.now()
        while waiting := store.call(store.client.srandmember, store.keys.blocked(service), _AT_ONCE):
            for run_id in waiting:
                store.look_at(run_id, now + round(1000 * settings.fast_retry), sooner=True)
            # Removed after the wake-up, so that a crash repeats it, which does no harm.
            store.call(store.client.srem, store.keys.blocked(service), *waiting)

    def open(self) -> list[Breaker]:
        """The open breakers, by service; damaged entries are omitted."""
        store, keys = self._store, self._store.keys
        found = []
        for service in sorted(store.call(store.client.smembers, keys.breakers)):
            pipe = store.client.pipeline(transaction=False)
            pipe.hgetall(keys.breaker(service))
            pipe.scard(keys.blocked(service))
            pipe.get(keys.half_open(service))
            try:
                fields, waiting, probe = store.call(pipe.execute)
            except WrongType:
                continue
            if fields:
                since, until, trips = (_ms(fields, name) for name in ("since", "until", "trips"))
                found.append(Breaker(service, fields.get("why", ""), since, until, trips, waiting, probe or ""))
        return found


def _ms(fields: Mapping[str, str], name: str) -> int:
    """A numeric field of a breaker; 0 where it is missing or damaged, which permits a trial at once."""
    return as_number(fields.get(name)) or 0


def services(plan: CompiledPlan, host: str = "") -> list[str]:
    """The services that the operations of a plan declare, except those of a host that is not known yet."""
    found = (service_of(step.operation, host) for step in plan.steps if not step.always)
    return sorted({service for service in found if service})
