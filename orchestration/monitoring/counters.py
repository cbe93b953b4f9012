"""Counters for metrics, computed from the records of runs at each scrape, each run once.

Runs count nothing themselves. A scrape adds the runs that ended since the last scrape to the totals in Redis, and then
the progress of live runs, so that counters agree with reports. A counter never decreases: a reopened or deleted run
keeps its counts.

A scrape counts ended runs for a limited time, and leaves the others to the next scrapes. The counters are empty until
all runs that were stored before the first scrape are counted: their growth would look like runs that end now.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from redis.exceptions import WatchError

from longshore.orchestration.errors import UNREADABLE, LongshoreError, StoreUnavailable, WrongType
from longshore.orchestration.plans.compiled import CompiledPlan, index_of
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import report
from longshore.orchestration.states import STEP_FINAL, TERMINAL, RunState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import read_request

if TYPE_CHECKING:
    from longshore.orchestration.store.run_store import Store

#: Upper ends of the histograms, seconds.
STEP_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
RUN_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
#: Live runs that one scrape reads at most.
_LIVE = 1000
#: Ended runs of one page, which are counted in one transaction.
_PAGE = 100
#: Seconds after which a scrape begins no further page.
_LONGEST = 0.25
#: Compiled plans of a process.
_PLANS = 32
#: ms that a scrape reads again before the last end that it has counted, because ends are not stored in order.
_OVERLAP = 60_000
#: Separator in a counter's name in Redis: the metric, then the values of its labels.
SEP = "\x1f"
#: Fields beside the counters: the last end that is counted, and whether a scrape has ever counted all ends.
_UNTIL, _COMPLETE = f"{SEP}until", f"{SEP}complete"
#: Field of a run's entry: its instance id. A run with the id of a deleted run has another one.
_INSTANCE = f"{SEP}instance"

#: Metrics of a sweeper, by the field of a step, or of its undo, that counts them.
_SWEPT: dict[str, str] = {Field.LOST: "lost", Field.RESENT: "resent"}

Counts = dict[str, float]


@dataclass(frozen=True)
class RunCounts:
    """The counts of one run, with its instance id and state; without them for an unreadable run."""

    counts: Counts = field(default_factory=dict)
    instance_id: str = ""
    state: RunState | None = None


def of_run(store: Store, run_id: str) -> RunCounts | None:
    """The counts of a run; None where the run is gone or unreadable."""
    try:
        text, run, steps, now = store.whole(run_id)
        if text is None:
            return None
        body = read_request(run_id, text)
        plan = _compiled(json.dumps(body["plan"]))
        done = report.build(run_id, plan, run, steps, now)
        return RunCounts(_counts(plan, steps, done), str(body.get("instance_id", "")), done.state)
    except StoreUnavailable as error:
        if isinstance(error, WrongType):
            return None
        raise
    except (*UNREADABLE, LongshoreError):  # a damaged run must not stop the scrape
        return None


@lru_cache(_PLANS)
def _compiled(plan: str) -> CompiledPlan:
    """The compiled plan of a JSON text, once for all its runs."""
    return CompiledPlan(Plan.model_validate_json(plan), lenient=True)


def _counts(plan: CompiledPlan, steps: Mapping[str, str], done: report.Report) -> Counts:
    found: dict[str, float] = defaultdict(float)

    def add(*name: str, by: float = 1) -> None:
        found[SEP.join(name)] += by

    def observe(metric: str, label: str, seconds: float, buckets: Iterable[float]) -> None:
        add(metric, label, "sum", by=seconds)
        for end in (*buckets, float("inf")):
            if seconds <= end:
                add(metric, label, f"{end:g}")

    if done.state in TERMINAL:
        add("runs", done.plan, done.state)
        if done.duration_s is not None:
            observe("run_s", done.plan, done.duration_s, RUN_BUCKETS)
    for step in done.steps:
        if step.status in STEP_FINAL:
            add("steps", step.op, step.status)
            if step.duration_s is not None:
                observe("step_s", step.op, step.duration_s, STEP_BUCKETS)
        add("attempts", step.op, by=sum(item.attempts for item in step.items) if step.items else step.attempts)
        if step.undo is not None and step.undo.duration_s is not None:
            add("undos", step.op, step.undo.status)
    for name, value in steps.items():
        kind, _, step_id = name.partition(":")
        if metric := _SWEPT.get(kind.removeprefix("u")):
            op = plan.steps[index_of(int(step_id) if step_id.isdigit() else step_id)].operation.name
            add(metric, op, by=int(value or 0))
    return {name: value for name, value in found.items() if value}


@dataclass
class Totals:
    """All counters; `live` runs by plan and state; `uncounted`, the ended runs that later scrapes count."""

    counts: Counts = field(default_factory=dict)
    live: Counter[tuple[str, str]] = field(default_factory=Counter)
    uncounted: int = 0

    def of(self, metric: str) -> Iterator[tuple[tuple[str, ...], float]]:
        """Label values and value of each counter of a metric."""
        for name, value in sorted(self.counts.items()):
            first, *labels = name.split(SEP)
            if first == metric:
                yield tuple(labels), value


def totals(store: Store) -> Totals:
    """Compute all counters. Raises StoreUnavailable."""
    # Live runs are read first, so that a run that ends meanwhile is still counted.
    live = store.call(store.client.zrange, store.keys.live, 0, _LIVE - 1)
    uncounted = _fold(store)
    found = Totals(uncounted=uncounted)
    progress: dict[str, RunCounts] = {}
    for run_id in live:
        if (seen := of_run(store, run_id)) is None:
            continue
        progress[run_id] = seen
        if seen.state not in TERMINAL:
            plan = store.call(store.client.hget, store.keys.of(run_id).run, "plan") or ""
            found.live[plan, str(seen.state)] += 1
    for begin in range(0, len(live), _PAGE):
        _add(store, {run_id: progress[run_id] for run_id in live[begin : begin + _PAGE] if run_id in progress})
    # Only stored totals are reported: the next scrape may not find a live run of this one.
    known = store.call(store.client.hgetall, store.keys.counters)
    found.counts = _numbers(known) if known.get(_COMPLETE) else {}
    return found


def _fold(store: Store) -> int:
    """Add the runs that ended since the last scrape, each without counts added before; return how many are left."""
    client, keys = store.client, store.keys
    last, complete = store.call(client.hmget, keys.counters, _UNTIL, _COMPLETE)
    until = _number(last) or 0.0
    since, begin, latest = until - _OVERLAP, 0, time.monotonic() + _LONGEST
    while True:
        ended = store.call(client.zrangebyscore, keys.ended, since, "+inf", start=begin, num=_PAGE, withscores=True)
        is_known = _count(store, dict(ended))
        begin += len(ended)
        if ended and ended[-1][1] > until:
            until = ended[-1][1]
            store.call(client.hset, keys.counters, _UNTIL, str(until))
        if len(ended) < _PAGE:
            break
        if not is_known and time.monotonic() >= latest:
            return max(0, int(store.call(client.zcount, keys.ended, since, "+inf")) - begin)
    if not complete:
        store.call(client.hset, keys.counters, _COMPLETE, 1)
    if store.call(client.hlen, keys.counted_runs) > store.call(client.zcard, keys.runs) + _PAGE:
        known = set(store.call(client.zrange, keys.runs, 0, -1))
        gone = [run_id for run_id in store.call(client.hkeys, keys.counted_runs) if run_id not in known]
        if gone:
            store.call(client.hdel, keys.counted_runs, *gone)
    return 0


def _count(store: Store, ended: Mapping[str, float]) -> bool:
    """Add runs to the totals; return whether all of them were counted before.

    `ended` maps each run to the time of its end: a run that was reopened, and has ended again, has another one.
    """
    before = _texts(store, list(ended))
    left = [run_id for run_id, at in ended.items() if _number(_entries(before.get(run_id)).get(_UNTIL)) != at]
    if left:
        # An unreadable run counts nothing, and is not read again.
        _add(store, {run_id: of_run(store, run_id) or RunCounts() for run_id in left}, ended)
    return not left


def _add(store: Store, runs: Mapping[str, RunCounts], ended: Mapping[str, float] | None = None) -> None:
    """Add the new counts of runs, in one transaction, so that concurrent scrapes add them once.

    `ended` maps ended runs to the times of their ends.
    """
    keys = store.keys
    if not runs:
        return
    with store.client.pipeline() as pipe:
        while True:
            try:
                store.call(pipe.watch, keys.counted_runs)
                texts = store.call(pipe.hmget, keys.counted_runs, list(runs))
                total: dict[str, float] = defaultdict(float)
                entries: dict[Any, Any] = {}
                for (run_id, seen), text in zip(runs.items(), texts, strict=True):
                    stored, counts = _entries(text), seen.counts
                    if seen.instance_id and stored.get(_INSTANCE, "") not in {"", seen.instance_id}:
                        stored = {}  # the entry is that of a deleted run with the same id
                    known = _numbers(stored)
                    more = _more(known, counts)
                    if not more and ended is None:
                        continue
                    until = stored.get(_UNTIL) if ended is None else ended[run_id]
                    entry = {_UNTIL: until, _INSTANCE: seen.instance_id or stored.get(_INSTANCE, "")}
                    entries[run_id] = json.dumps(known | {name: counts[name] for name in more} | entry)
                    for name, by in more.items():
                        total[name] += by
                if not entries:
                    return
                pipe.multi()
                for name, value in total.items():
                    pipe.hincrbyfloat(keys.counters, name, value)
                pipe.hset(keys.counted_runs, mapping=entries)
                pipe.execute()
                return
            except WatchError:
                continue


def _more(before: Mapping[str, float], now: Mapping[str, float]) -> Counts:
    return {name: value - before.get(name, 0) for name, value in now.items() if value > before.get(name, 0)}


def _texts(store: Store, run_ids: list[str]) -> dict[str, str]:
    """The stored counts of runs, as JSON."""
    if not run_ids:
        return {}
    texts = store.call(store.client.hmget, store.keys.counted_runs, run_ids)
    return {run_id: text for run_id, text in zip(run_ids, texts, strict=True) if text}


def _entries(text: str | None) -> dict[str, object]:
    """The stored entry of a run; empty for an unreadable text, so that the run is counted again."""
    try:
        found = json.loads(text or "{}")
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(found: Mapping[str, object]) -> Counts:
    """The finite numbers among these values."""
    read = {name: _number(value) for name, value in found.items() if not name.startswith(SEP)}
    return {name: value for name, value in read.items() if value is not None}


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
