"""The coordinator on a real record: lost messages and workers, and rare races."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration.messaging import signing
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.states import RunState
from longshore.tasks.control import coordinator
from longshore.tasks.control import sweep as sweep_module
from longshore.tasks.loaded_runs import NotOurs
from tests.servers import RedisServer
from tests.store.simulated_workers import CoordinatorDied, Message, QueueCanvas, World
from tests.sweeping import sweep

pytestmark = pytest.mark.store

SHELL = "command.shell.execute"


@pytest.fixture
def world(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Create a run whose first message is enqueued."""
    monkeypatch.setattr(coordinator, "Canvas", QueueCanvas)
    redis_server.flush()

    def make(plan: Plan, server: RedisServer = redis_server, **settings: Any) -> World:
        made = World(server.url, plan, server.client(), **settings)
        made.request()
        return made

    return make


def plan_of(*steps: str, **fields: Any) -> Plan:
    """A plan of independent, repeatable steps with undo."""
    plan = Plan("p", **fields)
    for name in steps:
        plan.step(name, "noop.execute")
    return plan


def do(world: World, index: int, how: str = "changed", side: str = "") -> None:
    """Execute a whole attempt from its message."""
    task = "longshore.undo" if side else "longshore.step"
    message = next(m for m in world.queue if (m.task, m.index) == (task, index))
    world.queue.remove(message)
    work = world.deliver(message)
    assert work is not None
    world.finish(work, how)


# --- retention ------------------------------------------------------------------------------------------


@pytest.fixture
def signed(world: Callable[..., World], tmp_path: Path) -> World:
    """A run with a signed request, which is deleted as soon as it has ended."""
    path = tmp_path / "keys.json"
    path.write_text(signing.written([signing.new_key("worker")]))
    path.chmod(0o600)
    return world(plan_of("a"), keys=str(path), retention="1ms")


def purge(world: World) -> None:
    """Delete ended runs, although a sweep has done so a moment ago."""
    time.sleep(0.002)  # longer than the retention
    world.stored.redis.delete(world.store.keys.purged)
    world.coordinator.lifecycle.purge_expired()


def test_copy_of_the_request_of_a_purged_run_is_refused(signed: World) -> None:
    keys, client = signed.store.keys.of(signed.run_id), signed.stored.redis
    request = client.get(keys.request)
    signed.settle()
    purge(signed)
    assert client.get(keys.request) is None

    client.set(keys.request, request)

    with pytest.raises(NotOurs, match="was already executed"):
        signed.coordinator.plans.get(signed.run_id, again=True)


def test_purge_records_only_a_request_whose_signature_is_valid(signed: World) -> None:
    signed.settle()
    age = 1000 * signing.REMEMBERED
    signed.stored.put(created=signed.store.now() - age)
    purge(signed)

    assert signed.store.fields(signed.run_id) == {}
    assert list(signed.stored.redis.scan_iter(signed.store.keys.accepted("*"))) == []


# --- lost messages and workers --------------------------------------------------------------------------


def test_run_begins_without_its_first_message(world: Callable[..., World]) -> None:
    lost = world(plan_of("a"))
    lost.queue.clear()

    assert sweep(lost.coordinator) == 1

    assert lost.queue == [Message("longshore.step", 0)]
    assert lost.store.waiting() == []
    lost.settle()
    assert lost.store.state(lost.run_id) == RunState.SUCCEEDED


def test_sweep_replaces_a_lost_advance(world: Callable[..., World]) -> None:
    lost = world(plan_of("a"))
    sweep(lost.coordinator)
    do(lost, 0)
    lost.queue.clear()

    lost.age(11)
    sweep(lost.coordinator)

    assert lost.store.state(lost.run_id) == RunState.SUCCEEDED
    assert lost.is_settled()


def test_step_without_a_worker_fails_with_the_reason(world: Callable[..., World]) -> None:
    installation_source = world(plan_of("a"), claim_timeout=600.0)
    sweep(installation_source.coordinator)

    installation_source.age(601)
    sweep(installation_source.coordinator)

    assert installation_source.stored.step("status:0") == "failed"
    assert installation_source.stored.run("err") == "no worker of the queue noop claimed the step within 600 s"


def test_undo_timeout_is_reported(world: Callable[..., World]) -> None:
    slow = world(plan_of("a", "b", on_error="stop"), undo_timeout=60.0)
    sweep(slow.coordinator)
    do(slow, 0)
    do(slow, 1, "failed")
    slow.coordinator.advance(slow.run_id)
    do(slow, 0, "undone", "u")
    slow.queue.clear()

    slow.age(61)
    sweep(slow.coordinator)

    assert slow.store.state(slow.run_id) == RunState.UNDO_FAILED
    assert (slow.stored.step("ustatus:0"), slow.stored.step("ustatus:1")) == ("undone", "undo_failed")
    assert "exceeded its time limit" in str(slow.stored.step("uoutcome:1"))


def test_lower_levels_do_not_begin_after_the_undo_timeout(world: Callable[..., World]) -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute")
    plan.step("b", "noop.execute").after("a")
    plan.step("c", "noop.execute").after("b")
    slow = world(plan, undo_timeout=60.0)
    sweep(slow.coordinator)
    for index, how in enumerate(("changed", "changed", "failed")):
        do(slow, index, how)
        slow.coordinator.advance(slow.run_id)
    do(slow, 2, "undone", "u")
    slow.coordinator.advance(slow.run_id)
    message = next(m for m in slow.queue if m.task == "longshore.undo")
    work = slow.deliver(message)
    assert work is not None

    # A running compensation continues after the limit, and its worker opens the next level.
    slow.age(61)
    slow.finish(work, "undone")
    slow.coordinator.advance(slow.run_id)
    late = slow.stored.ask(0, "u")
    sweep(slow.coordinator)

    assert late == "the time limit of the compensations has passed"
    assert slow.store.state(slow.run_id) == RunState.UNDO_FAILED
    assert (slow.stored.step("ustatus:0"), slow.stored.step("ustatus:1")) == ("undo_failed", "undone")


def test_inbox_entry_without_a_request_is_removed_after_a_minute(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(plan_of("a"))
    store = here.store
    store.client.zadd(store.keys.inbox, {"orphan": 0})

    sweep(here.coordinator)
    assert "orphan" in store.waiting()
    monkeypatch.setattr(sweep_module, "_ORPHAN", 0.0)
    sweep(here.coordinator)

    assert "orphan" not in store.waiting()


def test_damaged_run_does_not_block_the_sweep(world: Callable[..., World]) -> None:
    here = world(plan_of("a"))
    here.stored.redis.set(here.store.keys.of("0-damaged").request, "this is no JSON")
    here.stored.redis.zadd(here.store.keys.inbox, {"0-damaged": 1})

    assert sweep(here.coordinator) == 2

    assert here.store.state(here.run_id) == RunState.RUNNING


# --- runs without work for a sweep -------------------------------------------------------------------------


def claimed(world: Callable[..., World], **fields: Any) -> World:
    """A run with two running steps that is due for its next sweep."""
    run = world(plan_of("a", "b", **fields))
    sweep(run.coordinator)
    assert all(run.deliver(message) for message in list(run.queue) if message.task == "longshore.step")
    run.queue.clear()
    for _ in range(2):
        run.store.look_at(run.run_id, 0)
        sweep(run.coordinator)
    run.store.look_at(run.run_id, 0)
    return run


def test_run_with_each_step_under_a_lease_is_not_advanced(world: Callable[..., World]) -> None:
    run = claimed(world)

    assert run.coordinator.with_work([run.run_id]) == []
    assert sweep(run.coordinator) == 0
    assert run.stored.redis.zscore(run.store.keys.live, run.run_id) > 0  # due again in a third of a lease


def test_run_is_due_within_a_third_of_a_lease_whenever_its_next_sweep_begins(world: Callable[..., World]) -> None:
    run = claimed(world)

    sweep(run.coordinator)

    settings, due = run.store.settings, run.stored.redis.zscore(run.store.keys.live, run.run_id)
    pause = min(sweep_module.LONGEST_PAUSE * settings.sweep_interval, settings.lease / 8)
    assert due + 1000 * pause <= run.store.now() + 1000 * settings.lease / 3


def lose_a_message(run: World) -> None:
    run.stored.redis.zrem(run.store.keys.of(run.run_id).leases, "0")
    run.stored.redis.hset(run.store.keys.of(run.run_id).steps, "status:0", "ready")


def hold_a_step_that_has_ended(run: World) -> None:
    run.stored.redis.hset(run.store.keys.of(run.run_id).steps, "status:0", "changed")


def expire_a_lease(run: World) -> None:
    run.stored.redis.zadd(run.store.keys.of(run.run_id).leases, {"0": run.store.now() - 1})


def hold_a_unit(run: World) -> None:
    run.stored.redis.zrem(run.store.keys.of(run.run_id).leases, "0")
    run.stored.redis.hset(run.store.keys.of(run.run_id).steps, "status:1.0", "running")
    run.stored.redis.zadd(run.store.keys.of(run.run_id).leases, {"1.0": run.store.now() + 9000})


def cancel(run: World) -> None:
    run.store.command(run.run_id, "cancel")
    run.stored.redis.zrem(run.store.keys.inbox, run.run_id)  # the inbox entry of the command is lost


def enter_the_inbox(run: World) -> None:
    run.stored.redis.zadd(run.store.keys.inbox, {run.run_id: 1})


def wait_outside(run: World) -> None:
    run.stored.redis.zadd(run.store.keys.of(run.run_id).waits, {"1": 9e15})


def reach_the_time_limit(run: World) -> None:
    run.stored.redis.hset(run.store.keys.of(run.run_id).run, "deadline", run.store.now() + 1)


def suspend(run: World) -> None:
    run.stored.redis.hset(run.store.keys.of(run.run_id).run, "state", "suspended")


def set_the_clock(run: World) -> None:
    run.stored.redis.hset(run.store.keys.clock, mapping={"jumps": 1, "jumped": 0})
    run.coordinator.clock.rest()


def lose_writes(run: World) -> None:
    run.stored.redis.hset(run.store.keys.of(run.run_id).run, "version", 1)


def damage_a_key(run: World) -> None:
    run.stored.redis.delete(run.store.keys.of(run.run_id).leases)
    run.stored.redis.set(run.store.keys.of(run.run_id).leases, "text")


def pause_all_sweeps(run: World) -> None:
    run.coordinator.may_expire_leases = False


@pytest.mark.parametrize(
    "change",
    [
        lose_a_message, hold_a_step_that_has_ended, expire_a_lease, hold_a_unit, cancel, enter_the_inbox, wait_outside,
        reach_the_time_limit, suspend, set_the_clock, lose_writes, damage_a_key, pause_all_sweeps,
    ],
)  # fmt: skip
def test_run_with_work_is_advanced(world: Callable[..., World], change: Callable[[World], None]) -> None:
    run = claimed(world)

    change(run)

    assert run.coordinator.with_work([run.run_id]) == [run.run_id]


def test_each_worker_verifies_the_request_of_a_run_under_lease(world: Callable[..., World]) -> None:
    run = claimed(world)

    assert run.other_coordinator.with_work([run.run_id]) == [run.run_id]
    run.other_coordinator.look_at_clock()
    run.other_coordinator.advance(run.run_id, recover=True)
    assert run.other_coordinator.with_work([run.run_id]) == []


# --- races ----------------------------------------------------------------------------------------------


def test_chain_link_with_a_failed_dependency_is_skipped(world: Callable[..., World]) -> None:
    plan = plan_of("bad", "good")
    plan.steps["bad"] = plan.steps["bad"].model_copy(update={"on_error": "continue"})
    plan.step("next", "noop.execute").after("good")
    plan.step("last", "noop.execute").after("next", "bad")
    run = world(plan)
    assert run.plan.chain_from(2, 8) == (2,), "the chain passes a level that needs the record"

    sweep(run.coordinator)
    do(run, 0, "failed")
    do(run, 1)
    run.settle()

    assert run.stored.step("status:3") == "skipped"


def test_command_sent_during_a_sweep_is_not_lost(world: Callable[..., World]) -> None:
    run = world(plan_of("a"))
    run.settle()
    run.store.command(run.run_id, "cancel")  # refused because the run has ended; the command only makes the run due
    looks = run.coordinator_store.look

    def read_and_receive_a_command(run_id: str, **options: bool) -> Any:
        found = looks(run_id, **options)
        if len(run.store.commands(run.run_id)) == 1 and found.fields.get("last_command"):
            run.store.command(run.run_id, "undo")
        return found

    run.coordinator_store.look = read_and_receive_a_command  # type: ignore[method-assign]
    sweep(run.coordinator)
    assert len(run.store.commands(run.run_id)) == 2

    run.settle()

    assert run.store.state(run.run_id) == RunState.UNDONE


def test_run_reopened_by_a_killed_coordinator_is_swept(world: Callable[..., World]) -> None:
    run = world(plan_of("a"))
    run.settle()
    run.store.command(run.run_id, "undo")

    def die(*_: object, **__: object) -> None:
        raise CoordinatorDied

    run.coordinator_store.look_at = die  # type: ignore[method-assign]
    with pytest.raises(CoordinatorDied):
        sweep(run.coordinator)
    run.coordinator_store.look_at = run.store.look_at  # type: ignore[method-assign]
    sweep(run.coordinator)
    run.queue.clear()

    run.settle()

    assert run.store.state(run.run_id) == RunState.UNDONE


def test_always_step_lost_during_cancel_runs_again(world: Callable[..., World]) -> None:
    plan = plan_of("a")
    plan.step("clean", "noop.execute").always()
    run = world(plan)
    sweep(run.coordinator)
    do(run, 0)
    work = run.deliver(Message("longshore.step", 1))
    assert work is not None
    run.expire_lease(work)
    run.store.command(run.run_id, "cancel")
    whole = run.coordinator_store.expire

    def cancelled_meanwhile(*args: Any, **kwargs: Any) -> str:
        run.other_coordinator.advance(run.run_id)
        return whole(*args, **kwargs)

    # Another process executes the cancel just before this process expires the step.
    run.coordinator_store.commands = list  # type: ignore[assignment,method-assign]
    run.coordinator.commands.carry_out = lambda *_: False  # type: ignore[method-assign]
    run.coordinator_store.expire = cancelled_meanwhile  # type: ignore[method-assign]
    run.age(11)
    sweep(run.coordinator)
    run.settle()

    assert run.stored.step("status:1") == "changed"


@pytest.fixture
def own_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def test_redis_outage_does_not_expire_running_steps(world: Callable[..., World], own_server: RedisServer) -> None:
    run = world(plan_of("a"), own_server, lease=0.4)
    sweep(run.coordinator)
    work = run.deliver(run.queue.pop())
    assert work is not None

    own_server.stop()
    time.sleep(0.5)  # longer than a lease, during which no worker can renew
    own_server.start()
    sweep(run.coordinator)

    assert run.stored.events("lease_lost") == []
    assert run.stored.step("status:0") == "running"
