"""Random plans under every fault at once: killed, stopped, doubled, dropped, shuffled, lost, and a clock that jumps.

What holds is judged by the log that the operations write, outside of Redis, against what each report says.
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
from tests.faults.effects import deeds
from tests.faults.storm import Messages, Storm
from tests.integration.processes import Installation

pytestmark = pytest.mark.timeout(4 * 3600)

#: Seconds in which each run of the form ends, on the average; then the test gives up.
PATIENCE = 120.0
#: Times that a person lets a run go on that was held, or whose undo failed.
RESUMED = 20


@pytest.fixture
def own_redis() -> Iterator[servers.RedisServer]:
    with get(lambda: servers.RedisServer("--appendfsync", "always", own_clock=True)) as server:
        yield server


def random_plan(chance: random.Random, folder: Path) -> Plan:
    """One to eight steps in any order of dependence, with all the ways in which one may end."""
    plan = Plan("chaos", on_failure=chance.choice(["undo", "undo", "undo", "keep"]))
    given, back = {"folder": str(folder), "seconds": chance.choice([0.0, 0.1, 0.6])}, {"folder": str(folder)}
    before: list[Any] = []
    for n in range(chance.randint(1, 8)):
        kind = chance.choice(["set", "set", "set", "flaky", "each", "act", "kept", "bare", "fails", "lights"])
        name, after = f"{kind}{n}", [step for step in before if chance.random() < 0.4]
        if kind == "set":
            step = plan.step(name, "deed.set", **given)
        elif kind == "flaky":
            step = plan.step(name, "deed.set", flaky=True, **given).retry(3, initial=0.1)
        elif kind == "each":
            step = plan.step(name, "deed.set", **given).foreach([1, 2, 3])
        elif kind == "fails":
            step = plan.step(name, "deed.fail", folder=str(folder), fails=chance.random() < 0.5).undo("none")
        elif kind == "lights":
            step = plan.step(name, "deed.always", folder=str(folder)).always()
        else:
            step = plan.step(name, "deed.act", **given)
            if kind == "act":
                step.undo("deed.unset", **back)
            elif kind == "kept":
                step.undo("none")
        if after:
            step.after(*after)
        if kind not in {"lights", "act"} and chance.random() < 0.2:
            step.continue_on_error()
        before.append(step)
    return plan


def broken(report: Report, folder: Path, *, resumed: bool) -> Iterator[str]:
    """What a run breaks; `resumed`: a person has let it go on without looking."""
    told, done = report.run_id, deeds(folder, report.run_id)
    if report.state not in TERMINAL:
        yield f"{told}: it is {report.state}"
        return
    if report.state is RunState.CANCELLED and +done:
        yield f"{told}: it was cancelled before it began, and did {+done}"
    doubted = bool(report.in_doubt)
    left = {name.partition("[")[0] for name in report.left_over}
    for step in report.steps:
        if step.status not in STEP_FINAL:
            yield f"{told}: step {step.name} is {step.status}"
        parts = [f"{step.name}@{n}" for n in range(len(step.items))] or [step.name]
        stands = sum(done["did", part] - done["undid", part] for part in parts)
        kind = step.name.rstrip("0123456789")
        if kind == "lights" and report.state is not RunState.CANCELLED and not done["always", step.name]:
            yield f"{told}: the always step {step.name} did not run: {step.status}"
        if kind in {"act", "kept", "bare"} and done["did", step.name] > 1 and not (resumed or doubted):
            yield f"{told}: {step.name} was done {done['did', step.name]} times"
        if stands < 0:
            yield f"{told}: {step.name} was taken back more often than it was done"
        acts = kind not in {"lights", "fails"}
        done_once = stands == len(parts)
        if report.state is RunState.SUCCEEDED and acts and step.status == "changed" and not (done_once or resumed):
            yield f"{told}: it succeeded, and {step.name} stands {stands} times"
        if stands > 0 and report.state is RunState.UNDONE and kind != "kept" and step.name not in left and not doubted:
            yield f"{told}: it was undone, and {step.name} stands ({step.status}, {step.undo and step.undo.status})"
        if stands > 0 and not step.attempts and not any(item.attempts for item in step.items) and not doubted:
            yield f"{told}: {step.name} stands, and its record knows of no attempt"
        if step.undo is not None and step.undo.status is UndoState.UNDO_FAILED:
            yield f"{told}: the undo of {step.name} failed: {step.undo.error}"


class Chaos:
    """Runs of random plans, some of which are cancelled; a person lets those go on that are held."""

    def __init__(self, place: Installation, folder: Path, seed: int, count: int, at_once: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.count, self.at_once = folder, count, at_once
        self.chance = random.Random(seed)
        self.client = place.client()
        self.open: dict[str, Run] = {}
        self.begun = 0
        self.resumed: Counter[str] = Counter()
        #: Of each that has ended, what it had done by then.
        self.ended: dict[str, Counter[tuple[str, str]]] = {}
        #: Requests that Redis has acknowledged and lost.
        self.lost = 0
        self.end = time.monotonic() + PATIENCE + 20.0 * count

    def go_on(self) -> bool:
        """Look after all of them; whether that is all."""
        for run_id, run in list(self.open.items()):
            try:
                self._look(run_id, run)
            except UnknownName:
                self.lost += 1
                del self.open[run_id]
            except LongshoreError:
                return False  # Redis is away
        while self.begun < self.count and len(self.open) < self.at_once:
            try:
                run = self.client.start(random_plan(self.chance, self.folder), run_id=f"run{self.begun:04}")
            except LongshoreError:
                return False
            self.begun += 1
            self.open[run.id] = run
        return self.begun == self.count and not self.open and not self._rolled_back()

    def _rolled_back(self) -> bool:
        """Whether Redis has lost the end of a run that had ended: it goes on."""
        for run_id in self.ended:
            run = self.client.get(run_id)
            try:
                if run.state() not in {*TERMINAL, None}:
                    self.open[run_id] = run
            except LongshoreError:
                return True
        return bool(self.open)

    def _look(self, run_id: str, run: Run) -> None:
        state = run.state()
        if state is None:
            raise UnknownName(run_id)
        if state in {RunState.SUSPENDED, RunState.UNDO_FAILED} and self.resumed[run_id] < RESUMED:
            self.resumed[run_id] += 1
            run.resume()
        elif state in TERMINAL:
            self.ended[run_id] = deeds(self.folder, run_id)
            del self.open[run_id]
        elif self.chance.random() < 0.003:
            run.cancel()

    def over(self) -> bool:
        return self.go_on() or time.monotonic() > self.end

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
                later = deeds(self.folder, run_id) - self.ended[run_id]
                found += [f"{run_id}: {what} after its end" for what in later if what[0] == "did"]
        return found

    def states(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for run_id in self.ended:
            try:
                found[str(self.client.get(run_id).state())] += 1
            except UnknownName:
                continue
        return dict(sorted(found.items()))


def test_random_plans_outlive_lost_writes_sleeping_workers_and_clock_jumps(
    place: Installation, own_redis: servers.RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """A fault happens every two seconds. The test resumes `suspended` and `undo_failed` runs."""
    # given
    place.options["lease"] = "2s"
    for number in range(form.of(2, 4)):
        place.worker(f"w{number}", "--concurrency", "2").start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()
    storm = Storm(place, form.seed, own_redis)
    chaos = Chaos(place, tmp_path / "deeds", form.seed, form.of(5, 1000), form.of(5, 12))
    often = [
        storm.kill_a_worker, storm.kill_a_child, lambda: storm.stop_a_worker(6.0), lambda: storm.stop_a_part(6.0),
    ]  # fmt: skip
    faults: list[Callable[[], None]] = [*often, *often, storm.lose_writes, storm.set_clock]
    # The short form has each of the last two once.
    first = [storm.set_clock, storm.lose_writes]

    def fault() -> None:
        (first.pop() if first else storm.chance.choice(faults))()

    # when
    with Messages(place, double_every=7, lose_every=11, shuffle_every=5) as messages:
        storm.rage(form.of(4.0, 2.0), fault, chaos.over)
        storm.calm()
    time.sleep(3.0)  # what woke up last acts now, or never

    # then
    found = chaos.broken()
    figures("runs", chaos.begun)
    figures("final states", chaos.states())
    figures("runs that Redis lost", chaos.lost)
    figures("runs resumed by the test", len(+chaos.resumed))
    moved = {"messages doubled": messages.doubled, "messages lost": messages.lost}
    moved["messages reordered"] = messages.shuffled
    figures("faults", dict(storm.happened) | moved)
    figures("broken rules", len(found))
    assert found == []
