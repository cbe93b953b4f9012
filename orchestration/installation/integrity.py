"""Detection and repair of keys of a wrong type and of unreadable entries.

Longshore writes neither, but other users of the same Redis, a restored backup or an attacker can. Repair renames a key
of a wrong type, so that no data is lost, and rebuilds its index from the runs. Each unreadable entry becomes one dead
letter, and is removed from its index.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from longshore.orchestration.errors import UNREADABLE, WrongType
from longshore.orchestration.jobs.discovery import HostSnapshot
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.schedules.due_times import Mark
from longshore.orchestration.states import TERMINAL
from longshore.orchestration.store import hosts as registry
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.indices import mark
from longshore.orchestration.store.keys import RUN_TYPES, TYPES
from longshore.orchestration.store.locks import Holder
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: Entries of one index that one call examines at most.
_PAGE = 1000
#: The keys of kombu's Redis transport.
_BROKER = {"unacked": "hash", "unacked_index": "zset", "unacked_mutex": "string"}
#: Strings that hold an integer.
_NUMBERS = ("admission-order", "job-questions", "last-tick")
#: The indices that hold run ids.
_OF_RUNS = ("inbox", "live", "queue", "admitted", "ended", "runs")


@dataclass(frozen=True)
class WrongKey:
    """A key whose type, or whose numeric value, is not the one that Longshore writes."""

    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"key {self.key} is a {self.found}, expected a {self.expected}"


# --- keys -----------------------------------------------------------------------------------------


def wrong_keys(store: Store) -> list[WrongKey]:
    """All keys of a wrong type, of the installation and of its broker."""
    space = store.keys.namespace
    expected = {f"{space}:{name}": kind for name, kind in TYPES.items() if not name.endswith(":")}
    fixed = _wrong(store, expected)
    broken = {wrong.key for wrong in fixed}
    numbers = [key for name in _NUMBERS if (key := f"{space}:{name}") not in broken]
    for key, value in zip(numbers, store.call(store.client.mget, numbers), strict=True):
        if value is not None and as_number(value) is None:
            fixed.append(WrongKey(key, "number", "text"))
    members = {f"{space}:{name}": TYPES[family] for family, name in _members(store, broken)}
    return [*fixed, *_wrong(store, members), *_wrong(store, _of_broker(store, broken))]


def wrong_keys_of(store: Store, run_id: str) -> list[WrongKey]:
    """The keys of a wrong type of one run."""
    prefix = store.keys.of(run_id).run.removesuffix("run")
    return _wrong(store, {f"{prefix}{name}": kind for name, kind in RUN_TYPES.items()})


def _wrong(store: Store, expected: dict[str, str]) -> list[WrongKey]:
    pipe = store.client.pipeline(transaction=False)
    for key in expected:
        pipe.type(key)
    found = zip(expected.items(), store.call(pipe.execute), strict=True)
    return [WrongKey(key, kind, there) for (key, kind), there in found if there not in {"none", kind}]


def _members(store: Store, broken: set[str]) -> Iterator[tuple[str, str]]:
    """Family and name of each key that an index refers to."""
    client, keys = store.client, store.keys

    def read(key: str, function: Callable[..., Any], *args: Any) -> Any:
        return [] if key in broken else store.call(function, key, *args)

    for host in read(keys.hosts, client.zrange, 0, -1):
        yield "host:", f"host:{host}"
    for service in read(keys.breakers, client.smembers):
        yield from ((family, f"{family}{service}") for family in ("breaker:", "half-open:", "blocked:"))
    for name in read(keys.locks, client.smembers):
        yield "lock:", f"lock:{name}"
    space = f"{keys.namespace}:"
    for text in read(keys.admission_requests, client.hvals):
        if (expected := AdmissionRequest.known(text)) is None:
            continue
        yield "plan:", keys.of_plan(expected.plan_key).removeprefix(space)
        for slot in filter(None, (expected.key, *(f"lock {name}" for name in expected.locks))):
            yield "slot:", keys.slot(slot).removeprefix(space)
        yield from (("waiting:", name.removeprefix(space)) for name in Admission(store).queues_of(expected))


def _of_broker(store: Store, broken: set[str]) -> dict[str, str]:
    prefix = store.settings.broker_prefix()
    there = [] if store.keys.hosts in broken else registry.Hosts(store).all().values()
    queues = {CONTROL, *(queue for host in there for queue in host.had)}
    expected = {f"{prefix}{name}": kind for name, kind in _BROKER.items()}
    for queue in queues:
        expected |= {f"{prefix}{queue}": "list", f"{prefix}_kombu.binding.{queue}": "set"}
    return expected


def repair(store: Store) -> list[WrongKey]:
    """Rename every key of a wrong type and rebuild the indices from the runs; returns the keys. Safe to repeat."""
    found = wrong_keys(store)
    for wrong in found:
        kept = f"{store.keys.namespace}:damaged:{wrong.key.removeprefix(f'{store.keys.namespace}:')}"
        store.call(store.client.rename, wrong.key, kept)
        store.call(store.client.expire, kept, round(store.settings.retention))
        why = f"{wrong}: the key was renamed to {kept}, and the index is rebuilt from the runs"
        store.dead_letter(wrong.key, wrong.found, why)
        note_refusal(store, why)
    if found:
        _rebuild(store)
    return found


def _rebuild(store: Store) -> None:
    """Add every run that any index lists to each index that it belongs to."""
    client, keys = store.client, store.keys
    ids: dict[str, None] = {}
    for name in _OF_RUNS:
        ids |= dict.fromkeys(store.call(client.zrange, f"{keys.namespace}:{name}", 0, -1))
    known = store.call(client.hgetall, keys.admission_requests)
    runs = [run_id for run_id in (ids | dict.fromkeys(known)) if RUN_ID.fullmatch(run_id)]
    now = store.now()
    for begin in range(0, len(runs), _PAGE):
        page = runs[begin : begin + _PAGE]
        reads = client.pipeline(transaction=False)
        for run_id in page:
            reads.hmget(keys.of(run_id).run, "state", "created", "ended")
        writes = client.pipeline(transaction=False)
        for run_id, row in zip(page, store.call(reads.execute, raise_on_error=False), strict=True):
            state, created, ended = row if isinstance(row, list) else (None, None, None)
            if state in TERMINAL:
                writes.zadd(keys.ended, {run_id: as_number(ended) or now}, nx=True)
            elif state is not None:
                # A pending run asks for its place again, in case it has lost its entry in the queue of a limit.
                writes.zadd(keys.live, {run_id: now}, nx=state != "pending")
                if state != "pending" and run_id in known:
                    writes.zadd(keys.admitted, {run_id: as_number(created) or now}, nx=True)
            else:
                writes.zadd(keys.inbox, {run_id: mark()}, nx=True)
            if state is not None:
                writes.zadd(keys.runs, {run_id: as_number(created) or now}, nx=True)
        store.call(writes.execute)
    admitted = set(store.call(client.zrange, keys.admitted, 0, -1))
    last = max((round(score) for _, score in store.call(client.zrange, keys.queue, -1, -1, withscores=True)), default=0)
    if (as_number(store.call(client.get, keys.admission_order)) or 0) < last:
        store.call(client.set, keys.admission_order, last)
    waiting = client.pipeline(transaction=False)
    for run_id in known:
        if run_id not in admitted:
            waiting.zadd(keys.queue, {run_id: last + 1}, nx=True)
    store.call(waiting.execute)


# --- entries --------------------------------------------------------------------------------------


def clean(store: Store) -> int:
    """Move each unreadable entry of an index to the dead letters; returns their number."""
    found = 0
    for part in (_run_ids, _hashes, _hosts, _locks):
        try:
            found += part(store)
        except WrongType as error:  # `repair` renames the key
            log.warning("%s", error)
    return found


def discard_damaged(store: Store, index: str, entries: Iterable[str], why: str) -> int:
    """Move entries of an index of runs to the dead letters; returns their number."""
    key, moved = f"{store.keys.namespace}:{index}", 0
    for entry in entries:
        # Of several workers, the one that removes the entry records it.
        if store.call(store.client.zrem, key, entry):
            store.dead_letter(key, entry, why)
            moved += 1
    return moved


def _run_ids(store: Store) -> int:
    found = 0
    for name in _OF_RUNS:
        # A listing of runs begins with the highest score.
        entries = store.call(store.client.zrange, f"{store.keys.namespace}:{name}", 0, _PAGE - 1, desc=name == "runs")
        found += discard_damaged(
            store, name, (entry for entry in entries if not RUN_ID.fullmatch(entry)), "not a run id"
        )
    return found


def _hashes(store: Store) -> int:
    keys = store.keys
    readers: dict[str, Callable[[str], object]] = {
        keys.admission_requests: AdmissionRequest.read, keys.job_snapshots: HostSnapshot.read,
        keys.schedule_marks: Mark.read,
        keys.counters: float,
    }  # fmt: skip
    found = 0
    for key, read in readers.items():
        for field, text in store.call(list, store.client.hscan_iter(key, count=_PAGE)):
            try:
                read(text)
            except UNREADABLE as error:
                found += _drop_field(store, key, field, text, error)
                if key == keys.admission_requests:
                    store.call(store.client.zrem, keys.queue, field)
                    if RUN_ID.fullmatch(field) and store.call(store.client.exists, keys.of(field).request):
                        store.call(store.client.zadd, keys.inbox, {field: mark()}, nx=True)
    return found


def _drop_field(store: Store, key: str, field: str, text: str, error: object) -> int:
    if not store.call(store.client.hdel, key, field):
        return 0
    store.dead_letter(f"{key} {field!r}", text, f"unreadable: {error}")
    return 1


def _hosts(store: Store) -> int:
    found = 0
    for host in store.call(store.client.zrange, store.keys.hosts, 0, -1):
        key = store.keys.host(host)
        row = store.call(store.client.hgetall, key)
        for field, why in registry.unreadable(row).items():
            found += _drop_field(store, key, field, row[field], why)
    return found


def _locks(store: Store) -> int:
    """Delete unreadable locks, which no holder would ever release."""
    found = 0
    for name in store.call(store.client.smembers, store.keys.locks):
        key = store.keys.lock(name)
        if (text := store.call(store.client.get, key)) is None:
            continue
        try:
            Holder(**json.loads(text))
        except UNREADABLE as error:
            if store.call(store.client.delete, key):
                store.dead_letter(key, text, f"not a lock holder: {error}")
                found += 1
    return found
