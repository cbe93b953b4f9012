"""Steps a second beside Celery and DBOS, and the latency of one step and of one start."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

from benchmarks import plans
from benchmarks.bench import Bench, quantile
from benchmarks.dbos_peer import DbosPeer
from benchmarks.plans import execute, grid, sagas
from benchmarks.table import Figure, Target, at_least, at_most
from longshore.orchestration import Plan

#: Samples of one latency in a round.
_SAMPLES = 50


def rates(bench: Bench) -> list[Figure]:
    """Steps a second of plans of several shapes."""
    return _rates(bench, bench.dbos)


def rates_on_disk(bench: Bench) -> list[Figure]:
    """The same rates with a Redis that writes each change to the disk. The shares have no targets."""
    bench.site.sync_each_write()
    bench.celery_site.sync_each_write()
    figures = _rates(bench, {})
    return [Figure(each.name, each.value, each.unit, each.peers) for each in figures]


def _rates(bench: Bench, others: Mapping[str, DbosPeer | str]) -> list[Figure]:
    client, celery = bench.client, bench.celery
    wide, deep, levels, chain = grid(1, 500), grid(50, 10), grid(5, 40), grid(40, 1)
    measures: dict[str, Callable[[], float]] = {
        "wide": lambda: execute(client, wide),
        "wide Celery": lambda: celery.tasks(500),
        "deep": lambda: execute(client, deep),
        "levels": lambda: execute(client, levels),
        "levels Celery": lambda: celery.canvas(5, 40),
        "sagas": lambda: sagas(client, 100, 5),
        "sagas Celery": lambda: celery.chains(100, 5),
        "chain": lambda: execute(client, chain),
        "chain Celery": lambda: celery.chain(40),
    }
    running = {name: peer for name, peer in others.items() if not isinstance(peer, str)}
    for name, peer in running.items():
        for work, count, length in (("wide", 500, 1), ("sagas", 100, 5), ("chain", 1, 40)):
            measures[f"{work} {name}"] = partial(peer.workflows, count, length)
    seconds = bench.medians(measures)

    def beside(work: str, of: Callable[[float], float]) -> dict[str, float | str]:
        return {name: of(seconds[f"{work} {name}"]) if name in running else str(why) for name, why in others.items()}

    def rate(name: str, work: str, steps: int, peer: str, celery: str, target: Target, *, dbos: bool) -> Figure:
        peers: dict[str, float | str] = {peer: (500 if celery == "wide Celery" else steps) / seconds[celery]}
        if dbos:
            peers |= beside(work, lambda took: steps / took)
        return Figure(name, steps / seconds[work], "/s", peers, target)

    bare, canvas, chains = "bare Celery tasks", "Celery canvas", "bare Celery chains"
    return [
        rate("500 independent no-ops", "wide", 500, bare, "wide Celery", at_least(0.75, bare), dbos=True),
        rate("50 levels × 10", "deep", 500, bare, "wide Celery", at_least(0.6, bare), dbos=False),
        rate("5 levels × 40", "levels", 200, canvas, "levels Celery", at_least(3, canvas), dbos=False),
        rate("100 runs of 5 steps at once", "sagas", 500, chains, "sagas Celery", at_least(0.8, chains), dbos=True),
        Figure(
            "40 sequential steps, time per step",
            seconds["chain"] * 25,
            "ms",
            {"Celery chain with results": seconds["chain Celery"] * 25} | beside("chain", lambda took: took * 25),
            at_most(1.3, "Celery chain with results"),
        ),
        Figure("40 sequential steps, from start to report", seconds["chain"], "s", target=at_most(0.25)),
    ]


def latencies(bench: Bench) -> list[Figure]:
    """One step from its start to the report, the start alone, and the delay between two sequential steps."""
    client, celery, one = bench.client, bench.celery, grid(1, 1)
    whole: list[float] = []
    starts: list[float] = []
    trips: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in bench.dbos}
    for _ in range(bench.rounds * _SAMPLES):
        began = time.perf_counter()
        plans.ended([client.start(one)])
        whole.append(1000 * (time.perf_counter() - began))
        trips.append(1000 * celery.round_trip())
        for name, peer in bench.dbos.items():
            if not isinstance(peer, str):
                others[name].append(1000 * peer.workflows(1, 1))
    for _ in range(bench.rounds * _SAMPLES):  # separately, because the peers still work after their samples
        began = time.perf_counter()
        run = client.start(one)
        starts.append(1000 * (time.perf_counter() - began))
        plans.ended([run])
    hops = [hop for _ in range(bench.rounds) for hop in _hops(bench)]

    def at(share: float) -> dict[str, float | str]:
        peers: dict[str, float | str] = {"Celery task with result": quantile(trips, share)}
        return peers | {
            name: quantile(others[name], share) if others[name] else str(peer) for name, peer in bench.dbos.items()
        }

    return [
        Figure(
            "one step, start to report, p50", quantile(whole, 0.5), "ms", at(0.5), at_most(4, "Celery task with result")
        ),
        Figure("one step, start to report, p99", quantile(whole, 0.99), "ms", at(0.99)),
        Figure("Client.start, p50", quantile(starts, 0.5), "ms", target=at_most(1.5)),
        Figure("Client.start, p99", quantile(starts, 0.99), "ms"),
        *(
            Figure(f"from one step to the next, {name}", hop, "ms", note="± 1 ms" if hop else "less than 1 ms")
            for name, hop in (("p50", quantile(hops, 0.5)), ("p99", quantile(hops, 0.99)))
        ),
    ]


def _hops(bench: Bench) -> list[float]:
    run = bench.client.start(grid(40, 1))
    plans.ended([run])
    starts = [event.at for event in run.events() if event.name == "step_started"]
    return [float(later - earlier) for earlier, later in pairwise(starts)]


def large_starts(bench: Bench) -> list[Figure]:
    """`Client.start` of large plans, without a worker."""
    client, thousand, ten_thousand = bench.quiet, grid(1, 1000), grid(1, 10_000)
    client.start(grid(1, 1))

    def start(plan: Plan) -> float:
        began = time.perf_counter()
        client.start(plan)
        return time.perf_counter() - began

    seconds = bench.medians({"1,000": lambda: start(thousand), "10,000": lambda: start(ten_thousand)})
    return [
        Figure("Client.start of 1,000 steps", seconds["1,000"], "s", target=at_most(0.15)),
        Figure("Client.start of 10,000 steps", seconds["10,000"], "s", target=at_most(1.5)),
    ]


def undo(bench: Bench) -> list[Figure]:
    """The undo of a run of 500 changed steps, compared with the run."""
    client = bench.client
    plan = Plan("changes")
    for number in range(500):
        plan.step(f"s{number}", "bench.change", number=number)
    forward: list[float] = []
    back: list[float] = []
    for _ in range(bench.rounds):
        began = time.perf_counter()
        run = client.start(plan)
        plans.ended([run])
        forward.append(500 / (time.perf_counter() - began))
        began = time.perf_counter()
        run.answer(run.undo(), plans.PATIENCE)
        report = run.wait(plans.PATIENCE)
        back.append(500 / (time.perf_counter() - began))
        if report.state != "undone":
            raise RuntimeError(f"run {run.id} ended {report.state}: {report.summary}")
    rate = quantile(back, 0.5)
    name = "the same steps forward"
    return [Figure("undo of 500 changed steps", rate, "/s", {name: quantile(forward, 0.5)}, at_least(0.6, name))]


def scale(bench: Bench) -> list[Figure]:
    """Items of 100 ms each, by one and by four workers of one process."""
    site, items = bench.site, 40

    def rate(workers: int) -> float:
        site.stop()
        site.worker(f"control-{workers}", "-Q", "control", processes=1)
        for number in range(workers):
            site.worker(f"noop-{workers}-{number}", "-Q", "noop.undo,noop", processes=1)
        plan = Plan("waits")
        plan.step("wait", "noop.execute", sleep=0.1).foreach(list(range(items)))
        run = bench.client.start(plan)
        plans.ended([run])
        ends = [event.at for event in run.events() if event.name in {"item_started", "item_ended"}]
        return items / (max(ends) - min(ends)) * 1000

    try:
        alone, four = rate(1), rate(4)
    finally:
        site.fresh()
    peer = "1 worker of one process"
    return [
        Figure("items of 100 ms each, by 4 workers of one process each", four, "/s", {peer: alone}, at_least(3.5, peer))
    ]
