"""Reads of the records of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.states import RunState, StepState
from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.connection import milliseconds as _ms
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import (
    FAR,
    STEP_FIELDS,
    RunSnapshot,
    is_member,
    json_object,
    parent_in,
    read_request,
    step_record,
)
from longshore.orchestration.store.side_records import SideRecords
from longshore.orchestration.transitions import StepRecord

#: Fields that one command reads.
_AT_ONCE = 10_000


class UnderLease(NamedTuple):
    """A run whose open steps all run under leases; `jumps`: the clock jumps that the times of its record include."""

    instance_id: str
    version: int
    jumps: int


class RunReads(SideRecords):
    """Reads runs. Methods raise StoreUnavailable where Redis does not answer."""

    def commands(self, run_id: str) -> list[tuple[str, dict[str, str]]]:
        return self.call(self.client.xrange, self.keys.of(run_id).commands)  # type: ignore[no-any-return]

    def request(self, run_id: str) -> str | None:
        """The stored request with its signature, or None."""
        return self.call(self.client.get, self.keys.of(run_id).request) or None

    def request_and_fields(self, run_id: str) -> tuple[str | None, dict[str, str]]:
        """The stored request, or None, and the fields of the run's hash; one round trip."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        pipe.get(keys.request)
        pipe.hgetall(keys.run)
        text, fields = self.call(pipe.execute)
        return text or None, fields

    def body(self, run_id: str) -> dict[str, Any] | None:
        """The request, without a check of its signature, or None. Raises Damaged where it cannot be read."""
        text = self.request(run_id)
        return None if text is None else read_request(run_id, text)

    def fields(self, run_id: str) -> dict[str, str]:
        """The fields of the run's hash; empty for a run without a record."""
        return self.call(self.client.hgetall, self.keys.of(run_id).run)  # type: ignore[no-any-return]

    def state(self, run_id: str) -> str | None:
        return self.call(self.client.hget, self.keys.of(run_id).run, "state")  # type: ignore[no-any-return]

    def version(self, run_id: str) -> int:
        """The run's version: the number of its events, 0 without a record."""
        return int(self.call(self.client.hget, self.keys.of(run_id).run, "version") or 0)

    def look(self, run_id: str, *, request: bool = False) -> RunSnapshot:
        """Read all data for a decision about a run, in one round trip; with `request`, its request too.

        Waits that name no step become dead letters.
        """
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        if request:
            pipe.get(keys.request)
        # The inbox first: a command stored after this read gets another score, so the entry stays in the inbox.
        pipe.zscore(self.keys.inbox, run_id)
        pipe.hgetall(keys.run)
        pipe.xrange(keys.commands)
        pipe.zrange(keys.waits, 0, -1, withscores=True)
        pipe.time()
        *text, inbox, fields, commands, waits, (seconds, micros) = self.call(pipe.execute)
        for member, _ in waits:
            if not is_member(member):
                self.drop_wait(run_id, member, "the entry names no step")
        parked = {str(member): round(min(until, FAR)) for member, until in waits if is_member(member)}
        now = int(seconds) * 1000 + int(micros) // 1000
        return RunSnapshot(fields, commands, now, inbox, parked, (text[0] or None) if text else None)

    def step_records(self, run_id: str, indices: Sequence[int], *, units: bool = True) -> dict[int, StepRecord]:
        """The records of steps as the reducer reads them; with `units`, their units too. Raises Damaged."""
        counts = self.units(run_id, indices) if units else {}
        rows = self.step_fields(run_id, [*indices, *_ids(counts)], STEP_FIELDS)
        return {
            i: replace(
                step_record(rows[i]), units=tuple(step_record(rows[f"{i}.{n}"]) for n in range(counts.get(i, 0)))
            )
            for i in indices
        }

    def units(self, run_id: str, indices: Sequence[int]) -> dict[int, int]:
        """The number of units of each of these steps that was fanned out."""
        rows = self.step_fields(run_id, indices, (Field.UNITS,))
        return {i: int(rows[i][0] or 0) for i in indices if rows[i][0]}

    def expanded(self, run_id: str, indices: Sequence[int]) -> list[StepId]:
        """These steps; the units of a step that was fanned out replace the step."""
        counts = self.units(run_id, indices)
        return [leaf for i in indices for leaf in ([f"{i}.{n}" for n in range(counts[i])] if i in counts else [i])]

    def step_fields(
        self, run_id: str, ids: Sequence[StepId], kinds: Sequence[str]
    ) -> dict[StepId, tuple[str | None, ...]]:
        """The same fields of several steps or units, in one round trip."""
        if not ids:
            return {}
        names = [f"{kind}:{i}" for i in ids for kind in kinds]
        if len(names) <= _AT_ONCE:
            values = self.call(self.client.hmget, self.keys.of(run_id).steps, names)
        else:
            pipe = self.client.pipeline(transaction=False)
            for begin in range(0, len(names), _AT_ONCE):  # a long command would block Redis for all others
                pipe.hmget(self.keys.of(run_id).steps, names[begin : begin + _AT_ONCE])
            values = [value for page in self.call(pipe.execute) for value in page]
        width = len(kinds)
        return {i: tuple(values[n * width : (n + 1) * width]) for n, i in enumerate(ids)}

    def has_mark(self, run_id: str, name: str) -> bool:
        """Whether `set_mark` recorded this field in the hash of the run's steps."""
        return bool(self.call(self.client.hexists, self.keys.of(run_id).steps, name))

    def set_mark(self, run_id: str, name: str) -> None:
        self.call(self.client.hset, self.keys.of(run_id).steps, name, 1)

    def steps_hash(self, run_id: str, indices: Sequence[int]) -> dict[str, str]:
        """All fields of some steps and of their units, with data from keys of their own."""
        return self.steps_of(run_id, [*indices, *_ids(self.units(run_id, indices))])

    def steps_of(self, run_id: str, ids: Sequence[StepId]) -> dict[str, str]:
        """All fields of some steps or units, with data from keys of their own."""
        kinds = [*Field, *(f"u{kind}" for kind in Field)]
        found: dict[str, str] = {}
        for i, row in self.step_fields(run_id, ids, kinds).items():
            found |= {f"{kind}:{i}": value for kind, value in zip(kinds, row, strict=True) if value is not None}
        return found | self._large(run_id, found)

    def everything(self, run_id: str) -> tuple[dict[str, str], dict[str, str]]:
        """The run's fields and its steps' fields, with data from keys of their own."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(keys.run)
        pipe.hgetall(keys.steps)
        run, steps = self.call(pipe.execute)
        return run, steps | self._large(run_id, steps)

    def whole(self, run_id: str) -> tuple[str | None, dict[str, str], dict[str, str], int]:
        """The request, all fields of the record and the time, ms, in one round trip; data in other keys is left out."""
        keys = self.keys.of(run_id)
        pipe = self.client.pipeline(transaction=False)
        pipe.get(keys.request)
        pipe.hgetall(keys.run)
        pipe.hgetall(keys.steps)
        pipe.time()
        text, run, steps, (seconds, micros) = self.call(pipe.execute)
        return text or None, run, steps, int(seconds) * 1000 + int(micros) // 1000

    def _large(self, run_id: str, steps: Mapping[str, str]) -> dict[str, str]:
        """Large data from keys of their own, each as `bulk:<id>`."""
        keys = self.keys.of(run_id)
        prefix = f"{Field.DATA_KEY}:"
        named = {name.removeprefix(prefix): value for name, value in steps.items() if name.startswith(prefix)}
        if not named:
            return {}
        texts = self.call(self.client.mget, [keys.data(value) for value in named.values()])
        return {f"bulk:{i}": text for i, text in zip(named, texts, strict=True) if text is not None}

    def expired(self, run_id: str, now: int) -> list[str]:
        """Attempts with an expired lease: `<id>` or `u<id>`. Leases that name no step become dead letters."""
        found = self.call(self.client.zrangebyscore, self.keys.of(run_id).leases, "-inf", now)
        for member in found:
            if not is_member(member):
                self.drop_lease(run_id, member, "the entry names no step")
        return [member for member in found if is_member(member)]

    def has_leases(self, run_id: str) -> bool:
        """Whether an attempt holds a lease, live or expired."""
        return bool(self.call(self.client.zcard, self.keys.of(run_id).leases))

    def under_lease(self, run_ids: Sequence[str], now: int, until: int) -> dict[str, UnderLease]:
        """Of these runs, those in which a sweep finds nothing to do.

        Each open step of such a run has begun and holds a lease that has not expired at `now`, ms. No command, no
        external wait and no entry of the inbox is left, and the run has no time limit before `until`, ms. Two round
        trips for all runs.
        """
        pipe = self.client.pipeline(transaction=False)
        for run_id in run_ids:
            keys = self.keys.of(run_id)
            pipe.zscore(self.keys.inbox, run_id)
            pipe.hmget(keys.run, "state", "left", "deadline", "instance_id", "version", "jumps")
            pipe.zrange(keys.leases, 0, -1, withscores=True)
            pipe.exists(keys.commands, keys.waits)
        answers = self.call(pipe.execute, raise_on_error=False)
        found: dict[str, UnderLease] = {}
        open_steps: dict[str, list[str]] = {}
        for n, run_id in enumerate(run_ids):
            parts = answers[4 * n : 4 * n + 4]
            if any(isinstance(part, Exception) for part in parts):
                continue  # a key of the wrong type
            inbox, (state, left, deadline, instance_id, version, jumps), leases, others = parts
            members = [member for member, expiry in leases if member.isdecimal() and expiry > now]
            if (
                inbox is None
                and not others
                and state == RunState.RUNNING
                and members
                and len(members) == len(leases) == as_number(left)
                and (as_number(deadline or until) or 0) >= until
            ):
                found[run_id] = UnderLease(instance_id or "", as_number(version) or 0, as_number(jumps) or 0)
                open_steps[run_id] = members
        if found:
            pipe = self.client.pipeline(transaction=False)
            for run_id, members in open_steps.items():
                pipe.hmget(self.keys.of(run_id).steps, [f"{Field.STATUS}:{member}" for member in members])
            answers = self.call(pipe.execute, raise_on_error=False)
            for run_id, statuses in zip(open_steps, answers, strict=True):
                if isinstance(statuses, Exception) or set(statuses) != {StepState.RUNNING}:
                    del found[run_id]
        return found

    def drop_lease(self, run_id: str, member: str, why: str) -> None:
        """Remove a lease that names no step, since a run does not end while it has a lease."""
        self._drop(self.keys.of(run_id).leases, member, why)

    def drop_wait(self, run_id: str, member: str, why: str) -> None:
        """Remove an external wait that names no step, since each sweep would find the run due because of it."""
        self._drop(self.keys.of(run_id).waits, member, why)

    def _drop(self, key: str, member: str, why: str) -> None:
        if self.call(self.client.zrem, key, member):
            self.dead_letter(key, member, why)

    def read_events(
        self, run_id: str, after: str = "0-0", *, block_ms: int | None = None, count: int = 1000
    ) -> list[tuple[str, dict[str, str]]]:
        """Events after a cursor; with `block_ms`, wait at most so long for the first."""
        stream = {self.keys.of(run_id).events: after}
        block = None if block_ms is None else max(1, _ms(self.longest_block(block_ms / 1000)))
        with contextlib.nullcontext(False) if block is None else self.blocking(block / 1000) as may:
            found = self.call(self.client.xread, stream, count=count, block=block if may else None)
        return found[0][1] if found else []

    def newest_event(self, run_id: str) -> str:
        """The id of the newest event, as a cursor; `0-0` without events."""
        found = self.call(self.client.xrevrange, self.keys.of(run_id).events, count=1)
        return str(found[0][0]) if found else "0-0"

    def parent_of(self, run_id: str) -> str:
        """The id of the parent run, or ''."""
        text = self.call(self.client.hget, self.keys.of(run_id).run, "parent")
        return parent_in(text)

    def children_of(self, run_id: str) -> list[str]:
        """The ids of the child runs."""
        steps = self.call(self.client.hgetall, self.keys.of(run_id).steps)
        parked = (json_object(value) for name, value in steps.items() if name.startswith(f"{Field.PARKED}:"))
        return [str(info["child"]) for info in parked if "child" in info]


def _ids(units: Mapping[int, int]) -> list[StepId]:
    return [f"{i}.{n}" for i, count in units.items() for n in range(count)]
