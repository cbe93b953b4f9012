"""The facade of schedules: list, trigger, pause and resume, with the times and pauses in Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.orchestration import Client, Schedules
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.language.schedule import Scheduled
from longshore.orchestration.schedules.declarations import Schedule
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.schedules.starts import start_at
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission
from tests.store.stored_run import StoredRun

PLAN = "name: backup\nsteps:\n  a: {op: noop.execute}\n"


@pytest.fixture
def client(stored: StoredRun, tmp_path: Path) -> Client:
    (tmp_path / "backup.yaml").write_text(PLAN)
    when = Scheduled(plan=str(tmp_path / "backup.yaml"), cron="0 3 * * *")
    settings = stored.store.settings.model_copy(update={"schedules": {"nightly": when, "broken": Scheduled(every=60)}})
    return Client(settings)


def test_list_contains_declared_schedules_schedules_of_jobs_and_errors(client: Client) -> None:
    ScheduleMarks(client.store).put("copy@web1", Mark(5_000, "every 60s"))

    listing = Schedules(client).list()

    nightly, job = listing.schedules
    assert (nightly.name, nightly.when, nightly.done_until, nightly.paused_by) == (
        "nightly",
        "0 3 * * * UTC",
        None,
        None,
    )
    assert nightly.schedule is not None
    assert nightly.next is not None
    assert (nightly.next.hour, nightly.next.minute) == (3, 0)
    assert (job.name, job.schedule, job.when, job.next) == ("copy@web1", None, "every 60s", None)
    assert job.done_until is not None
    assert job.done_until.timestamp() == 5
    assert listing.errors == ["schedule broken names no plan"]


def test_pause_and_resume_report_whether_they_changed_the_schedule(client: Client) -> None:
    schedules = Schedules(client)

    assert [schedules.pause("nightly"), schedules.pause("nightly")] == [True, False]
    assert schedules.status("nightly").paused_by
    assert [schedules.resume("nightly"), schedules.resume("nightly")] == [True, False]
    assert schedules.status("nightly").paused_by is None
    noted = [(line.what, line.step) for line in audit.lines(client.store, limit=10)]
    assert sorted(noted) == [("pause schedule", "nightly"), ("resume schedule", "nightly")]


def test_resumed_schedule_has_handled_the_times_of_its_pause(client: Client) -> None:
    """No tick ran during the pause, for example because all workers were stopped."""
    schedules, marks = Schedules(client), ScheduleMarks(client.store)
    marks.put("nightly", Mark(5_000, "0 3 * * * UTC"))
    schedules.pause("nightly")

    assert schedules.resume("nightly")

    assert client.store.now() - marks.marks()["nightly"].until < 60_000
    marks.put("nightly", Mark(5_000, "0 3 * * * UTC"))
    assert not schedules.resume("nightly")
    assert marks.marks()["nightly"].until == 5_000


def test_schedule_declared_elsewhere_can_be_paused(client: Client) -> None:
    ScheduleMarks(client.store).put("copy@web1", Mark(5_000, "every 60s"))

    assert Schedules(client).pause("copy@web1")
    with pytest.raises(UnknownName, match=r"no schedule 'nosuch' \(declared: nightly\)"):
        Schedules(client).pause("nosuch")


def test_trigger_starts_the_plan_and_leaves_the_times(client: Client) -> None:
    run = Schedules(client).trigger("nightly")

    assert run.id.startswith("nightly.by-hand-")
    assert client.store.body(run.id) is not None
    assert Schedules(client).status("nightly").done_until is None
    with pytest.raises(UnknownName, match="longshore job run copy --host web1"):
        Schedules(client).trigger("copy@web1")


LIMITED = """
name: copy
params: {tenant: {type: string, default: a}}
concurrency: {key: "copy {{ params.tenant }}", limit: 2}
steps:
  a: {op: noop.execute}
"""


def test_skip_counts_the_runs_with_the_key_of_the_plan_up_to_its_limit(stored: StoredRun, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(LIMITED)
    client = Client(stored.store.settings)
    schedule = Schedule("copy.nightly", str(tmp_path / "copy.yaml"), Scheduled(cron="0 3 * * *", overlap="skip"))
    admission = Admission(client.store)

    for number in range(2):
        run = start_at(client, schedule, number)
        assert run is not None
        request = admission.request_of(run.id)
        assert request is not None
        assert admission.admit(run.id, request) == ""

    assert start_at(client, schedule, 2) is None
