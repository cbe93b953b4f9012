"""Prometheus metrics of an installation, read from Redis at each scrape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from longshore.orchestration.monitoring import counters
from longshore.orchestration.monitoring.counters import Totals
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.hosts import Hosts, HostState
from longshore.orchestration.store.queue_lengths import queue_lengths
from longshore.orchestration.store.run_store import Store

#: Each counter: its metric in `counters`, its name, its help text and its labels.
_COUNTERS = (
    ("runs", "longshore_runs", "Ended runs, by plan and final state", ("plan", "state")),
    ("steps", "longshore_steps", "Ended steps, by operation and final status", ("op", "status")),
    (
        "attempts",
        "longshore_step_attempts",
        "Attempts at steps. Of a step with units (items or hosts), the attempts at its units",
        ("op",),
    ),
    (
        "undos",
        "longshore_undos",
        "Ended compensations, by operation of the step and by outcome",
        ("op", "status"),
    ),
    (
        "lost",
        "longshore_leases_lost",
        "Lost attempts at steps and compensations (expired leases)",
        ("op",),
    ),
    (
        "resent",
        "longshore_messages_resent",
        "Messages that were sent again, because no worker claimed the step or compensation in time",
        ("op",),
    ),
)
_HISTOGRAMS = (
    ("run_s", "longshore_run_duration_seconds", "Duration of runs, from the first level to the end", "plan"),
    ("step_s", "longshore_step_duration_seconds", "Duration of steps, from the first claim to the outcome", "op"),
)


class Collector:
    """Collects all metrics of an installation for a Prometheus registry."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        totals = counters.totals(self._store)
        for metric, name, what, labels in _COUNTERS:
            counter = CounterMetricFamily(name, what, labels=labels)
            for values, value in totals.of(metric):
                counter.add_metric(values, value)
            yield counter
        for metric, name, what, label in _HISTOGRAMS:
            yield _histogram(totals, metric, name, what, label)
        uncounted = GaugeMetricFamily(
            "longshore_runs_uncounted",
            "Ended runs that no scrape has counted yet: each scrape has a time limit. Counters and histograms are "
            "empty until this gauge is 0 for the first time",
        )
        uncounted.add_metric([], totals.uncounted)
        yield uncounted
        yield self._live(totals)
        yield from self._queues()
        yield from self._hosts()
        yield from self._redis()

    @staticmethod
    def _live(totals: Totals) -> Metric:
        live = GaugeMetricFamily(
            "longshore_runs_live",
            "Runs that have not ended. A scrape counts at most 1,000 in total",
            labels=["plan", "state"],
        )
        for (plan, state), count in sorted(totals.live.items()):
            live.add_metric([plan, state], count)
        return live

    def _queues(self) -> Iterator[Metric]:
        length = GaugeMetricFamily("longshore_queue_length", "Messages that wait in a queue", labels=["queue"])
        oldest = GaugeMetricFamily(
            "longshore_queue_oldest_seconds",
            "Age in seconds of the oldest of the next ten messages of a queue. 0 for an empty queue",
            labels=["queue"],
        )
        workers = GaugeMetricFamily("longshore_queue_workers", "Running workers that consume a queue", labels=["queue"])
        for backlog in queue_lengths(self._store):
            length.add_metric([backlog.queue], backlog.length)
            oldest.add_metric([backlog.queue], backlog.oldest)
            workers.add_metric([backlog.queue], backlog.workers)
        yield from (length, oldest, workers)

    def _hosts(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("longshore_hosts", "Hosts, by state", labels=["state"])
        active = GaugeMetricFamily("longshore_host_active_steps", "Running steps of a host", labels=["host"])
        hosts = Hosts(self._store).all().values()
        counted = Counter(host.state for host in hosts)
        for state in HostState:
            states.add_metric([state], counted[state])
        for host in hosts:
            active.add_metric([host.name], sum(node.active for node in host.alive))
        yield from (states, active)

    def _redis(self) -> Iterator[Metric]:
        store = self._store
        breakers = GaugeMetricFamily(
            "longshore_breaker_open",
            "1 while the breaker of a service or job is open or half-open; otherwise no value",
            labels=["service"],
        )
        for breaker in Breakers(store).open():
            breakers.add_metric([breaker.service], 1)
        yield breakers
        dead_letters = GaugeMetricFamily(
            "longshore_dead_letters", "Dead letters: stored messages and entries that no worker could process"
        )
        dead_letters.add_metric([], store.call(store.client.xlen, store.keys.dead_letters))
        yield dead_letters
        info: dict[str, Any] = store.call(store.client.info, "memory")
        memory = GaugeMetricFamily(
            "longshore_redis_memory_bytes",
            "Memory of Redis in bytes: `used`, and the limit `max` (0: no limit)",
            labels=["kind"],
        )
        memory.add_metric(["used"], int(info.get("used_memory", 0)))
        memory.add_metric(["max"], int(info.get("maxmemory", 0)))
        yield memory


def _histogram(totals: Totals, metric: str, name: str, what: str, label: str) -> Metric:
    made = HistogramMetricFamily(name, what, labels=[label])
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (value, part), amount in totals.of(metric):
        found[value][part] = amount
    ends = counters.RUN_BUCKETS if metric == "run_s" else counters.STEP_BUCKETS
    for value, parts in found.items():
        buckets = [(f"{end:g}", parts.get(f"{end:g}", 0.0)) for end in ends] + [("+Inf", parts.get("inf", 0.0))]
        made.add_metric([value], buckets=buckets, sum_value=parts.get("sum", 0.0))
    return made


def registry(store: Store) -> CollectorRegistry:
    """A registry with all metrics."""
    made = CollectorRegistry(auto_describe=False)
    made.register(Collector(store))
    return made


def text(store: Store) -> str:
    """All metrics in Prometheus's text format. Raises StoreUnavailable."""
    return generate_latest(registry(store)).decode()
