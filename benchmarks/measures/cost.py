"""Commands, bytes and memory of Redis use per step."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.plans import execute, grid, sagas
from benchmarks.site import Reading, Site
from benchmarks.table import Figure, at_most


def footprint(bench: Bench) -> list[Figure]:
    """Per step: commands, including those of scripts, KiB that Redis receives, and KiB of memory."""
    site, client = bench.site, bench.client
    wide = _per_step(bench, site, 500, lambda: execute(client, grid(1, 500)))
    runs = _per_step(bench, site, 500, lambda: sagas(client, 100, 5))
    small = _per_step(bench, site, 200, lambda: execute(client, grid(5, 40)))
    large = _per_step(bench, site, 2000, lambda: execute(client, grid(40, 50)))
    celery = bench.celery
    bare = _per_step(bench, bench.celery_site, 500, lambda: celery.tasks(500))
    chains = _per_step(bench, bench.celery_site, 500, lambda: celery.chains(100, 5))
    canvas = _per_step(bench, bench.celery_site, 200, lambda: celery.canvas(5, 40))
    return [
        Figure(
            "Redis commands per step, 500 independent",
            wide[0], peers={"bare Celery tasks": bare[0]}, target=at_most(20),
        ),
        Figure(
            "Redis commands per step, 100 runs of 5",
            runs[0], peers={"bare Celery chains": chains[0]}, target=at_most(30),
        ),
        Figure("KiB sent to Redis per step, 5 × 40", small[1], "KiB", {"Celery canvas": canvas[1]}, at_most(4)),
        Figure("KiB sent to Redis per step, 40 × 50", large[1], "KiB", target=at_most(4)),
        Figure("KiB per step, 40 × 50 divided by 5 × 40", large[1] / small[1], target=at_most(1.1)),
        Figure("Redis memory per finished no-op step, 500 independent", wide[2], "KiB", target=at_most(2.5)),
        Figure("Redis memory per finished no-op step, 100 runs of 5", runs[2], "KiB"),
    ]  # fmt: skip


def _per_step(bench: Bench, site: Site, steps: int, work: Callable[[], object]) -> tuple[float, float, float]:
    """Medians per step of commands, received KiB and KiB of memory."""
    readings: list[tuple[Reading, Reading]] = []
    for _ in range(bench.rounds):
        before = site.read()
        work()
        readings.append((before, site.read()))
    return (
        statistics.median((after.commands - before.commands) / steps for before, after in readings),
        statistics.median((after.bytes_in - before.bytes_in) / 1024 / steps for before, after in readings),
        statistics.median((after.memory - before.memory) / 1024 / steps for before, after in readings),
    )
