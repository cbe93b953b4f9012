"""The time from `kill -9` in the middle of a step to the end of the run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from uuid import uuid4

from benchmarks import plans
from benchmarks.bench import Bench, quantile
from benchmarks.table import Figure
from longshore.orchestration import Plan
from longshore.orchestration.client.run import Run

#: The most rounds. Each round takes as long as a lease.
_ROUNDS = 3


def recovery(bench: Bench) -> list[Figure]:
    """A run with one step. The first attempt is killed, and the second succeeds on another process or worker."""
    site = bench.site
    lease = bench.client.settings.lease
    workers: list[float] = []
    processes: list[float] = []
    for number in range(min(bench.rounds, _ROUNDS)):
        site.worker(f"second-{number}")
        run, _, worker = _interrupted(bench)
        site.kill(worker)
        workers.append(_until_ended(run))
        site.fresh()
        run, process, _ = _interrupted(bench)
        os.kill(process, signal.SIGKILL)
        processes.append(_until_ended(run))
    note = f"lease {lease:g} s"
    return [
        Figure("kill -9 of a worker in a step, to the end of the run", quantile(workers, 0.5), "s", note=note),
        Figure("kill -9 of the process of a step, to the end of the run", quantile(processes, 0.5), "s", note=note),
    ]


def _interrupted(bench: Bench) -> tuple[Run, int, int]:
    """A run during its step, with the ids of the step's process and of the main process of its worker."""
    folder = bench.folder / f"interrupted-{uuid4().hex[:8]}"
    folder.mkdir()
    plan = Plan("interrupted")
    plan.step("step", "bench.interrupted", folder=str(folder))
    run = bench.client.start(plan)
    until = time.monotonic() + plans.PATIENCE
    while (marker := _first(folder)) is None:
        if time.monotonic() > until:
            raise RuntimeError("the step has not begun")
        time.sleep(0.02)
    process, worker = map(int, marker.read_text().split())
    return run, process, worker


def _first(folder: Path) -> Path | None:
    return next((path for path in folder.iterdir() if path.suffix != ".new"), None)


def _until_ended(run: Run) -> float:
    began = time.perf_counter()
    plans.ended([run])
    return time.perf_counter() - began
