"""What a monitoring system, or whatever scales workers, wants to know: read when it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily

from longshore.orchestration.backlog import backlogs
from longshore.orchestration.hosts import Hosts, HostState
from longshore.orchestration.store import Store


class Collector:
    """Queues and hosts, as Prometheus has them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        length = GaugeMetricFamily("longshore_queue_length", "Messages that wait in a queue", labels=["queue"])
        oldest = GaugeMetricFamily(
            "longshore_queue_oldest_seconds", "For how long the next message of a queue has waited", labels=["queue"]
        )
        workers = GaugeMetricFamily("longshore_queue_workers", "Workers that take from a queue now", labels=["queue"])
        for backlog in backlogs(self._store):
            length.add_metric([backlog.queue], backlog.length)
            oldest.add_metric([backlog.queue], backlog.oldest)
            workers.add_metric([backlog.queue], backlog.workers)
        yield from (length, oldest, workers)
        states = GaugeMetricFamily("longshore_hosts", "Hosts by their state", labels=["state"])
        active = GaugeMetricFamily("longshore_host_active_steps", "Steps that a host is at", labels=["host"])
        hosts = Hosts(self._store).all().values()
        counted = Counter(host.state for host in hosts)
        for state in HostState:
            states.add_metric([state], counted[state])
        for host in hosts:
            active.add_metric([host.name], sum(node.active for node in host.alive))
        yield from (states, active)


def registry(store: Store) -> CollectorRegistry:
    """All of it, for a scrape."""
    made = CollectorRegistry(auto_describe=False)
    made.register(Collector(store))
    return made


def text(store: Store) -> str:
    """In Prometheus's text format. StoreUnavailable."""
    return generate_latest(registry(store)).decode()
