"""Random plans under all faults at once: faults of workers and messages, lost writes and clock jumps.

The tests compare each report with the log that the operations write outside of Redis.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import LongshoreError, Plan, Report, Run
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.states import STEP_FINAL, TERMINAL, RunState, UndoState
from tests import servers
from tests.conftest import get
from tests.faults.conftest import Form
from tests.faults.effects import effect_counts
from tests.faults.fault_injector import FaultInjector, Messages
from tests.integration.processes import Installation

pytestmark = pytest.mark.timeout(4 * 3600)

#: Seconds after which the test gives up, before the time for each run is added.
PATIENCE = 120.0
#: The most resumes of one run that is `suspended` or `undo_failed`.
RESUMED = 20


@pytest.fixture
def own_redis() -> Iterator[servers.RedisServer]:
    with get(lambda: servers.RedisServer("--appendfsync", "always", own_clock=True)) as server:
        yield server


def random_plan(rng: random.Random, folder: Path) -> Plan:
    """A plan of one to eight steps with random kinds, dependencies and error policies."""
    plan = Plan("chaos", on_failure=rng.choice(["undo", "undo", "undo", "keep"]))
    given, back = {"folder": str(folder), "seconds": rng.choice([0.0, 0.1, 0.6])}, {"folder": str(folder)}
    before: list[Any] = []
    for n in range(rng.randint(1, 8)):
        kind = rng.choice(["set", "set", "set", "flaky", "each", "act", "kept", "bare", "fails", "lights"])
        name, after = f"{kind}{n}", [step for step in before if rng.random() < 0.4]
        if kind == "set":
            step = plan.step(name, "effect.set", **given)
        elif kind == "flaky":
            step = plan.step(name, "effect.set", flaky=True, **given).retry(3, initial=0.1)
        elif kind == "each":
            step = plan.step(name, "effect.set", **given).foreach([1, 2, 3])
        elif kind == "fails":
            step = plan.step(name, "effect.fail", folder=str(folder), fails=rng.random() < 0.5).undo("none")
        elif kind == "lights":
            step = plan.step(name, "effect.always", folder=str(folder)).always()
        else:
            step = plan.step(name, "effect.act", **given)
            if kind == "act":
                step.undo("effect.unset", **back)
            elif kind == "kept":
                step.undo("none")
        if after:
            step.after(*after)
        if kind not in {"lights", "act"} and rng.random() < 0.2:
            step.continue_on_error()
        before.append(step)
    return plan


def broken(report: Report, folder: Path, *, resumed: bool) -> Iterator[str]:
    """A text for each rule that a run breaks. A resume without a check (`resumed`) may repeat steps."""
    run, done = report.run_id, effect_counts(folder, report.run_id)
    if report.state not in TERMINAL:
        yield f"{run}: the run has not ended: {report.state}"
        return
    if report.state is RunState.CANCELLED and +done:
        yield f"{run}: the run was cancelled before its start, and has the effects {+done}"
    doubted = bool(report.in_doubt)
    left = {name.partition("[")[0] for name in report.left_over}
    for step in report.steps:
        if step.status not in STEP_FINAL:
            yield f"{run}: step {step.name} has not ended: {step.status}"
        parts = [f"{step.name}@{n}" for n in range(len(step.items))] or [step.name]
        remaining = sum(done["did", part] - done["undid", part] for part in parts)
        kind = step.name.rstrip("0123456789")
        if kind == "lights" and report.state is not RunState.CANCELLED and not done["always", step.name]:
            yield f"{run}: the always step {step.name} did not run: {step.status}"
        if kind in {"act", "kept", "bare"} and done["did", step.name] > 1 and not (resumed or doubted):
            yield f"{run}: {step.name} was executed {done['did', step.name]} times"
        if remaining < 0:
            yield f"{run}: {step.name} was undone more often than executed"
        acts = kind not in {"lights", "fails"}
        done_once = remaining == len(parts)
        if report.state is RunState.SUCCEEDED and acts and step.status == "changed" and not (done_once or resumed):
            yield f"{run}: the run succeeded, and {step.name} has {remaining} effects"
        must_be_undone = report.state is RunState.UNDONE and kind != "kept" and step.name not in left and not doubted
        if remaining > 0 and must_be_undone:
            yield f"{run}: effects of {step.name} remain ({step.status}, {step.undo and step.undo.status})"
        if remaining > 0 and not step.attempts and not any(item.attempts for item in step.items) and not doubted:
            yield f"{run}: {step.name} has an effect, and its record has no attempt"
        if step.undo is not None and step.undo.status is UndoState.UNDO_FAILED:
            yield f"{run}: the undo of {step.name} failed: {step.undo.error}"


class Chaos:
    """Runs of random plans. Some runs are cancelled, and runs that are suspended or `undo_failed` are resumed."""

    def __init__(self, place: Installation, folder: Path, seed: int, count: int, at_once: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.count, self.at_once = folder, count, at_once
        self.rng = random.Random(seed)
        self.client = place.client()
        self.open: dict[str, Run] = {}
        self.begun = 0
        self.resumed: Counter[str] = Counter()
        #: The effects of each ended run at its end.
        self.ended: dict[str, Counter[tuple[str, str]]] = {}
        #: The number of requests that Redis has acknowledged and lost.
        self.lost = 0
        self.end = time.monotonic() + PATIENCE + 20.0 * count

    def advance(self) -> bool:
        """Check the open runs, and start new ones. Returns whether all runs have ended."""
        for run_id, run in list(self.open.items()):
            try:
                self._check(run_id, run)
            except UnknownName:
                self.lost += 1
                del self.open[run_id]
            except LongshoreError:
                return False  # Redis is down
        while self.begun < self.count and len(self.open) < self.at_once:
            try:
                run = self.client.start(random_plan(self.rng, self.folder), run_id=f"run{self.begun:04}")
            except LongshoreError:
                return False
            self.begun += 1
            self.open[run.id] = run
        return self.begun == self.count and not self.open and not self._rolled_back()

    def _rolled_back(self) -> bool:
        """Whether an ended run continues, because Redis has lost its end."""
        for run_id in self.ended:
            run = self.client.get(run_id)
            try:
                if run.state() not in {*TERMINAL, None}:
                    self.open[run_id] = run
            except LongshoreError:
                return True
        return bool(self.open)

    def _check(self, run_id: str, run: Run) -> None:
        state = run.state()
        if state is None:
            raise UnknownName(run_id)
        if state in {RunState.SUSPENDED, RunState.UNDO_FAILED} and self.resumed[run_id] < RESUMED:
            self.resumed[run_id] += 1
            run.resume()
        elif state in TERMINAL:
            self.ended[run_id] = effect_counts(self.folder, run_id)
            del self.open[run_id]
        elif self.rng.random() < 0.003:
            run.cancel()

    def over(self) -> bool:
        return self.advance() or time.monotonic() > self.end

    def broken(self) -> list[str]:
        found: list[str] = []
        for run_id in [*self.ended, *self.open]:
            try:
                report = self.client.get(run_id).report()
            except UnknownName:
                self.lost += 1
                continue
            resumed = bool(self.resumed[run_id])
            found += broken(report, self.folder, resumed=resumed)
            if run_id in self.ended and not report.in_doubt:
                later = effect_counts(self.folder, run_id) - self.ended[run_id]
                found += [f"{run_id}: {what} after the end of the run" for what in later if what[0] == "did"]
        return found

    def states(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for run_id in self.ended:
            try:
                found[str(self.client.get(run_id).state())] += 1
            except UnknownName:
                continue
        return dict(sorted(found.items()))


def test_random_plans_survive_lost_writes_stopped_workers_and_clock_jumps(
    place: Installation, own_redis: servers.RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """Every two seconds, the test kills or stops a worker or one of its processes, kills Redis, or sets Redis's clock.
    Messages are doubled, lost and reordered all the time. The test resumes `suspended` and `undo_failed` runs. A killed
    Redis loses its latest acknowledged writes, and with them some runs. These runs no longer exist, and break no rule.
    """
    # given
    place.options["lease"] = "2s"
    for number in range(form.of(2, 4)):
        place.worker(f"w{number}", "--concurrency", "2").start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()
    injector = FaultInjector(place, form.seed, own_redis)
    chaos = Chaos(place, tmp_path / "effects", form.seed, form.of(5, 1000), form.of(5, 12))
    often = [
        injector.kill_worker, injector.kill_pool_process,
        lambda: injector.stop_worker(6.0), lambda: injector.stop_one_process(6.0),
    ]  # fmt: skip
    faults: list[Callable[[], None]] = [*often, *often, injector.lose_writes, injector.set_clock]
    # The short form begins with these two faults.
    first = [injector.set_clock, injector.lose_writes]

    def fault() -> None:
        (first.pop() if first else injector.rng.choice(faults))()

    # when
    with Messages(place, duplicate_every=7, lose_every=11, shuffle_every=5) as messages:
        injector.inject_until(form.of(4.0, 2.0), fault, chaos.over)
        injector.continue_workers()
    time.sleep(3.0)  # time for the workers that continued last

    # then
    found = chaos.broken()
    figures("runs", chaos.begun)
    figures("final states", chaos.states())
    figures("runs that Redis lost", chaos.lost)
    figures("runs resumed by the test", len(+chaos.resumed))
    moved = {"messages doubled": messages.duplicated, "messages lost": messages.lost}
    moved["messages reordered"] = messages.shuffled
    figures("faults", dict(injector.injected) | moved)
    figures("broken rules", len(found))
    assert found == []
