"""Scheduled jobs with two beats, a worker and a real stack.

To make due times, the tests move the schedule mark back, so that no test waits for the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from longshore.orchestration import Run
from longshore.orchestration.jobs.jobs import Jobs
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.store.breakers import Breakers
from tests.docker.job_stack import JobStack, module_shop, shop
from tests.fork_server import Process
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.processes import PATIENCE, Installation, wait_for
from tests.servers import engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.jobs]
assert shop
assert module_shop
assert module_installation

HOST = "web1"
DAY = 24 * 3600 * 1000
#: A schedule without a planned time during the test.
IN_TWELVE_HOURS = f"0 {(time.gmtime().tm_hour + 12) % 24} * * *"


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Iterator[Installation]:
    """A worker, and two beats."""
    made = module_installation(docker_host=engine_url(), options={"host": HOST, "tick": "500ms"})
    made.worker("one", "-c", "3").start()
    beats: list[Process] = [made.popen("beat", "--loglevel", "WARNING") for _ in range(2)]
    yield made
    for beat in beats:
        beat.kill()
        beat.communicate()


class JobSchedule:
    """The schedule of one job."""

    def __init__(self, place: Installation, shop: JobStack) -> None:
        self.client = place.client()
        self.key = f"{shop.job}@{HOST}"
        self.schedules = ScheduleMarks(self.client.store)

    def mark(self) -> Mark | None:
        return self.schedules.marks().get(self.key)

    def until_known(self, schedule: str) -> Mark:
        """Wait until the schedule has a mark. Job discovery runs at once, instead of twice a minute."""
        until = time.monotonic() + PATIENCE
        while True:
            Jobs(self.client).list()
            time.sleep(0.5)  # a tick of beat
            found = self.mark()
            if found and found.schedule == schedule:
                return found
            assert time.monotonic() < until, "no mark of the schedule"

    def runs(self) -> list[Run]:
        return [run for run in self.client.runs(200) if run.id.startswith(f"{self.key}.")]

    def started(self, number: int, settle: float = 0.0) -> list[Run]:
        """Wait for a number of runs, then `settle` seconds for further runs, and for the end of all runs."""
        wait_for(f"{number} runs", lambda: len(self.runs()) >= number)
        time.sleep(settle)
        found = self.runs()
        for run in found:
            run.wait(60)
        return found


def test_two_beats_start_one_run_per_due_time_with_the_current_labels(place: Installation, shop: JobStack) -> None:
    labels = {"schedule": IN_TWELVE_HOURS, "missed": "all"}
    shop.up(labels=labels)
    clock = JobSchedule(place, shop)
    mark = clock.until_known(f"{IN_TWELVE_HOURS} UTC")

    clock.schedules.put(clock.key, Mark(mark.until - DAY, mark.schedule))
    (run,) = clock.started(1, settle=2.0)
    assert run.report().exit_code == 0

    shop.describe(more="echo changed; echo run >>/mnt/data/runs", labels=labels)
    clock.schedules.put(clock.key, Mark(mark.until - 2 * DAY, mark.schedule))
    runs = clock.started(2, settle=2.0)
    assert len(runs) == 2, "one run for each due time"
    (later,) = [other for other in runs if other.id != run.id]
    assert "changed" in later.report().step("work").data["stdout"]


def test_three_missed_due_times_start_one_run(place: Installation, shop: JobStack) -> None:
    shop.up(labels={"schedule": IN_TWELVE_HOURS, "missed": "once"})
    clock = JobSchedule(place, shop)
    mark = clock.until_known(f"{IN_TWELVE_HOURS} UTC")

    clock.schedules.put(clock.key, Mark(mark.until - 3 * DAY, mark.schedule))

    wait_for("a new mark", lambda: (found := clock.mark()) and found.until > mark.until - DAY)
    assert len(clock.started(1, settle=1.0)) == 1


def test_breaker_of_a_job_opens_after_three_failures(place: Installation, shop: JobStack) -> None:
    shop.up(more="exit 4", labels={"schedule": IN_TWELVE_HOURS, "missed": "all"})
    clock = JobSchedule(place, shop)
    mark = clock.until_known(f"{IN_TWELVE_HOURS} UTC")
    clock.schedules.put(clock.key, Mark(mark.until - 3 * DAY, mark.schedule))
    runs = clock.started(3)

    service = f"job {clock.key}"
    wait_for("the breaker to open", lambda: Breakers(clock.client.store).is_open(service))
    assert service in place.longshore("breaker", "ls").out
    assert "breaker_opened" in [event.name for run in runs for event in run.events()]
    clock.schedules.put(clock.key, Mark(mark.until - 3 * DAY, mark.schedule))
    wait_for("a new mark", lambda: (found := clock.mark()) and found.until > mark.until - DAY)
    assert len(clock.runs()) == 3

    assert place.longshore("breaker", "reset", service).code == 0

    def started_again() -> bool:
        # A tick that began before the reset may still move the mark.
        clock.schedules.put(clock.key, Mark(mark.until - 4 * DAY, mark.schedule))
        time.sleep(1.0)
        return len(clock.runs()) >= 4

    wait_for("a fourth run", started_again)
    clock.started(4)


def test_job_started_by_beat_and_by_command_runs_one_at_a_time(place: Installation, shop: JobStack) -> None:
    shop.up(sleep=1.0, labels={"schedule": IN_TWELVE_HOURS, "missed": "once"})
    clock = JobSchedule(place, shop)
    mark = clock.until_known(f"{IN_TWELVE_HOURS} UTC")

    clock.schedules.put(clock.key, Mark(mark.until - DAY, mark.schedule))
    done = place.longshore("job", "run", shop.job, "--run-id", f"{shop.job}-by-hand")
    runs = [*clock.started(1), clock.client.get(f"{shop.job}-by-hand")]

    assert done.code == 0
    assert [run.wait(60).exit_code for run in runs] == [0, 0]
    spans = sorted(
        (report.step("worker").data["id"], work["started_at"], work["finished_at"])
        for report in (run.report() for run in runs)
        for work in [report.step("work").data]
    )
    (_, one, until), (_, two, until_two) = spans
    assert until < two or until_two < one, "the runs do not overlap"
    assert shop.runs() == 2
    assert shop.is_healthy()
