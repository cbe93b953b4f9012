"""The record of one run on a real server, and calls of the scripts that change the record."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import redis

from longshore.orchestration.language.guards import GuardDecision, Unit
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.store.keys import RunKeys
from longshore.orchestration.store.records import Grant, Recorded, run_record
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord

LEASE = 10.0
#: Fields of the steps' hash with future times; the fields of an undo have the prefix `u`.
_TIMES = frozenset({"sent", "sent_until", "not_before", "usent", "usent_until", "unot_before"})
_numbers = itertools.count(1)

SIDES = pytest.mark.parametrize("side", ["", "u"], ids=["forward", "backward"])
#: Side and status of each step that cannot be claimed.
NOT_CLAIMABLE = [
    *(("", status) for status in StepState if status not in {"pending", "ready", "retrying"}),
    *(("u", status) for status in UndoState if status not in {"ready", "retrying"}),
]


def busy(side: str) -> str:
    """The state of a run with a running attempt of that side."""
    return "undoing" if side else "running"


def settings_for(url: str, **more: Any) -> Settings:
    values: dict[str, Any] = {"redis_url": url, "namespace": "stored", "lease": LEASE, "actor": "ann"}
    return Settings(**values | more)


#: Settings by server; cached, because they read files and the environment.
_usual_settings = cache(settings_for)


class StoredRun:
    """A run. Methods named like a script call that script as workers do; `put` writes fields without a script."""

    def __init__(
        self,
        url: str,
        *,
        client: redis.Redis | None = None,
        store: Store | None = None,
        run_id: str = "",
        **settings: Any,
    ) -> None:
        """Use a shared client, which `close` does not close."""
        values = settings_for(url, **settings) if settings else _usual_settings(url)
        self.store = store if store is not None else Store(values, client)
        self._shared = client is not None
        self.redis: Any = self.store.client
        self.run_id = run_id or f"run-{next(_numbers)}"

    def close(self) -> None:
        if not self._shared:
            self.redis.close()

    @property
    def keys(self) -> RunKeys:
        return self.store.keys.of(self.run_id)

    # --- the record ---------------------------------------------------------------------------------

    def run(self, field: str) -> str | None:
        return self.redis.hget(self.keys.run, field)  # type: ignore[no-any-return]

    def step(self, field: str) -> str | None:
        """Read a field of the steps' hash, such as `status:0`."""
        return self.redis.hget(self.keys.steps, field)  # type: ignore[no-any-return]

    def leases(self) -> dict[str, float]:
        return dict(self.redis.zrange(self.keys.leases, 0, -1, withscores=True))

    def events(self, name: str = "") -> list[dict[str, str]]:
        entries = self.redis.xrange(self.keys.events)
        return [fields for _, fields in entries if not name or fields["event"] == name]

    def dump(self) -> tuple[Any, ...]:
        return self.redis.hgetall(self.keys.run), self.redis.hgetall(self.keys.steps), self.leases(), self.events()

    def record(self) -> RunRecord:
        return run_record(self.store.fields(self.run_id), self.store.now())

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check that the block changes no field of the record."""
        before = self.dump()
        yield
        assert self.dump() == before

    @contextmanager
    def emits(self, *names: str) -> Iterator[list[dict[str, str]]]:
        """Check that the block writes exactly these events, one version each."""
        before = len(self.events())
        found: list[dict[str, str]] = []
        yield found
        found += self.events()[before:]
        assert [event["event"] for event in found] == list(names)
        assert [int(event["version"]) for event in found] == [before + n + 1 for n in range(len(names))]
        assert int(self.run("version") or 0) == before + len(names)

    # --- prepared states ----------------------------------------------------------------------------

    def put(self, *, steps: Mapping[str, object] | None = None, **run: object) -> None:
        """Write fields of the run, and of the steps' hash, without a script."""
        if run:
            self.redis.hset(self.keys.run, mapping={name: str(value) for name, value in run.items()})
        if steps:
            self.redis.hset(self.keys.steps, mapping={name: str(value) for name, value in steps.items()})

    def lay(self, state: str = "running", *, left: int = 1, level: int = 0, **run: Any) -> None:
        """Write a run in that state."""
        self.create()
        self.put(state=state, left=left, level=level, **run)

    def dispatch(self, side: str, *, left: int = 1, status: str = "ready") -> None:
        """Write a run in which step 0 has just been dispatched, forward or undo."""
        self.lay(busy(side), left=left, undo_level=0)
        sent = self.store.now()
        due = round(sent + LEASE * 1000)
        self.put(
            steps={
                f"{side}status:0": status,
                f"{side}sent:0": sent,
                f"{side}sent_until:0": due,
                f"{side}not_before:0": 0,
            }
        )

    def begin(self, *ready: int, skipped: Mapping[int, str] | None = None) -> None:
        """Create a run and open its first level."""
        self.create()
        assert self.open_level(RunState.RUNNING, 0, ready or (0,), skipped or {})

    def age(self, seconds: float) -> None:
        """Backdate all deadlines and leases of this run."""
        ms = round(seconds * 1000)
        pipe = self.redis.pipeline()
        for name in self.redis.hkeys(self.keys.steps):
            if name.partition(":")[0] in _TIMES:
                pipe.hincrby(self.keys.steps, name, -ms)
        for name in ("opened", "deadline", "undo_deadline"):
            if self.run(name):
                pipe.hincrby(self.keys.run, name, -ms)
        for member in self.leases():
            pipe.zincrby(self.keys.leases, -ms, member)
        for member in self.redis.zrange(self.keys.waits, 0, -1):
            pipe.zincrby(self.keys.waits, -ms, member)
        if self.redis.zscore(self.store.keys.live, self.run_id) is not None:
            pipe.zincrby(self.store.keys.live, -ms, self.run_id)
        pipe.execute()

    def end_lease(self, member: str) -> None:
        """Expire the lease of an attempt."""
        self.redis.zadd(self.keys.leases, {member: self.store.now() - 1}, xx=True)

    # --- the scripts --------------------------------------------------------------------------------

    def script(self, name: str, *args: object) -> Any:
        """Call a script with given arguments."""
        keys = self.store.keys
        indices = [keys.live, keys.runs, keys.inbox, keys.clock, keys.audit] if name == "create" else []
        return self.store._run(name, self.run_id, *args, keys=indices)

    def create(self, **fields: object) -> bool:
        values: dict[str, object] = {"v": 1, "plan": "p", "digest": "d", "steps": 3, "actor": "ann"}
        return self.store.create(self.run_id, values | fields)[0]

    def open_level(
        self,
        state: RunState,
        level: int,
        ready: Sequence[int],
        skipped: Mapping[int, str] | None = None,
        *,
        seen: RunRecord | None = None,
    ) -> bool:
        """Open a level; `seen` is the record of the decision, by default the current one."""
        return self.store.open_level(self.run_id, seen or self.record(), state, level, ready, skipped or {})

    def open_undo(
        self,
        level: int,
        ready: Sequence[int],
        impossible: Mapping[int, str] | None = None,
        *,
        held_back: Mapping[int, str] | None = None,
        seen: RunRecord | None = None,
    ) -> bool:
        seen = seen or self.record()
        return self.store.open_undo(self.run_id, seen, level, ready, impossible or {}, held_back or {})

    def fan_out(
        self,
        units: int,
        *,
        at_once: int = 0,
        tolerated: int = 0,
        canary: int = 0,
        skip: Mapping[int, str] | None = None,
        state: RunState = RunState.RUNNING,
    ) -> None:
        """Write a run whose step 0 has been fanned out into items 0, 1, …"""
        self.create()
        parts = tuple(Unit(str(n), skip=(skip or {}).get(n, "")) for n in range(units))
        verdict = GuardDecision(units=parts, at_once=at_once, tolerated=tolerated, canary=canary)
        seen = self.record()
        assert self.store.open_level(self.run_id, seen, state, 0, (), {}, fanned={0: verdict})

    def park(self, index: StepId, fence: str, seconds: float = 60.0, *, side: str = "") -> bool:
        return self.store.park(self.run_id, index, side, fence, seconds, '{"on_timeout":"fail"}', "an approval")

    def begin_task(self, fence: str, owner: str = "task@till/1", retries: int = 0, *, side: str = "") -> str:
        return self.store.begin_task(self.run_id, 0, side, fence, owner, retries)[0]

    def release_task(self, fence: str, owner: str = "task@till/1", how: str = "") -> None:
        self.store.release_task(self.run_id, 0, "", fence, owner, how)

    def waits(self) -> dict[str, float]:
        return dict(self.redis.zrange(self.keys.waits, 0, -1, withscores=True))

    def claim(
        self,
        index: StepId = 0,
        side: str = "",
        owner: str = "task@one/1",
        task: str = "task",
        host: str = "one",
        *,
        stays: bool = False,
    ) -> Grant:
        grant = self.ask(index, side, owner, task, host, stays=stays)
        assert isinstance(grant, Grant), grant
        return grant

    def ask(
        self,
        index: StepId = 0,
        side: str = "",
        owner: str = "task@one/1",
        task: str = "task",
        host: str = "one",
        *,
        stays: bool = False,
    ) -> Grant | str:
        """Claim a step; return the refusal."""
        return self.store.claim(self.run_id, index, side, owner, task, host=host, stays=stays)

    def complete(self, index: StepId, fence: str, status: str = "changed", *, side: str = "", **more: Any) -> Recorded:
        return self.store.complete(self.run_id, index, side, fence, status, more.pop("outcome", "{}"), **more)

    def retry(
        self, index: StepId, fence: str, delay: float = 0, *, side: str = "", grace: float = LEASE, always: bool = False
    ) -> int:
        return self.store.retry(self.run_id, index, side, fence, delay, grace, "busy", always=always)

    def journal(self, index: int, fence: str, rendered: str = "", before: str = "", *, side: str = "") -> bool:
        return self.store.journal(self.run_id, index, side, fence, rendered, before)

    def expire(self, index: StepId = 0, side: str = "", *, repeatable: bool = True, **more: Any) -> str:
        return self.store.expire(self.run_id, index, side, repeatable=repeatable, **more)[0]
