"""Keys of a wrong type and unreadable entries affect their own run only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longshore.orchestration.client.request import shared
from longshore.orchestration.installation import doctor, integrity
from longshore.orchestration.jobs.discovery import JobDiscovery
from longshore.orchestration.monitoring import counters
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs import events
from longshore.orchestration.runs.search import Filter, search
from longshore.orchestration.schedules.due_times import ScheduleMarks
from longshore.orchestration.states import RunState
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.connection import connect
from longshore.orchestration.store.hosts import Hosts, Node
from longshore.orchestration.store.keys import RUN_TYPES, TYPES
from longshore.orchestration.store.locks import Locks
from longshore.orchestration.store.queue_lengths import queue_lengths
from longshore.tasks.control import coordinator
from tests.servers import RedisServer
from tests.store.simulated_workers import ADVANCE, Message, QueueCanvas, World
from tests.store.stored_run import settings_for
from tests.sweeping import sweep

pytestmark = pytest.mark.store

NO_TEXT = b"\xff\xfe"
GARBAGE = [NO_TEXT, b"{", b"[]", b"{}", b"[" * 100_000]


@pytest.fixture
def world(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> World:
    """A pending run of an installation with one host."""
    monkeypatch.setattr(coordinator, "Canvas", QueueCanvas)
    redis_server.flush()
    plan = Plan("p", concurrency={"key": "one"})
    plan.step("a", "noop.execute")
    made = World(redis_server.url, plan, connect(settings_for(redis_server.url)))
    body = {"v": 1, "plan": plan.to_dict(), "params": {}, "files": {}, "actor": "ann", "digest": plan.digest({}, {})}
    Admission(made.store).submit(made.run_id, body | shared(plan, {}))
    made.queue.send(Message(ADVANCE))
    Hosts(made.store).register("web1", Node("w@web1", queues=("control", "docker"), labels={"role": "web"}))
    Breakers(made.store).hold("registry", "away")
    made.stored.redis.sadd(made.store.keys.locks, "shop")
    return made


def write_wrong_type(world: World, key: str) -> None:
    """Write a value of another type under the key, like another user of Redis."""
    world.stored.redis.delete(key)
    world.stored.redis.lpush(key, "spoilt")


def dead_letters(world: World) -> list[str]:
    return [f"{letter['queue']}: {letter['why']}" for letter in world.store.dead_letters()]


def with_namespace(world: World, name: str) -> str:
    return f"{world.store.keys.namespace}:{name}"


INDICES = [name for name in TYPES if not name.endswith(":")]
MEMBERS = [
    "plan:p",
    "slot:one",
    "host:web1",
    "breaker:registry",
    "half-open:registry",
    "blocked:registry",
    "lock:shop",
]


@pytest.mark.parametrize("begun", [False, True], ids=["before it begins", "while it runs"])
@pytest.mark.parametrize("name", [*INDICES, *MEMBERS])
def test_key_of_a_wrong_type_is_renamed_without_stopping_runs(world: World, name: str, begun: bool) -> None:
    if begun:
        sweep(world.coordinator)
    write_wrong_type(world, with_namespace(world, name))

    integrity.repair(world.store)
    world.settle()

    assert world.store.state(world.run_id) == RunState.SUCCEEDED
    assert integrity.wrong_keys(world.store) == []
    assert any(with_namespace(world, name) in letter for letter in dead_letters(world))
    assert world.stored.redis.exists(with_namespace(world, f"damaged:{name}"))


@pytest.mark.parametrize("name", ["inbox", "live", "queue", "admission-requests", "admitted", "ended", "runs"])
def test_sweep_renames_a_key_of_a_wrong_type_and_continues(world: World, name: str) -> None:
    write_wrong_type(world, with_namespace(world, name))

    sweep(world.coordinator)
    world.settle()

    assert world.store.state(world.run_id) == RunState.SUCCEEDED


@pytest.mark.parametrize("name", ["control", "docker", "unacked", "unacked_index", "_kombu.binding.control"])
def test_broker_key_of_a_wrong_type_is_renamed(world: World, name: str) -> None:
    key = f"{world.store.settings.broker_prefix()}{name}"
    world.stored.redis.xadd(key, {"no": "queue"})

    assert [wrong.key for wrong in integrity.repair(world.store)] == [key]

    assert not world.stored.redis.exists(key)


@pytest.mark.parametrize("name", ["admission-order", "tick", "pause", "job-questions"])
def test_invalid_counter_stops_no_run(world: World, name: str) -> None:
    world.stored.redis.set(with_namespace(world, name), "no number")
    integrity.repair(world.store)

    world.settle()

    assert world.store.state(world.run_id) == RunState.SUCCEEDED


@pytest.mark.parametrize("name", ["tick", "pause"])
def test_sweep_ignores_an_invalid_time(world: World, name: str) -> None:
    sweep(world.coordinator)
    world.stored.redis.set(with_namespace(world, name), "no time")

    sweep(world.coordinator)


def test_lost_queue_counter_continues_after_waiting_runs(world: World) -> None:
    world.stored.redis.zadd(world.store.keys.queue, {"waits": 70})
    write_wrong_type(world, world.store.keys.admission_order)

    integrity.repair(world.store)

    assert int(world.stored.redis.incr(world.store.keys.admission_order)) > 70


def test_lost_run_queue_is_rebuilt(world: World) -> None:
    write_wrong_type(world, world.store.keys.queue)

    integrity.repair(world.store)

    assert world.stored.redis.zrange(world.store.keys.queue, 0, -1) == [world.run_id]


# --- entries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [NO_TEXT, b"", b"..", b"../../etc", b"x" * 200, b"a\nb"], ids=repr)
@pytest.mark.parametrize("index", ["inbox", "live"])
def test_invalid_run_id_becomes_one_dead_letter(world: World, index: str, entry: bytes) -> None:
    world.stored.redis.zadd(with_namespace(world, index), {entry: 1})

    sweep(world.coordinator)
    sweep(world.coordinator)

    assert world.stored.redis.zscore(with_namespace(world, index), entry) is None
    assert len(dead_letters(world)) == 1
    assert "run id" in dead_letters(world)[0]
    world.settle()
    assert world.store.state(world.run_id) == RunState.SUCCEEDED


@pytest.mark.parametrize("index", ["queue", "admitted", "ended", "runs"])
def test_purge_makes_one_dead_letter_of_an_invalid_run_id(world: World, index: str) -> None:
    world.stored.redis.zadd(with_namespace(world, index), {NO_TEXT: 1e15})

    world.coordinator.lifecycle.purge_expired()

    assert world.stored.redis.zscore(with_namespace(world, index), NO_TEXT) is None
    assert len(dead_letters(world)) == 1


@pytest.mark.parametrize(
    ("name", "field"),
    [("admission-requests", "other"), ("job-snapshots", "web1"), ("schedule-marks", "nightly"), ("counters", "runs"),
     ("host:web1", "node:w@web1"), ("host:web1", "beat:w@web1"), ("host:web1", "drained"),
     ("host:web1", "last")],
)  # fmt: skip
@pytest.mark.parametrize(
    "garbage", [NO_TEXT, b"{", b"[]", b"{}", b"[" * 100_000], ids=["bytes", "cut", "list", "{}", "deep"]
)
def test_unreadable_field_becomes_one_dead_letter(world: World, name: str, field: str, garbage: bytes) -> None:
    world.stored.redis.hset(with_namespace(world, name), field, garbage)
    store = world.store

    # All readers ignore the field.
    Hosts(store).all(), JobDiscovery(store).snapshots(), ScheduleMarks(store).marks(), Admission(store).known()
    counters.totals(store), Admission(store).next(), doctor.examine(store)
    world.coordinator.lifecycle.purge_expired()

    assert world.stored.redis.hget(with_namespace(world, name), field) is None
    assert len(dead_letters(world)) == 1
    world.settle()
    assert world.store.state(world.run_id) == RunState.SUCCEEDED


def test_ownerless_lock_is_released(world: World) -> None:
    world.stored.redis.set(world.store.keys.lock("shop"), "no holder")
    assert Locks(world.store).held() == []

    world.coordinator.lifecycle.purge_expired()

    assert world.stored.redis.get(world.store.keys.lock("shop")) is None
    assert len(dead_letters(world)) == 1


def test_incomplete_breaker_is_listed(world: World) -> None:
    world.stored.redis.delete(world.store.keys.breaker("registry"))
    world.stored.redis.hset(world.store.keys.breaker("registry"), "until", "soon")

    assert [breaker.service for breaker in Breakers(world.store).open()] == ["registry"]
    assert Breakers(world.store).ask("registry", "r").allowed


# --- runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN_TYPES)
def test_run_with_a_key_of_a_wrong_type_becomes_one_dead_letter(world: World, name: str) -> None:
    other = "other"
    Admission(world.store).submit(other, (world.store.body(world.run_id) or {}) | {"concurrency": None})
    prefix = world.store.keys.of(other).run.removesuffix("run")
    world.stored.redis.delete(f"{prefix}{name}")
    write_wrong_type(world, f"{prefix}{name}")

    for _ in range(3):
        sweep(world.coordinator)
        world.stored.redis.zadd(world.store.keys.live, {other: 1}, xx=True)

    assert world.stored.redis.zscore(world.store.keys.live, other) is None
    assert world.stored.redis.zscore(world.store.keys.inbox, other) is None
    assert len(dead_letters(world)) == 1
    assert prefix in dead_letters(world)[0]
    world.coordinator.lifecycle.purge_expired()
    world.settle()
    assert world.store.state(world.run_id) == RunState.SUCCEEDED


@pytest.mark.parametrize(
    "field", ["state", "level", "undo_level", "left", "cause", "deadline", "undo_deadline", "epoch", "suspended_state"]
)
def test_unreadable_record_becomes_one_dead_letter(world: World, field: str) -> None:
    sweep(world.coordinator)
    world.stored.put(**{field: "\udcff garbage"})

    for _ in range(3):
        world.stored.redis.zadd(world.store.keys.live, {world.run_id: 1}, xx=True)
        sweep(world.coordinator)

    assert world.store.live_count() == 0
    assert len(dead_letters(world)) == 1
    assert world.run_id not in [row.run_id for row in search(world.store, Filter())] or field != "state"


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", "null", "{}", "[" * 100_000, '{"plan": {}, "params": 1, "files": 2}']
)
def test_unreadable_request_becomes_one_dead_letter(world: World, text: str) -> None:
    world.stored.redis.set(world.store.keys.of("damaged").request, text)
    world.stored.redis.zadd(world.store.keys.inbox, {"damaged": 1})

    sweep(world.coordinator)
    sweep(world.coordinator)

    assert "damaged" not in world.store.waiting()
    assert len(dead_letters(world)) == 1


def test_run_with_a_replaced_request_keeps_its_cached_plan(world: World) -> None:
    sweep(world.coordinator)
    world.stored.redis.set(world.store.keys.of(world.run_id).request, "no JSON")
    stranger = world.new_coordinator(world.store)

    world.age(11)
    sweep(stranger)
    sweep(stranger)

    (refused,) = audit.lines(world.store, refused=True)
    assert "replaced after the run began" in refused.why
    world.settle()
    assert world.store.state(world.run_id) == RunState.SUCCEEDED


def test_unreadable_command_does_not_block_the_next(world: World) -> None:
    sweep(world.coordinator)
    commands = world.store.keys.of(world.run_id).commands
    garbage: list[dict[Any, Any]] = [{"kind": "approve", "step": "x"}, {"kind": "resolve", "step": "77"}, {"step": ""}]
    for command in [*garbage, {b"\xff": NO_TEXT}]:
        world.stored.redis.xadd(commands, command)
    world.store.command(world.run_id, "cancel")

    sweep(world.coordinator)

    assert world.stored.run("cause") == "cancel"


def test_invalid_waits_and_leases_do_not_block_a_runs_end(world: World) -> None:
    sweep(world.coordinator)
    world.stored.redis.zadd(world.store.keys.of(world.run_id).waits, {NO_TEXT: 1, "77": 2, "0": float("inf")})
    world.stored.redis.zadd(world.store.keys.of(world.run_id).leases, {NO_TEXT: 1, "77": 2})

    world.settle()

    assert world.store.state(world.run_id) == RunState.SUCCEEDED


@pytest.mark.parametrize("entry", [{"x": NO_TEXT}, {"event": "x", "at": "?"}, {"event": "x", "at": "1", "step": "77"}])
def test_invalid_event_entries_are_ignored(world: World, entry: dict[Any, Any]) -> None:
    sweep(world.coordinator)
    before = events.read(world.store, world.run_id, world.plan)
    world.stored.redis.xadd(world.store.keys.of(world.run_id).events, entry)

    assert events.read(world.store, world.run_id, world.plan) == before


def test_invalid_messages_are_counted_and_ignored(world: World) -> None:
    queue = f"{world.store.settings.broker_prefix()}control"
    for message in (NO_TEXT, b"{", b"[" * 100_000, json.dumps({"headers": {"task": "longshore.step"}, "body": "W10="})):
        world.stored.redis.lpush(queue, message)

    assert {backlog.queue: backlog.length for backlog in queue_lengths(world.store)}["control"] == 4


def test_doctor_reports_a_key_of_a_wrong_type_with_a_remedy(world: World) -> None:
    for name in ("live", "hosts", "admission-requests"):
        write_wrong_type(world, with_namespace(world, name))

    found = [finding for finding in doctor.examine(world.store) if finding.grade == "error"]

    for name in ("live", "hosts", "admission-requests"):
        assert any(with_namespace(world, name) in finding.what and "RENAME" in finding.remedy for finding in found)


def test_scrape_counts_runs_beside_a_damaged_one(world: World) -> None:
    world.settle()
    world.stored.redis.zadd(world.store.keys.ended, {"damaged": world.store.now()})
    world.stored.redis.set(world.store.keys.of("damaged").request, "no JSON")
    world.stored.redis.hset(world.store.keys.counted_runs, world.run_id, "no JSON")

    counts: dict[Any, float] = counters.totals(world.store).counts

    assert counts[counters.SEP.join(("runs", "p", "succeeded"))] == 1
