"""Changes of Redis's clock during a run do not affect the run, and are reported."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from longshore.orchestration import Context, Plan, operation
from longshore.orchestration.installation.checks import _clock
from longshore.orchestration.schedules.due_times import Mark
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.clock import Clock, Jumps
from longshore.orchestration.store.hosts import Host, HostState, Node
from longshore.tasks.simulation.memory_store import MemoryStore
from longshore.tasks.simulation.sandbox import Sandbox

HOUR = 3600.0
JUMPS = [-24 * HOUR, -HOUR, HOUR, 24 * HOUR]
LEASE = 15.0

_sandboxes: list[Sandbox] = []


@operation("clock.set", idempotent=True)
def set_clock(ctx: Context, seconds: float) -> None:
    if ctx.attempt == 1:
        _sandboxes[0].set_clock(seconds)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    _sandboxes[:] = [Sandbox(lease=LEASE)]
    yield _sandboxes[0]
    _sandboxes.clear()


def elapsed(sandbox: Sandbox) -> float:
    """The run's duration in seconds, by the monotonic clock."""
    return (sandbox.store.steady() - 1e12) / 1000


@pytest.mark.parametrize("seconds", JUMPS)
def test_run_of_a_lost_worker_resumes_within_leases(sandbox: Sandbox, seconds: float) -> None:
    plan = Plan("p")
    plan.step("set", "clock.set", seconds=seconds)
    plan.step("after", "noop.execute").after("set")
    sandbox.vanish("set")

    report = sandbox.run(plan)

    assert report.state == "succeeded"
    assert elapsed(sandbox) < 5 * LEASE


@pytest.mark.parametrize("seconds", JUMPS)
def test_retry_keeps_its_delay_across_a_clock_jump(sandbox: Sandbox, seconds: float) -> None:
    plan = Plan("p")
    plan.step("waits", "noop.execute").retry(1, initial=100, maximum=100)
    plan.step("set", "clock.set", seconds=seconds)
    sandbox.fail("waits", times=1)
    sandbox.vanish("set")

    report = sandbox.run(plan)

    assert report.state == "succeeded"
    assert 50 <= elapsed(sandbox) <= 150 + 3 * LEASE


@pytest.mark.parametrize("seconds", JUMPS)
def test_deadline_keeps_its_distance_across_a_clock_jump(sandbox: Sandbox, seconds: float) -> None:
    plan = Plan("p", timeout="10m")
    plan.step("set", "clock.set", seconds=seconds)
    plan.step("ask", "approval.wait.execute", timeout="3h").after("set")

    report = sandbox.run(plan)

    assert (report.state, report.cause) == ("undone", "deadline")
    assert 600 <= elapsed(sandbox) <= 600 + 3 * LEASE


@pytest.mark.parametrize("seconds", JUMPS)
def test_delay_begun_before_jump_detection_is_not_extended(sandbox: Sandbox, seconds: float) -> None:
    plan = Plan("p")
    plan.step("set", "clock.set", seconds=seconds)
    plan.step("waits", "noop.execute").after("set").retry(1, initial=100, maximum=100)
    plan.step("ask", "approval.wait.execute", timeout="2h").after("set")
    sandbox.fail("waits", times=1)

    sandbox.run(plan)

    assert 2 * HOUR <= elapsed(sandbox) <= 2 * HOUR + 3 * LEASE


@pytest.mark.parametrize("seconds", JUMPS)
def test_approval_keeps_its_timeout_across_a_clock_jump(sandbox: Sandbox, seconds: float) -> None:
    plan = Plan("p")
    plan.step("ask", "approval.wait.execute", timeout="2h")
    plan.step("set", "clock.set", seconds=seconds)
    sandbox.vanish("set")

    sandbox.run(plan)

    assert 2 * HOUR <= elapsed(sandbox) <= 2 * HOUR + 3 * LEASE


def test_clock_jump_is_an_event_and_a_warning(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan("p")
    plan.step("set", "clock.set", seconds=-HOUR)
    sandbox.vanish("set")

    with caplog.at_level(logging.WARNING):
        report = sandbox.run(plan)

    jumps = [event for event in sandbox.events(report.run_id) if event.name == "clock_jumped"]
    assert [int(event.fields["ms"]) for event in jumps] == [-HOUR * 1000]
    assert "Redis's clock has jumped back by 1h" in caplog.text


# --- detection ----------------------------------------------------------------------------------------


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(Settings(redis_url="redis://x", namespace="clock", lease=LEASE))


def test_every_sweeper_counts_a_clock_jump_once(store: MemoryStore) -> None:
    one, other = Clock(store), Clock(store)
    for clock in (one, other):
        clock.look()
    store.jump(HOUR)
    store.advance(1)

    assert not one.look()
    assert not other.look(), "leases can expire before each worker could renew"
    assert other.jumps == one.jumps == Jumps(1, round(HOUR * 1000))
    for _ in range(6):
        store.advance(LEASE / 4)
        judged = one.look()
    assert judged


def test_outage_is_not_a_clock_jump(store: MemoryStore) -> None:
    clock = Clock(store)
    clock.look()
    store.advance(HOUR)

    assert not clock.look()
    assert clock.jumps.number == 0


def test_suspended_machine_does_not_report_a_clock_jump(store: MemoryStore) -> None:
    frozen, awake = Clock(store), Clock(store)
    frozen.look()
    awake.look()
    for _ in range(10):
        store.advance(5)
        awake.look()

    # A suspended machine sees an advanced clock of Redis, and a local clock that has not advanced.
    store._set_by += 50_000
    frozen.look()
    assert frozen.jumps.number == 0


def test_new_sweeper_detects_a_clock_set_back_by_the_last_tick(store: MemoryStore) -> None:
    before = Clock(store)
    before.look()
    store.jump(-HOUR)

    after = Clock(store)
    assert not after.look()
    assert after.jumps.total == pytest.approx(-HOUR * 1000, abs=1000)


@pytest.mark.parametrize("seconds", JUMPS)
def test_restarted_process_continues_its_machines_clock_measurement(store: MemoryStore, seconds: float) -> None:
    Clock(store).look()
    store.jump(seconds)
    store.advance(30)

    after = Clock(store)
    assert not after.look()
    assert after.jumps == Jumps(1, pytest.approx(seconds * 1000, abs=1000))


@pytest.mark.parametrize("seconds", JUMPS)
def test_retention_is_kept_across_a_clock_jump(store: MemoryStore, seconds: float) -> None:
    clock = Clock(store)
    clock.look()
    store.add_to_ended("run", store.now())
    store.jump(seconds)
    clock.look()

    store.advance(3500)
    assert store.ended_since(HOUR) == []
    store.advance(200)
    assert store.ended_since(HOUR) == ["run"]


def test_pause_is_at_most_a_lease(store: MemoryStore) -> None:
    clock = Clock(store)
    clock.look()
    store.client.hset(store.keys.clock, "pause", store.now() + 3_600_000)
    store.advance(1)
    assert clock.look()


def test_every_live_run_is_swept_after_a_clock_jump(store: MemoryStore) -> None:
    clock = Clock(store)
    clock.look()
    store.look_at("run", store.now() + 5000)
    store.jump(-HOUR)
    assert store.due(LEASE) == []

    clock.look()
    assert store.due(LEASE) == ["run"]


def test_doctor_reports_a_clock_jump(store: MemoryStore) -> None:
    clock = Clock(store)
    clock.look()
    assert list(_clock(store)) == []
    store.jump(HOUR)
    clock.look()

    (finding,) = _clock(store)
    assert (finding.grade, finding.what) == ("warning", "Redis's clock has jumped forward by 1h")


# --- other future times ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", JUMPS)
def test_clock_change_does_not_keep_a_dead_host_alive(seconds: float) -> None:
    now = 10**12
    host = Host("web1", nodes=(Node("w", seen=now),), now=now + round(seconds * 1000), silent=45_000)
    assert host.state is HostState.LOST


def test_breaker_retries_in_time_after_a_clock_jump(store: MemoryStore) -> None:
    breakers = Breakers(store)
    breakers.trip("bank", "refused", "run")
    store.jump(-HOUR)

    assert breakers.ask("bank", "run").allowed


def test_schedule_with_a_future_mark_continues_from_now() -> None:
    assert Mark(10_000_000, "x").as_of(1_000_000) == Mark(1_000_000, "x")
    assert Mark(1_030_000, "x").as_of(1_000_000) == Mark(1_030_000, "x")
