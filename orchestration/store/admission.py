"""Which runs may begin: at most so many at once, the others in the order in which they were asked for.

Limits: all runs (`max_runs`), those of one plan (`max_runs_per_plan`), those with one key (`concurrency` in a
plan), and one run for each project on a host that the plan names (SEMANTICS 34), from its beginning to its end, undo
included. A run that is held up by its plan's limit, its key or a lock does not hold up those behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longshore.orchestration.errors import UNREADABLE, QueueFull, WrongType
from longshore.orchestration.messaging.signing import sealed
from longshore.orchestration.store.indices import mark
from longshore.orchestration.store.run_store import Store, read_request

#: Queued runs that are read at once.
_LOOKED_AT = 1000


#: The group of the runs of jobs.
JOBS = "jobs"


def _kinds(wanted: AdmissionRequest) -> set[tuple[object, ...]]:
    """What a run may be refused for, so that all others with the same are refused, too. A part of another run is
    admitted by what that one holds.
    """
    if wanted.parents:
        return set()
    return {("plan", wanted.plan_key), ("key", wanted.key, wanted.limit), ("lock", wanted.locks)}


def _lock(name: str) -> str:
    """Its slot; no key of a plan begins so."""
    return f"lock {name}"


@dataclass(frozen=True)
class AdmissionRequest:
    """What admission has to know of a run."""

    plan: str
    key: str = ""
    limit: int = 1
    on_limit: str = "queue"
    #: The runs that it is a part of, the nearest last.
    parents: tuple[str, ...] = ()
    #: What it needs for itself alone, as `host/project`, sorted.
    locks: tuple[str, ...] = ()
    #: What it is one of, where those have a limit of their own: `jobs`.
    group: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> AdmissionRequest:
        """As a request says it."""
        shared = body.get("concurrency") or {}
        parents = tuple((body.get("parent") or {}).get("line", ()))
        return cls(
            str(body["plan"]["name"]),
            parents=parents,
            locks=tuple(body.get("locks", ())),
            group=body.get("group", ""),
            **shared,
        )

    @property
    def plan_key(self) -> str:
        """Those that it shares a limit with; no plan's name has a space in it."""
        return f"all {self.group}" if self.group else self.plan

    def text(self) -> str:
        """As `read` reads it."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> AdmissionRequest:
        """Raises what `UNREADABLE` names."""
        known = json.loads(text)
        wanted = cls(**known | {"parents": tuple(known["parents"]), "locks": tuple(known.get("locks", ()))})
        if not all(isinstance(word, str) for word in (wanted.plan, wanted.key, wanted.group, *wanted.locks)):
            raise TypeError("the names must be text")
        return replace(wanted, limit=int(wanted.limit))

    @classmethod
    def known(cls, text: str) -> AdmissionRequest | None:
        """None for an entry that cannot be read."""
        try:
            return cls.read(text)
        except UNREADABLE:
            return None


class Admission:
    """The queue of an installation. Every call is safe to repeat."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def submit(self, run_id: str, body: Mapping[str, Any], *, bounded: bool = True) -> dict[str, Any] | None:
        """Put down that a run is wanted, once; the request that was there before, if any. QueueFull stores nothing."""
        store, keys = self._store, self._store.keys
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        text = sealed(store.settings, "request", run_id, text)
        at_most = store.settings.max_queued if bounded else ""
        names = [
            keys.of(run_id).request,
            keys.inbox,
            keys.queue,
            keys.admission_requests,
            keys.admission_order,
            keys.of(run_id).commands,
        ]
        said, there = store.run_global("submit", names, run_id, text, mark(), AdmissionRequest.of(body).text(), at_most)
        if said == "full":
            raise QueueFull(
                f"{there} runs wait already, and no more may (max_queued)",
                remedy="try again later, or let more run at once: LONGSHORE_MAX_RUNS",
            )
        return read_request(run_id, there) if said == "there" else None

    def admit(self, run_id: str, wanted: AdmissionRequest, *, anyway: bool = False) -> str:
        """Let it begin if there is room; else what there is none in: `all`, `plan`, `key`, `lock`. `gone`: it was
        released.

        `anyway`: it has begun before, and somebody has asked that it go on.
        """
        store, keys, settings = self._store, self._store.keys, self._store.settings
        names = [
            keys.queue,
            keys.admission_requests,
            keys.admitted,
            keys.of_plan(wanted.plan_key),
            keys.slot(wanted.key),
        ]
        names.append(keys.live)
        names += [keys.slot(_lock(name)) for name in wanted.locks]
        said = store.run_global(
            "admit", names, run_id, settings.max_runs or "", self._limit_of_plan(wanted) or "",
            wanted.limit if wanted.key else "", "1" if anyway else "", *wanted.parents,
        )  # fmt: skip
        return "" if said == "ok" else str(said)

    def _limit_of_plan(self, wanted: AdmissionRequest) -> int | None:
        settings = self._store.settings
        return settings.max_jobs if wanted.group == JOBS else settings.max_runs_per_plan

    def readmit_request(self, run_id: str, wanted: AdmissionRequest) -> None:
        """A run that rested is wanted again: it has its place, whether there is room or not."""
        self._store.call(self._store.client.hset, self._store.keys.admission_requests, run_id, wanted.text())
        self.admit(run_id, wanted, anyway=True)

    def release(self, run_id: str, wanted: AdmissionRequest) -> None:
        """It has ended: its place is free."""
        keys = self._store.keys
        pipe = self._store.client.pipeline()
        pipe.zrem(keys.queue, run_id)
        pipe.hdel(keys.admission_requests, run_id)
        pipe.zrem(keys.admitted, run_id)
        pipe.srem(keys.of_plan(wanted.plan_key), run_id)
        if wanted.key:
            pipe.srem(keys.slot(wanted.key), run_id)
        for name in wanted.locks:
            pipe.srem(keys.slot(_lock(name)), run_id)
        self._store.call(pipe.execute)

    def limited(self, wanted: AdmissionRequest) -> bool:
        """Whether anything can hold it up."""
        return bool(self._store.settings.max_runs or self._limit_of_plan(wanted) or wanted.key or wanted.locks)

    def next(self) -> list[tuple[str, AdmissionRequest]]:
        """Let those begin for whom there is room now, in their order; returns them."""
        store, keys = self._store, self._store.keys
        admitted: list[tuple[str, AdmissionRequest]] = []
        refused: set[tuple[object, ...]] = set()
        begin = 0
        while waiting := store.call(store.client.zrange, keys.queue, begin, begin + _LOOKED_AT - 1):
            known = store.call(store.client.hmget, keys.admission_requests, waiting)
            for run_id, text in zip(waiting, known, strict=True):
                # Released just now, or damaged.
                wanted = AdmissionRequest.known(text) if text else None
                if wanted is None or not refused.isdisjoint(kinds := _kinds(wanted)):
                    continue
                try:
                    why = self.admit(run_id, wanted)
                except WrongType:  # its own slot, or its plan's: those behind it do not wait for that
                    continue
                if not why:
                    admitted.append((run_id, wanted))
                elif why == "all":
                    return admitted
                else:  # what one run waits for, all others of its kind wait for as well
                    refused |= {kind for kind in kinds if kind[0] == why}
            begin += _LOOKED_AT
        return admitted

    def waits(self, run_id: str) -> bool:
        """Whether it is in the queue."""
        return self._store.call(self._store.client.zscore, self._store.keys.queue, run_id) is not None

    def remember(self, run_id: str, wanted: AdmissionRequest) -> bool:
        """Whether a run in the queue was unknown: what was known of it was lost, and is known again now."""
        store, keys = self._store, self._store.keys
        return self.waits(run_id) and bool(
            store.call(store.client.hsetnx, keys.admission_requests, run_id, wanted.text())
        )

    def is_in(self, run_id: str) -> bool:
        """Whether it has its place."""
        return self._store.call(self._store.client.zscore, self._store.keys.admitted, run_id) is not None

    def limit_of(self, wanted: AdmissionRequest) -> str:
        """What a run waits for that is not in yet."""
        store, keys = self._store, self._store.keys
        if wanted.key and len(self.holders(wanted)) >= wanted.limit:
            return "key"
        if any(set(self.holders_of(name)) - set(wanted.parents) for name in wanted.locks):
            return "lock"
        plan_key = store.call(store.client.scard, keys.of_plan(wanted.plan_key))
        return "plan" if plan_key >= (self._limit_of_plan(wanted) or plan_key + 1) else "all"

    def known_page(self, cursor: int, count: int) -> tuple[int, dict[str, AdmissionRequest]]:
        """About so many of them, from a cursor on; the next cursor, 0 after the last."""
        following, found = self._store.call(
            self._store.client.hscan, self._store.keys.admission_requests, cursor, count=count
        )
        return int(following), {
            run: wanted for run, text in found.items() if (wanted := AdmissionRequest.known(text)) is not None
        }

    def known(self) -> dict[str, AdmissionRequest]:
        """Every run that waits or has begun, and has not been released."""
        found = self._store.call(self._store.client.hgetall, self._store.keys.admission_requests)
        return {
            run_id: wanted for run_id, text in found.items() if (wanted := AdmissionRequest.known(text)) is not None
        }

    def wanted(self, run_id: str) -> AdmissionRequest | None:
        """What is known of one run that waits or has begun."""
        text = self._store.call(self._store.client.hget, self._store.keys.admission_requests, run_id)
        return AdmissionRequest.known(text) if text else None

    def why_not(self, wanted: AdmissionRequest, limit: str) -> str:
        """What a person is told of a run that waits."""
        store, settings = self._store, self._store.settings
        if limit == "key":
            holders = ", ".join(self.holders(wanted))
            return f"it waits for its turn: {wanted.key!r} is held by {holders or 'another run'}"
        if limit == "lock":
            held = {name: self.holders_of(name) for name in wanted.locks}
            told = "; ".join(f"{name} is held by {', '.join(runs)}" for name, runs in held.items() if runs)
            return f"it waits for its turn: {told or 'another run has what it needs'}"
        if limit == "plan" and wanted.group:
            return f"it waits for its turn: {self._limit_of_plan(wanted)} {wanted.group} are live"
        if limit == "plan":
            return f"it waits for its turn: {settings.max_runs_per_plan} runs of plan {wanted.plan} are live"
        live = store.call(store.client.zcard, store.keys.admitted)
        return f"it waits for its turn: {live} runs are live, and {settings.max_runs} may be"

    def holders(self, wanted: AdmissionRequest) -> list[str]:
        """The runs that hold its key."""
        return sorted(self._store.call(self._store.client.smembers, self._store.keys.slot(wanted.key)))

    def holders_of(self, lock: str) -> list[str]:
        """The runs that hold a lock: one, and what is part of it; more where an operator has reopened one."""
        return sorted(self._store.call(self._store.client.smembers, self._store.keys.slot(_lock(lock))))

    def held(self) -> list[tuple[str, str, int]]:
        """Locks of runs: `host/project`, the run, and since when, in ms of Redis's clock."""
        since = dict(self._store.call(self._store.client.zrange, self._store.keys.admitted, 0, -1, withscores=True))
        known = self.known()
        return sorted(
            (name, run_id, int(since[run_id])) for run_id in since if run_id in known for name in known[run_id].locks
        )

    def admitted(self) -> list[str]:
        """All that have a place, the eldest first."""
        return list(self._store.call(self._store.client.zrange, self._store.keys.admitted, 0, -1))
