"""Counters for metrics, computed from the records of runs at each scrape, each run once.

Runs count nothing themselves. A scrape adds the runs that ended since the last scrape to the totals, and then the
progress of live runs, so that counters agree with reports. A counter never decreases: a reopened run keeps its counts.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import WatchError

from longshore.orchestration.errors import UNREADABLE, LongshoreError, StoreUnavailable, WrongType
from longshore.orchestration.plans.compiled import CompiledPlan, index_of
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import report
from longshore.orchestration.states import STEP_FINAL, TERMINAL, RunState
from longshore.orchestration.store.keys import Field

if TYPE_CHECKING:
    from longshore.orchestration.store.run_store import Store

#: Upper ends of the histograms, seconds.
STEP_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
RUN_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
#: Runs that one scrape reads in one page, and live runs that it reads at most.
_PAGE = 1000
#: ms that a scrape reads again before the last end that it has counted, because ends are not stored in order.
_OVERLAP = 60_000
#: Separator in a counter's name in Redis: the metric, then the values of its labels.
SEP = "\x1f"
_UNTIL = f"{SEP}until"

#: Metrics of a sweeper, by the field of a step, or of its undo, that counts them.
_SWEPT: dict[str, str] = {Field.LOST: "lost", Field.RESENT: "resent"}

Counts = dict[str, float]


def of_run(store: Store, run_id: str) -> tuple[Counts, RunState] | None:
    """The counts and the state of a run; None where the run is gone or unreadable."""
    try:
        body = store.body(run_id)
        if body is None:
            return None
        plan = CompiledPlan(Plan.model_validate(body["plan"]), lenient=True)
        run, steps = store.everything(run_id)
        done = report.build(run_id, plan, run, steps, store.now())
        return _counts(plan, steps, done), done.state
    except StoreUnavailable as error:
        if isinstance(error, WrongType):
            return None
        raise
    except (*UNREADABLE, LongshoreError):  # a damaged run must not stop the scrape
        return None


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
    """All counters; `live` runs by plan and state."""

    counts: Counts = field(default_factory=dict)
    live: Counter[tuple[str, str]] = field(default_factory=Counter)

    def of(self, metric: str) -> Iterator[tuple[tuple[str, ...], float]]:
        """Label values and value of each counter of a metric."""
        for name, value in sorted(self.counts.items()):
            first, *labels = name.split(SEP)
            if first == metric:
                yield tuple(labels), value


def totals(store: Store) -> Totals:
    """Compute all counters. Raises StoreUnavailable."""
    # Live runs are read first, so that a run that ends meanwhile is still counted.
    live = store.call(store.client.zrange, store.keys.live, 0, _PAGE - 1)
    _fold(store)
    found = Totals(_numbers(store.call(store.client.hgetall, store.keys.counters)))
    before = _snapshots(store, live)
    for run_id in live:
        seen = of_run(store, run_id)
        if seen is None or (seen[1] in TERMINAL and run_id in before):
            continue
        counts, state = seen
        new = _more(before.get(run_id, {}), counts)
        for name, more in new.items():
            found.counts[name] = found.counts.get(name, 0) + more
        if state in TERMINAL:
            _add(store, run_id, counts)  # a counter, once reported, must not decrease
            continue
        found.live[store.call(store.client.hget, store.keys.of(run_id).run, "plan") or "", str(state)] += 1
    return found


def _fold(store: Store) -> None:
    """Add the runs that ended since the last scrape, each without counts added before."""
    client, keys = store.client, store.keys
    since = (_number(store.call(client.hget, keys.counters, _UNTIL)) or 0.0) - _OVERLAP
    begin = 0
    while True:
        ended = store.call(client.zrangebyscore, keys.ended, since, "+inf", start=begin, num=_PAGE, withscores=True)
        before = _snapshots(store, [run_id for run_id, _ in ended])
        for run_id, at in ended:
            seen = of_run(store, run_id)
            if seen is not None and (run_id not in before or _more(before[run_id], seen[0])):
                _add(store, run_id, seen[0], at)
        begin += len(ended)
        if len(ended) < _PAGE:
            break
    if store.call(client.hlen, keys.counted_runs) > store.call(client.zcard, keys.runs) + _PAGE:
        known = set(store.call(client.zrange, keys.runs, 0, -1))
        gone = [run_id for run_id in store.call(client.hkeys, keys.counted_runs) if run_id not in known]
        if gone:
            store.call(client.hdel, keys.counted_runs, *gone)


def _add(store: Store, run_id: str, counts: Counts, until: float | None = None) -> None:
    """Add the new counts of a run, in one transaction, so that concurrent scrapes add them once."""
    keys = store.keys
    with store.client.pipeline() as pipe:
        while True:
            try:
                store.call(pipe.watch, keys.counted_runs)
                known = _snapshot(store.call(pipe.hget, keys.counted_runs, run_id) or "{}")
                more = _more(known, counts)
                pipe.multi()
                for name, value in more.items():
                    pipe.hincrbyfloat(keys.counters, name, value)
                pipe.hset(
                    keys.counted_runs, run_id, json.dumps(known | {n: known.get(n, 0) + v for n, v in more.items()})
                )
                if until is not None:
                    pipe.hset(keys.counters, _UNTIL, str(until))
                pipe.execute()
                return
            except WatchError:
                continue


def _more(before: Mapping[str, float], now: Mapping[str, float]) -> Counts:
    return {name: value - before.get(name, 0) for name, value in now.items() if value > before.get(name, 0)}


def _snapshots(store: Store, run_ids: list[str]) -> dict[str, Counts]:
    if not run_ids:
        return {}
    texts = store.call(store.client.hmget, store.keys.counted_runs, run_ids)
    return {run_id: _snapshot(text) for run_id, text in zip(run_ids, texts, strict=True) if text}


def _snapshot(text: str) -> Counts:
    """The stored counts of a run; none for an unreadable text, so that the run is counted again."""
    try:
        return _numbers(json.loads(text))
    except UNREADABLE:
        return {}


def _numbers(found: Mapping[str, object]) -> Counts:
    """The finite numbers among these values."""
    read = {name: _number(value) for name, value in found.items() if name != _UNTIL}
    return {name: value for name, value in read.items() if value is not None}


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
