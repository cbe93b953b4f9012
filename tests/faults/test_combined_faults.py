"""Many concurrent runs under combined faults: each run ends, and no rule is broken."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import LongshoreError, Run
from tests.faults import rules
from tests.faults.conftest import Form
from tests.faults.fault_injector import FaultInjector, Messages
from tests.integration.processes import Installation
from tests.servers import RedisServer

pytestmark = pytest.mark.timeout(3600)

#: Seconds after which the test gives up, before the time for each run is added.
PATIENCE = 300.0


class Load:
    """Runs of the plan `twelve_steps`. A thread starts a new run for each run that ends."""

    def __init__(self, place: Installation, folder: Path, count: int, at_once: int) -> None:
        self.place, self.folder, self.count, self.at_once = place, folder, count, at_once
        folder.mkdir(exist_ok=True)
        self.client = place.client()
        self.runs: dict[str, bool] = {}
        self.open: dict[str, Run] = {}
        self.refused = 0
        self._thread = threading.Thread(target=self._start_runs, daemon=True)

    def begin(self) -> Load:
        self._thread.start()
        return self

    def _start_runs(self) -> None:
        while len(self.runs) < self.count:
            if len(self.open) >= self.at_once:
                time.sleep(0.02)
                continue
            number = len(self.runs)
            run_id, fails = f"run{number:03}", number % 3 == 2
            try:
                run = self.client.start(rules.twelve_steps(self.folder, fails=fails), run_id=run_id)
            except LongshoreError:
                self.refused += 1  # Redis was down; a start with the same id starts the same run
                time.sleep(0.1)
                continue
            self.open[run_id] = run
            self.runs[run_id] = fails

    def ended(self) -> bool:
        for run_id, run in list(self.open.items()):
            try:
                if run.report().ended:
                    del self.open[run_id]
            except LongshoreError:
                return False
        return len(self.runs) == self.count and not self.open

    def broken(self) -> list[str]:
        found = []
        for run_id, fails in self.runs.items():
            found += list(rules.broken(self.client.get(run_id).report(), self.folder, fails=fails))
        return found

    def states(self) -> dict[str, int]:
        counts = Counter(str(self.client.get(run_id).state()) for run_id in self.runs)
        return dict(sorted(counts.items()))


def until(load: Load) -> Callable[[], bool]:
    """A condition that holds when all runs have ended, or after the time limit."""
    end = time.monotonic() + PATIENCE + load.count * 2.0
    return lambda: load.ended() or time.monotonic() > end


def four_workers(place: Installation) -> None:
    start_workers(place, 4)


def start_workers(place: Installation, count: int) -> None:
    for number in range(count):
        place.worker(f"w{number}", "--concurrency", "2").start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()


def test_runs_survive_killed_workers_a_redis_restart_and_duplicated_messages(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """A worker is killed every two seconds, and every tenth message is doubled. Redis is restarted once."""
    # given four workers, and runs of which every third fails
    four_workers(place)
    injector = FaultInjector(place, form.seed, own_redis)
    load = Load(place, tmp_path / "effects", form.of(12, 300), 12).begin()
    restarted = False

    def fault() -> None:
        nonlocal restarted
        if not restarted and len(load.runs) > load.count // 2:
            restarted = True
            injector.restart_redis()
        injector.kill_worker()

    # when a worker is killed every two seconds, and every tenth message is duplicated
    with Messages(place, duplicate_every=10) as messages:
        injector.inject_until(2.0, fault, until(load))
        injector.continue_workers()

    # then
    broken = load.broken()
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures(
        "faults",
        dict(injector.injected) | {"messages doubled": messages.duplicated, "messages in all": messages.seen},
    )
    figures("broken rules", len(broken))
    assert broken == []


def test_runs_survive_all_faults_at_once(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """Every second, a worker is stopped or killed, or a pool process is killed. Messages are doubled and lost."""
    # given
    # On a slow machine, one compensation may lose its worker more often than the default allows.
    place.options["max_lost"] = "1000"
    four_workers(place)
    injector = FaultInjector(place, form.seed, own_redis)
    load = Load(place, tmp_path / "effects", form.of(8, 150), 8).begin()
    faults: list[Callable[[], None]] = [
        injector.kill_worker,
        injector.kill_pool_process,
        lambda: injector.stop_worker(3.0),
    ]

    def fault() -> None:
        injector.rng.choice(faults)()

    # when
    with Messages(place, duplicate_every=7, lose_every=11) as messages:
        injector.inject_until(1.0, fault, until(load))
        injector.continue_workers()

    # then
    broken = load.broken()
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures(
        "faults", dict(injector.injected) | {"messages doubled": messages.duplicated, "messages lost": messages.lost}
    )
    figures("broken rules", len(broken))
    assert broken == []


def test_rolling_restart_of_workers_under_load_repeats_no_step(
    place: Installation, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """The workers get SIGTERM and start again, one after the other."""
    # given the default lease, which does not expire on a busy machine
    place.options["lease"] = "15s"
    four_workers(place)
    load = Load(place, tmp_path / "effects", form.of(8, 100), 8).begin()

    # when the workers are restarted in turn
    restarts = 0
    end = until(load)
    while not end():
        worker = place.workers[restarts % len(place.workers)]
        process = worker._process
        assert process is not None
        process.terminate()
        process.wait(60.0)
        worker._process = None
        worker.start()
        restarts += 1

    # then only the expected runs failed, and no step was repeated
    reports = [load.client.get(run_id).report() for run_id in load.runs]
    repeated = [
        str(event)
        for run_id in load.runs
        for event in load.client.get(run_id).events()
        if event.name == "step_retrying" and event.step != "right"
    ]
    lost = [event for run_id in load.runs for event in load.client.get(run_id).events() if event.name == "lease_lost"]
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures("restarts of workers", restarts)
    figures("steps repeated", len(repeated))
    assert load.broken() == []
    assert (repeated, lost) == ([], [])
    assert all((report.state == "undone") == load.runs[report.run_id] for report in reports)
