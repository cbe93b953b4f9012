"""Schedules of plans with real beats: one run for each planned time, and missed times."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Client
from longshore.orchestration.language.schedule import Scheduled
from longshore.orchestration.schedules import declarations
from longshore.orchestration.schedules.celery_beat import beat_schedule
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.store import audit
from tests.fork_server import Process
from tests.integration.conftest import QUICK
from tests.integration.processes import PATIENCE, Installation, lines, wait_for
from tests.servers import RedisServer

pytestmark = pytest.mark.maintenance

#: Seconds between planned times: short, but enough for a busy machine to execute the ticks of two beats.
EVERY = 2
PLAN = """
name: {name}
steps:
  a: {{op: command.shell.execute, with: {{command: "echo {{{{ run.id }}}} >> {log}"}}}}
"""


class Configured(Installation):
    """An installation whose processes read a settings file."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"LONGSHORE_CONFIG": str(self.folder / "longshore.yaml")}


class Clockwork:
    """An installation with a worker and plans in a folder, whose beats a test starts."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.folder, self.plans, self.config = folder, folder / "plans", folder / "longshore.yaml"
        self.plans.mkdir()
        options = QUICK | {"tick": "1s", "plans": str(self.plans)}
        self.place = Configured(server.url, folder, options=options)
        self.config.write_text("{}")
        self.beats: list[Process] = []

    @property
    def client(self) -> Client:
        return self._client

    def begin(self, config: dict[str, Any]) -> None:
        """Write the settings file, then start the worker."""
        self.config.write_text(json.dumps(config))
        self._client = self.place.client()
        self.place.worker("one", "-c", "3").start()

    def plan(self, name: str, more: str = "") -> Path:
        log = self.folder / f"{name}.log"
        (self.plans / f"{name}.yaml").write_text(PLAN.format(name=name, log=log) + more)
        return log

    def beat(self, **environment: str) -> Process:
        self.beats.append(self.place.beat(**environment))
        return self.beats[-1]

    def end(self, beat: Process) -> None:
        beat.kill()
        beat.communicate()
        self.beats.remove(beat)

    def close(self) -> None:
        for beat in list(self.beats):
            self.end(beat)
        self.place.close()


def times_of(log: Path) -> list[str]:
    return [line.rpartition(".")[2] for line in lines(log)]


@pytest.fixture(scope="module")
def clock(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clockwork]:
    made = Clockwork(redis_server, tmp_path_factory.mktemp("beats"))
    often = {"every": f"{EVERY}s"}
    for name in ("often", "late", "lost", "every-one", "held", "slow", "dynamic"):
        made.plan(name)
    made.plan("own", f"schedules:\n  mine: {{every: {EVERY}s, missed: skip}}\n")
    (made.plans / "slow.yaml").write_text("name: slow\nsteps:\n  a: {op: noop.execute, with: {sleep: 3}}\n")
    made.begin({
        "schedules": {
            # On a busy machine, two planned times may pass between two ticks.
            "often": {"plan": "often", "missed": "all"} | often,
            "late": {"plan": "late", "missed": "once", "cron": "0 0 1 1 *"},
            "every-one": {"plan": "every-one", "missed": "all", "every": "1h"},
            "lost": {"plan": "lost", "missed": "skip", "every": "1h"},
            "held": {"plan": "held"} | often,
            "skips": {"plan": "slow", "overlap": "skip", "every": "1s"},
        }
    })  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def test_two_beats_start_one_run_for_each_planned_time(clock: Clockwork) -> None:
    log, own = clock.folder / "often.log", clock.folder / "own.log"
    clock.beats.append(clock.place.popen("beat", "--loglevel", "INFO"))
    clock.beat()
    wait_for("six runs", lambda: len(lines(log)) >= 6)
    found, mine = times_of(log), times_of(own)
    assert len(set(found)) == len(found)
    assert len(set(mine)) == len(mine) >= 3  # the schedule in the plan
    seconds = [time.mktime(time.strptime(at, "%Y%m%dT%H%M%SZ")) for at in found]
    gaps = {round(later - sooner) for sooner, later in zip(sorted(seconds), sorted(seconds)[1:], strict=False)}
    assert gaps == {EVERY}
    run = clock.client.get(f"often.{found[0]}")
    assert run.report().actor == "schedule"
    assert any(line.what == "start" and line.run == run.id for line in audit.lines(clock.client.store, limit=1000))


def test_overlap_skip_starts_no_second_run(clock: Clockwork) -> None:
    def skipped() -> list[str]:
        return [run.id for run in clock.client.runs(500) if run.id.startswith("skips.")]

    wait_for("two runs of the schedule", lambda: len(skipped()) >= 2)
    reports = [clock.client.get(name).wait(timeout=PATIENCE) for name in skipped()[-2:]]
    # A run that was sent before the admission of the previous one ends as not run.
    ends = {"succeeded" if report.error is None else report.error.message for report in reports}
    assert "succeeded" in ends
    assert all(end == "succeeded" or "not run: " in end for end in ends), ends


def is_at_rest(clock: Clockwork) -> bool:
    """Report whether the queue is empty and no run is live."""
    store = clock.client.store
    return not clock.place.queue("control") and not store.client.zcard(store.keys.live)


def have_ended(clock: Clockwork, prefix: str) -> bool:
    """Report whether every run of a schedule has ended."""
    return all(run.report().ended for run in clock.client.runs(500) if run.id.startswith(prefix))


def test_missed_times_are_caught_up_as_each_schedule_sets(clock: Clockwork) -> None:
    marks = ScheduleMarks(clock.client.store)
    wait_for("the marks of the schedules", lambda: {"late", "lost", "every-one"} <= marks.marks().keys())
    for beat in list(clock.beats):
        clock.end(beat)
    wait_for("the execution of all ticks", lambda: is_at_rest(clock))
    before = len(lines(clock.folder / "often.log"))
    now = clock.client.store.now()
    # Backdate the marks by three and a half hours, and by more than a year.
    for name, hours in (("lost", 3.5), ("every-one", 3.5), ("late", 24 * 400)):
        mark = marks.marks()[name]
        marks.put(name, Mark(now - round(hours * 3_600_000), mark.schedule))
    time.sleep(3 * EVERY)
    assert len(lines(clock.folder / "often.log")) == before  # without a beat, no run starts

    clock.beat()
    wait_for("the missed runs of every-one", lambda: len(lines(clock.folder / "every-one.log")) >= 3)
    wait_for("the missed run of late", lambda: len(lines(clock.folder / "late.log")) == 1)
    assert len(times_of(clock.folder / "every-one.log")) in {3, 4}  # one run for each missed time
    assert lines(clock.folder / "lost.log") == [] or clock.client.store.now() % 3_600_000 < 70_000
    wait_for("another run of often", lambda: len(lines(clock.folder / "often.log")) > before)
    found = times_of(clock.folder / "often.log")
    assert len(set(found)) == len(found)


def test_schedule_commands_list_trigger_pause_and_resume(clock: Clockwork) -> None:
    if not clock.beats:
        clock.beat()
    place = clock.place
    rows = {row["name"]: row for row in place.longshore("schedules", "ls", "-o", "json").json}
    assert rows["often"]["when"] == f"every {EVERY}s"
    assert rows["own.mine"]["plan"] == "own"
    assert rows["late"]["next"].endswith("-01-01T00:00:00+00:00")

    dry_run = place.longshore("schedules", "trigger", "late", "--dry-run")
    assert (dry_run.code, dry_run.out) == (0, "would start plan late\n")
    before = len(lines(clock.folder / "late.log"))
    assert place.longshore("schedules", "trigger", "late").code == 0
    assert len(lines(clock.folder / "late.log")) == before + 1

    assert place.longshore("schedules", "pause", "nosuch").code == 2
    assert "would be paused" in place.longshore("schedules", "pause", "held", "--dry-run").out
    assert place.longshore("schedules", "pause", "held", "-o", "json").json == {
        "schedule": "held", "changed": True, "dry_run": False, "message": "schedule held is paused",
    }  # fmt: skip
    assert place.longshore("schedules", "pause", "held").out == "schedule held was paused already\n"
    wait_for("the end of all runs of the schedule", lambda: have_ended(clock, "held."))
    still = len(lines(clock.folder / "held.log"))
    time.sleep(2.5 * EVERY)
    assert len(lines(clock.folder / "held.log")) == still
    row = next(row for row in place.longshore("schedules", "ls", "-o", "json").json if row["name"] == "held")
    assert row["paused_by"] == "tester"
    assert place.longshore("schedules", "resume", "held").code == 0
    wait_for("another run of held", lambda: len(lines(clock.folder / "held.log")) > still)
    # times during the pause are not caught up
    assert len(lines(clock.folder / "held.log")) <= still + 2
    recorded = [(line.what, line.step, line.actor) for line in audit.lines(clock.client.store, limit=1000)]
    assert ("pause schedule", "held", "tester") in recorded


def test_redbeat_entries_can_be_added_and_removed_while_beat_runs(clock: Clockwork) -> None:
    pytest.importorskip("redbeat")
    from longshore.orchestration.schedules.celery_beat import redbeat_entry

    for beat in list(clock.beats):
        clock.end(beat)
    log = clock.folder / "dynamic.log"
    clock.beat(LONGSHORE_BEAT="redbeat")
    clock.beat(LONGSHORE_BEAT="redbeat")  # the second beat waits for the end of the first
    often = len(lines(clock.folder / "often.log"))
    wait_for("a run of the declared schedule", lambda: len(lines(clock.folder / "often.log")) > often)
    one = declarations.Schedule("nightly", "dynamic", Scheduled(every=1.0))
    entry = redbeat_entry(one, clock.client.settings)
    entry.save()
    wait_for("three runs", lambda: len(lines(log)) >= 3)
    found = times_of(log)
    assert len(set(found)) == len(found)
    assert "nightly" in clock.place.longshore("schedules", "ls").out
    entry.delete()
    time.sleep(EVERY)  # wait until each sent start is a run
    wait_for("the end of all runs of the schedule", lambda: have_ended(clock, "nightly."))
    still = len(lines(log))
    time.sleep(2.0)
    assert len(lines(log)) == still
    for name in ("often", "own.mine"):
        assert f"longshore.schedule.{name}" in beat_schedule(_settings(clock))
    with contextlib.suppress(IndexError):
        clock.end(clock.beats[0])
    often = len(lines(clock.folder / "often.log"))
    wait_for("a run by the other beat", lambda: len(lines(clock.folder / "often.log")) > often)


def _settings(clock: Clockwork) -> Any:
    given = {"often": Scheduled(plan="often", every=EVERY), "own.mine": Scheduled(plan="own", every=EVERY)}
    return clock.client.settings.model_copy(update={"schedules": given})
