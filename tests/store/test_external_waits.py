"""Runs with an external wait are swept only at their due time, and miss no event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longshore.orchestration.client.request import shared
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.states import RunState
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.connection import connect
from longshore.tasks.control import coordinator
from tests.servers import RedisServer
from tests.store.simulated_workers import QueueCanvas, World
from tests.store.stored_run import settings_for
from tests.sweeping import sweep

pytestmark = pytest.mark.store

Make = Callable[..., World]


@pytest.fixture
def make(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(coordinator, "Canvas", QueueCanvas)
    redis_server.flush()

    def made(plan: Plan, **settings: Any) -> World:
        return World(redis_server.url, plan, connect(settings_for(redis_server.url)), **settings)

    return made


def approval() -> Plan:
    plan = Plan("asks")
    plan.approval("ask", timeout="1h")
    plan.step("after", "noop.execute").after("ask")
    return plan


def submit(world: World, run_id: str) -> None:
    plan = world.plan.plan
    body = {"v": 1, "plan": plan.to_dict(), "params": {}, "files": {}, "actor": "ann", "digest": plan.digest({}, {})}
    Admission(world.store).submit(run_id, body | shared(plan, {}))


def park(world: World, run_id: str) -> str:
    """A run whose one step waits for an approval."""
    submit(world, run_id)
    world.coordinator.advance(run_id)
    grant = world.store.claim(run_id, 0, "", f"task@one/{run_id}", "task")
    assert not isinstance(grant, str), grant
    assert world.store.park(run_id, 0, "", grant.fence, 3600.0, '{"on_timeout":"fail","seconds":3600}', "an approval")
    return grant.fence


def seconds_until_due(world: World, run_id: str) -> float:
    """Seconds until the run is due."""
    score = world.stored.redis.zscore(world.store.keys.live, run_id)
    assert score is not None
    return float(score - world.store.now()) / 1000


def make_due(world: World) -> None:
    runs = world.stored.redis.zrange(world.store.keys.live, 0, -1)
    world.stored.redis.zadd(world.store.keys.live, dict.fromkeys(runs, 1), xx=True)


def settle(world: World) -> None:
    """Sweep until nothing is due."""
    while True:
        if sweep(world.coordinator) == 0 or not world.store.waiting():
            return


def commands(world: World) -> int:
    """The number of commands that Redis has executed, except this one."""
    return int(world.stored.redis.info("stats")["total_commands_processed"])


def test_run_waiting_for_approval_is_swept_at_its_deadline(make: Make) -> None:
    world = make(approval())
    park(world, "r")
    make_due(world)

    sweep(world.coordinator)

    assert 3500 < seconds_until_due(world, "r") <= 3600


def test_sweep_cost_is_independent_of_waiting_runs(make: Make) -> None:
    world = make(approval(), lease=600.0)  # longer than this test takes on a busy machine
    for number in range(150):
        park(world, f"r{number}")
    make_due(world)
    settle(world)
    sweep(world.coordinator)

    before = commands(world)
    for _ in range(10):
        sweep(world.coordinator)
    taken = (commands(world) - before) / 10

    assert taken <= 10, "too many commands for a sweep, which each worker starts once a second"


def test_decision_makes_a_waiting_run_due(make: Make) -> None:
    world = make(approval())
    park(world, "r")
    make_due(world)
    settle(world)

    world.store.command("r", "approve", step=0)
    sweep(world.coordinator)

    assert world.store.step_fields("r", [0], ("status",))[0] == ("unchanged",)
    assert seconds_until_due(world, "r") <= world.store.settings.lease


def test_run_advanced_by_a_message_is_swept_soon(make: Make) -> None:
    """The control worker that advances the run may be killed meanwhile."""
    world = make(approval())
    park(world, "r")
    make_due(world)
    settle(world)
    world.stored.redis.hset(
        world.store.keys.of("r").steps,
        mapping={"decision:0": "approve", "decided_by:0": "ann", "note:0": "", "decided_at:0": 1},
    )

    world.coordinator.advance("r")

    assert seconds_until_due(world, "r") <= world.store.settings.lease / 3 + 1


def test_run_advanced_during_deferral_is_swept_soon(make: Make) -> None:
    world = make(approval())
    park(world, "r")
    version = world.store.version("r")
    world.store.command("r", "approve", step=0)
    world.coordinator.advance("r")

    world.store.postpone("r", world.store.now() + 3_600_000, version, 3.0)

    assert seconds_until_due(world, "r") <= 4


def test_distant_retry_is_swept_when_due(make: Make) -> None:
    plan = Plan("retries")
    plan.step("a", "noop.execute").retry(3)
    world = make(plan)
    submit(world, "r")
    world.coordinator.advance("r")
    grant = world.store.claim("r", 0, "", "task@one/x", "task")
    assert not isinstance(grant, str)
    assert world.store.retry("r", 0, "", grant.fence, 600.0, 10.0, "busy") == 1
    make_due(world)

    sweep(world.coordinator)

    assert 590 < seconds_until_due(world, "r") <= 600


def test_run_with_a_running_step_is_swept_within_a_third_of_a_lease(make: Make) -> None:
    plan = Plan("both")
    plan.approval("ask", timeout="1h")
    plan.step("works", "noop.execute")
    world = make(plan)
    park(world, "r")
    assert not isinstance(world.store.claim("r", 1, "", "task@one/y", "task"), str)
    make_due(world)

    sweep(world.coordinator)

    assert seconds_until_due(world, "r") <= world.store.settings.lease / 3


def test_queued_runs_are_not_swept_until_admitted(make: Make) -> None:
    plan = Plan("p", concurrency={"key": "one"})
    plan.step("a", "noop.execute")
    world = make(plan)
    for number in range(20):
        submit(world, f"r{number}")
    for _ in range(3):
        sweep(world.coordinator)

    assert world.store.state("r0") == RunState.RUNNING
    assert all(seconds_until_due(world, f"r{number}") > 3000 for number in range(1, 20))

    grant = world.store.claim("r0", 0, "", "task@one/x", "task")
    assert not isinstance(grant, str)
    world.store.complete("r0", 0, "", grant.fence, "changed", "{}")
    world.queue.clear()
    world.coordinator.advance("r0")
    assert seconds_until_due(world, "r1") <= 0, "the admission did not make the run due"
    sweep(world.coordinator)
    assert world.store.state("r1") == RunState.RUNNING


def test_purge_admits_runs_after_an_unreported_end(make: Make) -> None:
    plan = Plan("p", concurrency={"key": "one"})
    plan.step("a", "noop.execute")
    world = make(plan)
    submit(world, "r0")
    submit(world, "r1")
    for _ in range(3):
        sweep(world.coordinator)
    world.stored.redis.hset(world.store.keys.of("r0").run, mapping={"state": "succeeded", "ended": world.store.now()})
    world.stored.redis.zrem(world.store.keys.live, "r0")

    world.stored.redis.delete(world.store.keys.purged)
    sweep(world.coordinator)
    sweep(world.coordinator)

    assert world.store.state("r1") == RunState.RUNNING


def test_few_of_the_runs_blocked_by_a_service_poll_its_breaker(make: Make) -> None:
    world = make(approval(), slow_retry=30)
    breakers = Breakers(world.store)
    breakers.trip("registry", "away", "r0")
    for number in range(1000):
        breakers.wait("registry", f"r{number}")

    now = world.store.now()
    looks = [breakers.ask("registry", f"r{number}").until - now for number in range(0, 1000, 5)]

    soon = sum(at < 60_000 for at in looks)
    assert soon <= len(looks) // 10
    breakers.close("registry")
    assert all(seconds_until_due(world, f"r{number}") <= 1 for number in range(0, 1000, 100))


def test_parent_is_swept_after_its_childs_end_without_the_message(make: Make) -> None:
    world = make(approval())
    park(world, "parent")
    make_due(world)
    settle(world)
    assert seconds_until_due(world, "parent") > 1000

    world.coordinator.external_waits.advance_parent("child", {"parent": '{"run": "parent"}'})
    world.queue.clear()

    assert seconds_until_due(world, "parent") <= 0


def test_inbox_entries_without_requests_do_not_block_others(make: Make) -> None:
    world = make(approval())
    world.stored.redis.zadd(world.store.keys.inbox, {f"orphan{number}": number - 1000 for number in range(300)})
    submit(world, "r")

    for _ in range(4):
        sweep(world.coordinator)

    assert world.store.state("r") == RunState.RUNNING


def test_sweep_processes_all_due_runs(make: Make) -> None:
    world = make(approval())
    for number in range(130):
        submit(world, f"r{number}")
        world.store.create(f"r{number}", {"plan": "asks", "steps": 2})
    world.stored.redis.delete(world.store.keys.inbox)
    make_due(world)

    assert sweep(world.coordinator) == 130


def test_run_made_due_during_deferral_stays_due(make: Make) -> None:
    world = make(approval())
    park(world, "r")
    world.store.look_at("r", world.store.now(), sooner=True)

    world.store.postpone("r", world.store.now() + 3_600_000, world.store.version("r"), 3.0)

    assert seconds_until_due(world, "r") <= 0
