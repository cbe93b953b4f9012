"""Plans of ten thousand steps."""

from __future__ import annotations

import time

from benchmarks import plans
from benchmarks.bench import Bench
from benchmarks.table import Figure, at_most
from longshore.orchestration import Plan


def large(bench: Bench) -> list[Figure]:
    """Rate, start of the first step, memory of the worker and longest script of each plan, measured once."""
    each = Plan("each")
    each.step("each", "noop.execute").foreach(list(range(10_000)))
    shapes = {
        "10,000 wide": plans.grid(1, 10_000),
        "1,000 levels × 10": plans.grid(1000, 10),
        "foreach of 10,000 items": each,
    }
    return [figure for name, plan in shapes.items() for figure in _measured(bench, name, plan)]


def _measured(bench: Bench, name: str, plan: Plan) -> list[Figure]:
    site, client = bench.site, bench.client
    site.fresh()
    plans.execute(client, plans.grid(2, 4))
    site.longest_script()
    at = client.store.now()
    began = time.perf_counter()
    run = client.start(plan)
    plans.ended([run])
    took = time.perf_counter() - began
    first = next(event.at for event in run.events() if event.name in {"step_started", "item_started"})
    longest, script = site.longest_script()
    return [
        Figure(f"{name}: steps", 10_000 / took, "/s"),
        Figure(f"{name}: the first step starts after", (first - at) / 1000, "s"),
        Figure(f"{name}: memory of the worker", site.resident(), "MiB"),
        Figure(f"{name}: longest script", longest, "ms", target=at_most(20), note=script),
    ]
