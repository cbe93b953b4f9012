"""Admission of runs: limits on live runs, and a queue for each limit, in the order of the requests.

A run that is refused waits in the queue of the limit that refused it, and is examined again when a run releases that
limit. A decision reads the heads of these queues only, however many runs wait.

There are limits for all runs (`max_runs`), for those of one plan (`max_runs_per_plan`), for those with one key
(`concurrency` in a plan), and a lock for each project on a host that the plan names, held from the
beginning of the run to its end, undo included. A run that waits for its plan's limit, a key or a lock does not block
the runs behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longshore.orchestration.errors import UNREADABLE, QueueFull, WrongType
from longshore.orchestration.messaging.signing import sealed
from longshore.orchestration.store.indices import mark
from longshore.orchestration.store.records import read_request
from longshore.orchestration.store.run_store import Store

#: Runs that one release examines at most: a run that a second limit refuses moves to the queue of that limit.
_AT_MOST = 1000
#: The group of the runs of jobs.
JOBS = "jobs"


def _lock(name: str) -> str:
    """The name of the slot and of the queue of a lock; no concurrency key begins with its prefix."""
    return f"lock {name}"


@dataclass(frozen=True)
class AdmissionRequest:
    """The part of a request that admission needs."""

    plan: str
    key: str = ""
    limit: int = 1
    on_limit: str = "queue"
    #: The parent runs, the nearest last.
    parents: tuple[str, ...] = ()
    #: The exclusive locks of the run, as `host/project`, sorted.
    locks: tuple[str, ...] = ()
    #: The group of runs that share a limit of their own: `jobs`.
    group: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> AdmissionRequest:
        """The admission request of a run request."""
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
        """The group or plan whose limit counts; a name of a plan contains no space."""
        return f"all {self.group}" if self.group else self.plan

    def text(self) -> str:
        """The request as JSON, for `read`."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> AdmissionRequest:
        """Parse a stored request. Raises one of `UNREADABLE` for a damaged entry."""
        known = json.loads(text)
        request = cls(**known | {"parents": tuple(known["parents"]), "locks": tuple(known.get("locks", ()))})
        if not all(isinstance(word, str) for word in (request.plan, request.key, request.group, *request.locks)):
            raise TypeError("the names must be text")
        return replace(request, limit=int(request.limit))

    @classmethod
    def known(cls, text: str) -> AdmissionRequest | None:
        """Parse a stored request; None for a damaged entry."""
        try:
            return cls.read(text)
        except UNREADABLE:
            return None


class Admission:
    """The admission queue of an installation. Every call is idempotent."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def submit(
        self,
        run_id: str,
        body: Mapping[str, Any],
        *,
        bounded: bool = True,
        message: tuple[str, str] = ("", ""),
    ) -> dict[str, Any] | None:
        """Store a request and enqueue its run, atomically and once; return the earlier request of this id, if any.

        `message`: the first message of the run, sent with the request; see `Canvas.start_message`. A run whose
        concurrency key is held gets a message when the key is released, and a record by the next sweep.

        Raises QueueFull, with nothing stored, where `bounded` and `max_queued` runs wait already.
        """
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
            keys.new,
        ]
        request = AdmissionRequest.of(body)
        args = [run_id, text, mark(), request.text(), at_most, store.settings.broker_prefix() + message[0], message[1]]
        if request.key and request.on_limit == "queue":
            args += [request.limit, keys.slot(request.key), keys.waiting(f"key {request.key}"), keys.waiting_queues]
        else:
            args += [""]
        result, detail = store.run_global("submit", names, *args)
        if result == "full":
            raise QueueFull(
                f"run {run_id}: the run queue is full: {detail} runs wait already (max_queued)",
                remedy="try again later, or raise LONGSHORE_MAX_RUNS or LONGSHORE_MAX_QUEUED",
            )
        return read_request(run_id, detail) if result == "there" else None

    def admit(self, run_id: str, request: AdmissionRequest, *, anyway: bool = False) -> str:
        """Admit a run, atomically, unless a limit is reached; return '' or the limit: `all`, `plan`, `key` or `lock`.

        Returns `gone` for a run that was released. With `anyway`, admits beyond the limits a run that has begun before
        and resumes.
        """
        store, keys, settings = self._store, self._store.keys, self._store.settings
        names = [
            keys.queue,
            keys.admission_requests,
            keys.admitted,
            keys.of_plan(request.plan_key),
            keys.slot(request.key),
            keys.live,
            keys.new,
            keys.waiting_queues,
            *self._queues(request),
        ]
        for name in request.locks:
            names += [keys.slot(_lock(name)), keys.waiting(_lock(name))]
        limit = store.run_global(
            "admit", names, run_id, settings.max_runs or "", self._limit_of_plan(request) or "",
            request.limit if request.key else "", "1" if anyway else "", *request.parents,
        )  # fmt: skip
        return "" if limit == "ok" else str(limit)

    def _limit_of_plan(self, request: AdmissionRequest) -> int | None:
        settings = self._store.settings
        return settings.max_jobs if request.group == JOBS else settings.max_runs_per_plan

    def readmit_request(self, run_id: str, request: AdmissionRequest) -> None:
        """Admit an ended run that resumes, whether or not a limit is reached."""
        self._store.call(self._store.client.hset, self._store.keys.admission_requests, run_id, request.text())
        self.admit(run_id, request, anyway=True)

    def release(self, run_id: str, request: AdmissionRequest) -> None:
        """Free the place, key and locks of an ended run, atomically."""
        keys = self._store.keys
        pipe = self._store.client.pipeline()
        pipe.zrem(keys.queue, run_id)
        pipe.hdel(keys.admission_requests, run_id)
        pipe.zrem(keys.admitted, run_id)
        for name in self._slots(request):
            pipe.srem(name, run_id)
        for name in [self._store.keys.new, *(self.queues_of(request) if self.limited(request) else ())]:
            pipe.zrem(name, run_id)
        self._store.call(pipe.execute)

    def _slots(self, request: AdmissionRequest) -> list[str]:
        """The sets that contain the run while it is admitted: of its plan, its key and its locks."""
        keys = self._store.keys
        names = [request.key] if request.key else []
        names += [_lock(name) for name in request.locks]
        return [keys.of_plan(request.plan_key), *map(keys.slot, names)]

    def keys_without_limits(self, request: AdmissionRequest) -> list[str]:
        """The keys with which `Store.create` admits a run that no limit concerns."""
        keys = self._store.keys
        return [keys.queue, keys.new, keys.admitted, keys.of_plan(request.plan_key)]

    def held_keys(self, request: AdmissionRequest) -> list[str]:
        """The keys with which `Store.finish` releases a run."""
        keys = self._store.keys
        indices = [keys.ended, keys.live, keys.queue, keys.admission_requests, keys.admitted]
        return [*indices, *self._slots(request)]

    def limited(self, request: AdmissionRequest) -> bool:
        """Report whether any limit applies to the run."""
        return bool(self._store.settings.max_runs or self._limit_of_plan(request) or request.key or request.locks)

    def next(self) -> list[tuple[str, AdmissionRequest]]:
        """Admit the queued runs that no limit holds back, whatever was released, and return them."""
        return self.wake(self._store.call(self._store.client.smembers, self._store.keys.waiting_queues))

    def earlier(self, run_id: str) -> list[tuple[str, AdmissionRequest]]:
        """Admit the new runs that were requested before this one and that no worker has read yet, and return them.

        Each run that is refused enters the queue of its limit, so that the order of the requests counts, whichever
        message is read first.
        """
        order = self._store.call(self._store.client.zscore, self._store.keys.queue, run_id)
        return self.wake([self._store.keys.new], before=order) if order is not None else []

    def wake(self, queues: Iterable[str], before: float = math.inf) -> list[tuple[str, AdmissionRequest]]:
        """Admit the runs at the heads of these queues, the earliest request first, and return them.

        Only runs that were requested before the order `before` are examined.
        """
        store, keys = self._store, self._store.keys
        admitted: list[tuple[str, AdmissionRequest]] = []
        left = sorted(set(queues))
        for _ in range(_AT_MOST):
            pipe = store.client.pipeline(transaction=False)
            for name in left:
                pipe.zrange(name, 0, 0, withscores=True)
            heads = [
                (head[0][1], head[0][0], name)
                for head, name in zip(store.call(pipe.execute), left, strict=True)
                if head
            ]
            if not heads:
                break
            left = [name for _, _, name in heads]
            _, run_id, name = min(heads)
            text = store.call(store.client.hget, keys.admission_requests, run_id)
            request = AdmissionRequest.known(text) if text else None
            try:
                why = "gone" if request is None else self.admit(run_id, request)
            except WrongType:  # a damaged slot blocks its own runs only
                left.remove(name)
                continue
            if request is not None and not why:
                admitted.append((run_id, request))
            elif why == "gone":  # released, or a damaged entry
                store.call(store.client.zrem, name, run_id)
            elif store.call(store.client.zscore, name, run_id) is not None:
                left.remove(name)  # the limit of this queue is reached again
        return admitted

    def queues_of(self, request: AdmissionRequest) -> list[str]:
        """The queues of the runs that the release of this one may let in."""
        return [*self._queues(request), *(self._store.keys.waiting(_lock(name)) for name in request.locks)]

    def _queues(self, request: AdmissionRequest) -> list[str]:
        keys = self._store.keys
        return [keys.waiting("all"), keys.waiting(f"plan {request.plan_key}"), keys.waiting(f"key {request.key}")]

    def position(self, run_id: str, request: AdmissionRequest) -> int | None:
        """The number of runs that wait before this one for the same limit; None where the run waits for none."""
        pipe = self._store.client.pipeline(transaction=False)
        for name in self.queues_of(request):
            pipe.zrank(name, run_id)
        return next((int(rank) for rank in self._store.call(pipe.execute) if rank is not None), None)

    def in_order(self, run_ids: Sequence[str]) -> list[str]:
        """These runs in the order of their requests; those that are not queued come first."""
        if not run_ids:
            return []
        orders = self._store.call(self._store.client.zmscore, self._store.keys.queue, run_ids)
        return [run_id for _, run_id in sorted(zip([order or 0.0 for order in orders], run_ids, strict=True))]

    def is_forgotten(self, run_id: str, request: AdmissionRequest) -> bool:
        """Whether a run is queued and in no queue of a limit, since Redis has lost the entry."""
        return self.waits(run_id) and self.position(run_id, request) is None

    def waits(self, run_id: str) -> bool:
        """Report whether the run is queued."""
        return self._store.call(self._store.client.zscore, self._store.keys.queue, run_id) is not None

    def remember(self, run_id: str, request: AdmissionRequest) -> bool:
        """Store again the admission request of a queued run, if Redis has lost it; report whether it had."""
        store, keys = self._store, self._store.keys
        return self.waits(run_id) and bool(
            store.call(store.client.hsetnx, keys.admission_requests, run_id, request.text())
        )

    def known_page(self, cursor: int, count: int) -> tuple[int, dict[str, AdmissionRequest]]:
        """One page of about `count` requests from a cursor on, with the next cursor, 0 after the last page."""
        following, found = self._store.call(
            self._store.client.hscan, self._store.keys.admission_requests, cursor, count=count
        )
        return int(following), {
            run: request for run, text in found.items() if (request := AdmissionRequest.known(text)) is not None
        }

    def known(self) -> dict[str, AdmissionRequest]:
        """The requests of all runs that are queued or admitted."""
        found = self._store.call(self._store.client.hgetall, self._store.keys.admission_requests)
        return {
            run_id: request for run_id, text in found.items() if (request := AdmissionRequest.known(text)) is not None
        }

    def request_of(self, run_id: str) -> AdmissionRequest | None:
        """The request of one run that is queued or admitted."""
        text = self._store.call(self._store.client.hget, self._store.keys.admission_requests, run_id)
        return AdmissionRequest.known(text) if text else None

    def why_not(self, request: AdmissionRequest, limit: str) -> str:
        """The reason, for people, why a queued run waits.

        Each begins with the same words, which a skipped run leaves out of its reason.
        """
        store, settings = self._store, self._store.settings
        if limit == "key":
            holders = ", ".join(self.holders(request))
            return f"the run waits for admission: {request.key!r} is held by {holders or 'another run'}"
        if limit == "lock":
            held = {name: self.holders_of(name) for name in request.locks}
            holders = "; ".join(f"{name} is held by {', '.join(runs)}" for name, runs in held.items() if runs)
            return f"the run waits for admission: {holders or 'another run holds its lock'}"
        if limit == "plan" and request.group:
            return f"the run waits for admission: {self._limit_of_plan(request)} {request.group} are live"
        if limit == "plan":
            return f"the run waits for admission: {settings.max_runs_per_plan} runs of plan {request.plan} are live"
        live = store.call(store.client.zcard, store.keys.admitted)
        return f"the run waits for admission: {live} runs are live, of at most {settings.max_runs}"

    def holders(self, request: AdmissionRequest) -> list[str]:
        """The runs that hold the concurrency key."""
        return sorted(self._store.call(self._store.client.smembers, self._store.keys.slot(request.key)))

    def holders_of(self, lock: str) -> list[str]:
        """The runs that hold a lock: one and its child runs; more where an operator has reopened a run."""
        return sorted(self._store.call(self._store.client.smembers, self._store.keys.slot(_lock(lock))))

    def held(self) -> list[tuple[str, str, int]]:
        """The held locks, as `host/project`, run, and time of admission in ms of Redis's clock."""
        since = dict(self._store.call(self._store.client.zrange, self._store.keys.admitted, 0, -1, withscores=True))
        known = self.known()
        return sorted(
            (name, run_id, int(since[run_id])) for run_id in since if run_id in known for name in known[run_id].locks
        )

    def admitted(self) -> list[str]:
        """All admitted runs, the eldest first."""
        return list(self._store.call(self._store.client.zrange, self._store.keys.admitted, 0, -1))
