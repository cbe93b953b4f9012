"""Many runs at once while everything goes wrong: each ends, and no rule is broken."""

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
from tests.faults.storm import Messages, Storm
from tests.integration.processes import Installation
from tests.servers import RedisServer

pytestmark = pytest.mark.timeout(3600)

#: Seconds after which a run that has not ended never will.
PATIENCE = 300.0


class Load:
    """Runs of the twelve steps, started by a thread at the pace at which they end."""

    def __init__(self, place: Installation, folder: Path, count: int, at_once: int) -> None:
        self.place, self.folder, self.count, self.at_once = place, folder, count, at_once
        folder.mkdir(exist_ok=True)
        self.client = place.client()
        self.runs: dict[str, bool] = {}
        self.open: dict[str, Run] = {}
        self.refused = 0
        self._thread = threading.Thread(target=self._start_them, daemon=True)

    def begin(self) -> Load:
        self._thread.start()
        return self

    def _start_them(self) -> None:
        while len(self.runs) < self.count:
            if len(self.open) >= self.at_once:
                time.sleep(0.02)
                continue
            number = len(self.runs)
            run_id, fails = f"run{number:03}", number % 3 == 2
            try:
                run = self.client.start(rules.twelve(self.folder, fails=fails), run_id=run_id)
            except LongshoreError:
                self.refused += 1  # Redis was away; the same id again is the same run
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
    """Whether all have ended, or it took too long; the rules tell which."""
    end = time.monotonic() + PATIENCE + load.count * 2.0
    return lambda: load.ended() or time.monotonic() > end


def four_workers(place: Installation) -> None:
    for number in range(4):
        place.worker(f"w{number}", "--concurrency", "2").start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()


def test_runs_outlive_killed_workers_a_redis_restart_and_doubled_messages(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """A worker is killed every two seconds, and every tenth message is doubled. Redis is restarted once."""
    # given four workers, and a plan of twelve steps of which every third run fails
    four_workers(place)
    storm = Storm(place, form.seed, own_redis)
    load = Load(place, tmp_path / "deeds", form.of(12, 300), 12).begin()
    restarted = False

    def fault() -> None:
        nonlocal restarted
        if not restarted and len(load.runs) > load.count // 2:
            restarted = True
            storm.restart_redis()
        storm.kill_a_worker()

    # when one of them is killed every two seconds, and every tenth message is there twice
    with Messages(place, double_every=10) as messages:
        storm.rage(2.0, fault, until(load))
        storm.calm()

    # then
    broken = load.broken()
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures("faults", dict(storm.happened) | {"messages doubled": messages.doubled, "messages in all": messages.seen})
    figures("broken rules", len(broken))
    assert broken == []


def test_runs_outlive_everything_at_once(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """A worker or process is stopped or killed every second. Messages are doubled and lost."""
    # given
    four_workers(place)
    storm = Storm(place, form.seed, own_redis)
    load = Load(place, tmp_path / "deeds", form.of(8, 150), 8).begin()
    faults: list[Callable[[], None]] = [storm.kill_a_worker, storm.kill_a_child, lambda: storm.stop_a_worker(3.0)]

    def fault() -> None:
        storm.chance.choice(faults)()

    # when
    with Messages(place, double_every=7, lose_every=11) as messages:
        storm.rage(1.0, fault, until(load))
        storm.calm()

    # then
    broken = load.broken()
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures("faults", dict(storm.happened) | {"messages doubled": messages.doubled, "messages lost": messages.lost})
    figures("broken rules", len(broken))
    assert broken == []


def test_a_rolling_restart_of_all_workers_under_load_costs_nothing(
    place: Installation, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """The workers get SIGTERM and start again, one after the other."""
    # given the default lease, which a busy machine keeps, since no worker is killed
    place.options["lease"] = "15s"
    four_workers(place)
    load = Load(place, tmp_path / "deeds", form.of(8, 100), 8).begin()

    # when each is asked to end, waited for and started again, over and over
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

    # then no run failed that was not to, and no step was repeated
    reports = [load.client.get(run_id).report() for run_id in load.runs]
    again = [
        str(event)
        for run_id in load.runs
        for event in load.client.get(run_id).events()
        if event.name == "step_retrying" and event.step != "right"
    ]
    lost = [event for run_id in load.runs for event in load.client.get(run_id).events() if event.name == "lease_lost"]
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures("restarts of workers", restarts)
    figures("steps repeated", len(again))
    assert load.broken() == []
    assert (again, lost) == ([], [])
    assert all((report.state == "undone") == load.runs[report.run_id] for report in reports)
