"""Job records in Redis: discovery requests and answers, schedule marks, ends, and limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.errors import WaitTimeout
from longshore.orchestration.jobs import Entity, schedule
from longshore.orchestration.jobs.discovery import HostSnapshot, JobDiscovery
from longshore.orchestration.jobs.schedule import record_result, reset_results, service, tick
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.schedules.due_times import Mark, ScheduleMarks
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.hosts import Hosts, Node
from longshore.orchestration.store.run_store import Store
from tests.servers import RedisServer
from tests.store.stored_run import StoredRun
from tests.store.test_store import connect

assert connect
KEY = "backup@web1"


@pytest.fixture
def store(stored: StoredRun) -> Store:
    return stored.store


def entity() -> Entity:
    values = {"enabled": "true", "name": "backup", "worker.image": "backup:1"}
    labels = {f"longshore.job.{key}": value for key, value in values.items()}
    return Entity("container", "shop-db-1", labels | {"com.docker.compose.project": "shop"})


def host(store: Store, name: str, **facts: Any) -> None:
    Hosts(store).register(name, Node(f"one@{name}", queues=("docker", f"docker@{name}"), facts=facts))


def test_answer_needs_the_number_of_the_request(store: Store) -> None:
    discovery = JobDiscovery(store)
    host(store, "web1")
    assert (discovery.last_request(), discovery.last_answer("web1")) == (0, -1)
    with pytest.raises(WaitTimeout, match="no answer from web1"):
        discovery.refresh(timeout=0.1)
    discovery.publish(HostSnapshot("web1", discovery.last_request(), engine="E", entities=(entity(),)))
    assert [(job.name, job.host) for job in discovery.latest().jobs] == [("backup", "web1")]

    with pytest.raises(WaitTimeout):
        discovery.refresh(timeout=0.1)  # the answer has the number of an earlier request
    discovery.publish(HostSnapshot("web1", discovery.last_request() + 1, engine="E", entities=(entity(),)))
    assert [job.name for job in discovery.refresh(timeout=0.1).jobs] == ["backup"]


def test_discovery_ignores_hosts_without_an_engine_and_names_silent_ones(store: Store) -> None:
    discovery = JobDiscovery(store)
    host(store, "web1")
    host(store, "web2")
    host(store, "plain", docker=None)
    discovery.publish(HostSnapshot("web1", 1, entities=(entity(),)))
    known = discovery.refresh(timeout=0.1)
    assert known.silent == ("web2",)
    assert [str(finding) for finding in known.findings] == ["host web2: no answer"]
    assert [job.name for job in known.jobs] == ["backup"]


def test_discovery_answer_is_removed_with_its_host(store: Store) -> None:
    host(store, "web1")
    discovery = JobDiscovery(store)
    discovery.publish(HostSnapshot("web1", 1))
    Hosts(store).forget("web1")
    assert discovery.snapshots() == {}


def test_discovery_without_hosts_is_empty(store: Store) -> None:
    with pytest.raises(WaitTimeout, match="no host with a Docker engine"):
        JobDiscovery(store).refresh(timeout=0.1)


def test_schedule_marks_are_stored_and_removed(store: Store) -> None:
    schedules = ScheduleMarks(store)
    schedules.put(KEY, Mark(5, "* * * * * UTC"))
    assert schedules.marks() == {KEY: Mark(5, "* * * * * UTC")}
    schedules.forget([KEY, "another"])
    assert schedules.marks() == {}


class Starts:
    """A client that records starts without executing them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = store.settings
        self.started: list[str] = []

    def start(self, plan: Plan, *, run_id: str) -> str:
        self.started.append(run_id)
        return run_id


def scheduled(**values: str) -> Entity:
    labels = {f"longshore.job.{key}": value for key, value in ({"schedule": "* * * * *"} | values).items()}
    return Entity("container", "shop-db-1", {**entity().labels, **labels})


@pytest.fixture
def due(store: Store, monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Host web1 has a job that is due since three minutes; discovery returns the stored answers."""
    monkeypatch.setattr(JobDiscovery, "refresh", lambda self, files, **_: self.latest(files))
    monkeypatch.setattr(schedule, "_log_once", schedule._LogOnce())
    host(store, "web1")
    JobDiscovery(store).publish(HostSnapshot("web1", 1, engine="E", entities=(scheduled(),)))
    ScheduleMarks(store).put(KEY, Mark(store.now() - 180_000, "* * * * * UTC"))
    return Starts(store)


def test_tick_starts_due_jobs_once(due: Starts) -> None:
    tick(due, [])  # type: ignore[arg-type]
    assert len(due.started) == 1, "not exactly one of the missed times was started"
    tick(due, [])  # type: ignore[arg-type]
    assert len(due.started) == 1


def test_unusable_job_is_not_started_and_logged_once(due: Starts, caplog: pytest.LogCaptureFixture) -> None:
    JobDiscovery(due.store).publish(
        HostSnapshot("web1", 1, engine="E", entities=(scheduled(**{"worker.command": "echo 'x"}),))
    )
    for _ in range(3):
        tick(due, [])  # type: ignore[arg-type]
    assert due.started == []
    logged = [record.getMessage() for record in caplog.records]
    assert len([text for text in logged if "was not started by its schedule" in text]) == 1, logged


def test_unreadable_job_file_does_not_block_labelled_jobs(
    due: Starts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jobs.yaml").write_text("jobs: 5")
    for _ in range(2):
        tick(due, [tmp_path / "jobs.yaml"])  # type: ignore[arg-type]
    assert len(due.started) == 1
    assert len([record for record in caplog.records if "jobs.yaml" in record.getMessage()]) == 1


def test_missed_schedule_of_an_absent_host_is_caught_up(due: Starts) -> None:
    Hosts(due.store).leave("web1", "one@web1")
    tick(due, [])  # type: ignore[arg-type]
    assert KEY in ScheduleMarks(due.store).marks()
    host(due.store, "web1")
    JobDiscovery(due.store).publish(HostSnapshot("web1", 1, engine="E"))
    tick(due, [])  # type: ignore[arg-type]
    assert ScheduleMarks(due.store).marks() == {}, "the mark of a removed job remains"


def test_second_host_of_an_engine_continues_its_schedules(due: Starts) -> None:
    Hosts(due.store).leave("web1", "one@web1")
    host(due.store, "web2")
    JobDiscovery(due.store).publish(HostSnapshot("web2", 1, engine="E", entities=(scheduled(),)))
    tick(due, [])  # type: ignore[arg-type]
    (run_id,) = due.started
    assert run_id.startswith("backup@web2.")


def record_ends(store: Store, *numbers: int, result: str = "failed") -> None:
    for number in numbers:
        record_result(store, KEY, f"r{number}", result, number)


def test_breaker_opens_after_three_failures_and_closes_on_success(store: Store) -> None:
    breakers = Breakers(store)
    record_ends(store, 1, 2, 2, 2)
    assert not breakers.is_open(service(KEY)), "the same end counted several times"
    record_ends(store, 3, result="cancelled")
    assert not breakers.is_open(service(KEY)), "a cancelled run counted as a failure"
    record_ends(store, 4, result="timed_out")
    (found,) = breakers.open()
    assert (found.service, found.why) == (service(KEY), "3 consecutive runs failed, the latest is r4")
    record_ends(store, 5, result="succeeded")
    assert not breakers.is_open(service(KEY))
    record_ends(store, 6, 7)
    assert not breakers.is_open(service(KEY)), "the count did not restart"


def test_late_job_end_counts_in_its_order(store: Store) -> None:
    breakers = Breakers(store)
    record_ends(store, 1, result="succeeded")
    record_ends(store, 2, 3, 4)
    record_ends(store, 1, result="succeeded")
    assert breakers.is_open(service(KEY))


def test_breaker_reset_restarts_the_count(store: Store) -> None:
    breakers = Breakers(store)
    record_ends(store, 1, 2, 3)
    reset_results(store, service(KEY))
    reset_results(store, "another service")
    breakers.close(service(KEY))
    record_ends(store, 1, 2, 3)
    assert not breakers.is_open(service(KEY)), "ends that are recorded again open the breaker after its reset"
    later = store.now() + 1_000
    record_ends(store, later + 4, later + 5)
    assert not breakers.is_open(service(KEY))
    record_ends(store, later + 6)
    assert breakers.is_open(service(KEY))


def test_job_limit_does_not_delay_other_runs(server: RedisServer, connect: Callable[..., Store]) -> None:
    store = connect(server.url, max_jobs=1, max_runs_per_plan=2)
    admission = Admission(store)
    body = {"plan": {"name": "job.a"}, "group": "jobs"}
    for run_id, asked in {"j1": body, "j2": {**body, "plan": {"name": "job.b"}}, "p1": {"plan": {"name": "p"}}}.items():
        assert admission.submit(run_id, asked) is None
    limits = {run_id: admission.admit(run_id, wanted) for run_id, wanted in sorted(admission.known().items())}
    assert limits == {"j1": "", "j2": "plan", "p1": ""}
    wanted = AdmissionRequest.of({**body, "plan": {"name": "job.b"}})
    assert admission.admit("j2", wanted) == "plan"
    assert admission.why_not(wanted, "plan") == "the run waits for admission: 1 jobs are live"
    admission.release("j1", AdmissionRequest.of(body))
    assert [run_id for run_id, _ in admission.next()] == ["j2"]
