"""Waiting runs: their idle cost, and the time of other runs; and queries of many stored runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import plans
from benchmarks.bench import Bench, quantile
from benchmarks.plans import execute, grid, keyed
from benchmarks.site import Site
from benchmarks.table import Figure, at_most
from longshore.orchestration import Plan
from longshore.orchestration.monitoring import counters, metrics
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.queue_lengths import queue_lengths
from longshore.orchestration.store.run_store import Store
from longshore.tasks.control.sweep import postponement

#: The duration of the measurement of an idle worker, in seconds.
_WATCHED = 10.0
#: Seconds within which a sweep has found each new run.
_NEW = 60.0
_APPROVALS = 2000
#: Runs with a step in progress; a worker checks each of them every third of a lease.
_LIVE = 5000
_STORED = 10_000
#: Milliseconds between two stored runs, so that all runs are younger than the retention.
_APART = 30_000


def idle(bench: Bench) -> list[Figure]:
    """The cost of a worker without runs, and with runs that wait for an approval."""
    site, client = bench.site, bench.client
    site.fresh()
    execute(client, grid(2, 4))
    figures = _watched(site, "without runs")
    plan = Plan("approvals")
    plan.approval("wait")
    for _ in range(_APPROVALS):
        client.start(plan)
    _settle(bench, lambda: site.redis.zcard(client.store.keys.admitted) == _APPROVALS)
    _until_nothing_is_due(bench)
    bench.sweeps.write_text("")
    title = f"with {_APPROVALS:,} runs that wait"
    memory, cpu, commands = _watched(site, title)
    sweep = max(map(float, bench.sweeps.read_text().split()), default=0.0)
    site.fresh()
    return [
        *figures,
        memory,
        cpu,
        Figure(commands.name, commands.value, commands.unit, target=at_most(15)),
        Figure(f"the longest sweep {title}", 1000 * sweep, "ms", target=at_most(100)),
    ]


def _watched(site: Site, when: str) -> list[Figure]:
    cpu, before = site.cpu(), site.read().commands
    time.sleep(_WATCHED)
    commands = site.read().commands - before
    return [
        Figure(f"a worker {when}: memory", site.resident(), "MiB"),
        Figure(f"a worker {when}: processor", 100 * (site.cpu() - cpu) / _WATCHED, "%"),
        # Without the three commands of the measurement.
        Figure(f"a worker {when}: Redis commands", (commands - 3) / _WATCHED, "/s"),
    ]


def live(bench: Bench) -> list[Figure]:
    """The longest interval between two checks of a run, if one worker checks many runs with a running step."""
    site, client = bench.site, bench.client
    store = client.store
    site.stop()
    site.server.flush()
    site.pid = site.worker("control", "-Q", CONTROL)  # no worker takes the steps: the benchmark claims them
    runs = [client.start(grid(1, 1)).id for _ in range(_LIVE)]
    _settle(bench, lambda: site.redis.zcard(store.keys.live) == _LIVE)
    # Long leases replace a worker that renews its leases.
    busy = Store(store.settings.model_copy(update={"lease": 3600.0}))
    for run_id in runs:
        busy.claim(run_id, 0, "", "busy@bench", uuid.uuid4().hex)
    busy.client.close()
    time.sleep(store.settings.lease)  # after each run's first sweep with a running step
    cpu, before, late = site.cpu(), site.read().commands, 0.0
    began = time.monotonic()
    while (took := time.monotonic() - began) < 2 * store.settings.lease:
        first = site.redis.zrange(store.keys.live, 0, 0, withscores=True)
        late = max(late, (store.now() - float(first[0][1])) / 1000)
        time.sleep(0.05)
    cpu, commands = site.cpu() - cpu, site.read().commands - before
    site.fresh()
    title = f"one worker with {_LIVE:,} runs, each with a running step"
    interval = postponement(store.settings) + late
    third = at_most(store.settings.lease / 3)
    return [
        Figure(f"{title}: the longest interval between two checks of a run", interval, "s", target=third),
        Figure(f"{title}: processor", 100 * cpu / took, "%"),
        Figure(f"{title}: Redis commands", commands / took, "/s"),
    ]


def _until_nothing_is_due(bench: Bench) -> None:
    """Wait, for a limited time, until no run is due during the measurement. Each new run is due once."""
    store, until = bench.client.store, time.monotonic() + _NEW
    while time.monotonic() < until:
        first = bench.site.redis.zrange(store.keys.live, 0, 0, withscores=True)
        if not first or float(first[0][1]) > store.now() + 2000 * _WATCHED:
            return
        time.sleep(0.5)


def _settle(bench: Bench, reached: Callable[[], bool]) -> None:
    """Wait until a condition holds and no message is in transit. Raises RuntimeError after the time limit."""
    store, until = bench.client.store, time.monotonic() + plans.PATIENCE
    unacked = f"{store.settings.broker_prefix()}unacked"
    while (
        not reached()
        or any(length.length for length in queue_lengths(store))
        or bench.site.redis.hlen(unacked)
        or bench.site.redis.zcard(store.keys.inbox)
    ):
        if time.monotonic() > until:
            raise RuntimeError("the workers have not read all runs")
        time.sleep(0.1)


def behind(bench: Bench) -> list[Figure]:
    """The time of a run behind runs that wait for a concurrency key."""
    site, client = bench.site, bench.client
    site.fresh()
    plan, one, submitted = keyed("a"), grid(1, 1), 0
    for _ in range(10 * bench.rounds):  # the first runs of a worker are slower than later runs
        execute(client, one)
    alone = quantile([execute(client, one) for _ in range(40 * bench.rounds)], 0.5)
    figures = [Figure("a run without waiting runs, p50", 1000 * alone, "ms")]
    slowest = worst = 0.0
    for count in (20, 200, 800, 5000) if bench.large else (20, 200, 800):
        while submitted < count:
            client.start(plan)
            submitted += 1
        at_once = execute(client, one)
        _settle(bench, partial(_holds_back, bench, count - 2))
        delays = [execute(client, one) for _ in range(40 * bench.rounds)]
        median = quantile(delays, 0.5)
        slowest, worst = max(slowest, median), max(worst, *delays)
        figures.append(Figure(f"an unrelated run behind {count:,} waiting runs, p50", 1000 * median, "ms"))
        # At the same time, the first two runs with the key begin, and the other runs are stored.
        name = f"an unrelated run right after the start of the {count:,} runs, measured once"
        figures.append(Figure(name, 1000 * at_once, "ms"))
    site.fresh()
    return [
        *figures,
        Figure("slowest p50 behind waiting runs, divided by the p50 without", slowest / alone, target=at_most(1.2)),
        Figure("the longest time of an unrelated run, except right after a start", worst, "s", target=at_most(0.5)),
    ]


def _holds_back(bench: Bench, count: int) -> bool:
    return int(bench.site.redis.zcard(bench.client.store.keys.waiting("key tn-a"))) == count


def admission(bench: Bench, waiting: int = 100_000) -> list[Figure]:
    """The time in Redis of the release of a key and of the next admission, with many waiting runs."""
    site, client = bench.site, bench.client
    site.stop()
    site.server.flush()
    queue, body = Admission(client.store), {"plan": {"name": "keyed"}, "concurrency": {"key": "k", "limit": 1}}
    wanted = AdmissionRequest.of(body)
    for number in range(waiting + 1):
        queue.submit(f"run-{number}", body)
        queue.admit(f"run-{number}", wanted)
    site.redis.config_set("slowlog-log-slower-than", 0)
    site.redis.slowlog_reset()
    queue.release("run-0", wanted)
    admitted = queue.wake(queue.queues_of(wanted))
    entries = site.redis.slowlog_get(128)
    site.redis.config_set("slowlog-log-slower-than", 1000)
    site.fresh()
    if [run_id for run_id, _ in admitted] != ["run-1"]:
        raise RuntimeError(f"the release of run-0 admitted {admitted}")
    took = sum(entry["duration"] for entry in entries if not entry["command"].startswith((b"SLOWLOG", b"CONFIG")))
    return [Figure(f"one admission behind {waiting:,} waiting runs", took / 1000, "ms in Redis", target=at_most(1))]


def reading(bench: Bench) -> list[Figure]:
    """`runs ls` and a scrape of the metrics, with copies of a finished run in Redis."""
    site, store = bench.site, bench.client.store
    site.fresh()
    run = bench.client.start(grid(5, 1))
    plans.ended([run])
    _store_copies(bench, run.id)
    listing, alone = (lambda: _command(site, "runs", "ls")), (lambda: _command(site, "runs", "ls", "--help"))
    seconds = bench.medians({"listing": listing, "alone": alone})
    began = time.perf_counter()
    metrics.text(store)
    first = time.perf_counter() - began
    further = 0
    while counters.totals(store).uncounted:
        further += 1

    def scrape() -> float:
        before = time.perf_counter()
        metrics.text(store)
        return time.perf_counter() - before

    scrapes = bench.medians({"scrape": scrape})
    site.fresh()
    return [
        Figure(
            f"runs ls with {_STORED:,} stored runs, minus runs ls --help",
            max(0.0, seconds["listing"] - seconds["alone"]), "s",
            target=at_most(0.3), note=f"{seconds['listing']:.2f} s before the subtraction",
        ),
        Figure(f"a scrape of the metrics with {_STORED:,} stored runs", scrapes["scrape"], "s", target=at_most(0.5)),
        Figure(f"the first scrape with {_STORED:,} stored runs", first, "s", target=at_most(0.5)),
        Figure(f"scrapes until the {_STORED:,} runs are counted", further + 2),
    ]  # fmt: skip


def _store_copies(bench: Bench, run_id: str) -> None:
    """Store a finished run under further ids, with entries in the indices of runs that spread over the last days."""
    redis, keys = bench.site.redis, bench.client.store.keys
    originals = [key for key in redis.scan_iter(match=f"*{{{run_id}}}*") if redis.exists(key)]
    at = {name: redis.zscore(name, run_id) or 0.0 for name in (keys.runs, keys.ended)}
    pipe = redis.pipeline(transaction=False)
    for number in range(_STORED - 1):
        copy = f"{run_id}-{number}"
        for key in originals:
            pipe.copy(key, key.replace(run_id, copy))
        for name, score in at.items():
            pipe.zadd(name, {copy: score - _APART * (number + 1)})
        if number % 500 == 499:
            pipe.execute()
    pipe.execute()


def _command(site: Site, *arguments: str) -> float:
    program = Path(sys.executable).with_name("longshore")
    began = time.perf_counter()
    subprocess.run(
        [program, *arguments],
        check=True, capture_output=True, env={**os.environ, "LONGSHORE_REDIS_URL": site.server.url},
    )  # fmt: skip
    return time.perf_counter() - began
