"""Client reads and writes, the sweeper's indices, and outages of Redis."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from longshore.orchestration.errors import ConfigError, StoreUnavailable
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.store import connection
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.clock import Clock
from longshore.orchestration.store.run_store import Store
from tests.servers import SOON, RedisServer, free_port
from tests.store.stored_run import LEASE, StoredRun, settings_for

pytestmark = pytest.mark.store


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis_server.flush()
    return redis_server


@pytest.fixture
def store(stored: StoredRun) -> Store:
    return stored.store


@pytest.fixture
def connect() -> Iterator[Callable[..., Store]]:
    """Create stores with the given settings."""
    made: list[Any] = []

    def make(url: str, **settings: Any) -> Store:
        store = Store(settings_for(url, **settings))
        made.append(store.client)
        return store

    yield make
    for client in made:
        client.close()


def remove_from_inbox(store: Store, run_id: str) -> None:
    mark = store.look(run_id).inbox
    assert mark is not None
    store.seen(run_id, mark)


def body(n: int = 0) -> dict[str, Any]:
    """A request with a unique plan name."""
    return {"plan": {"name": "p"}, "n": n}


def submit(store: Store, run_id: str, n: int = 0) -> dict[str, Any] | None:
    return Admission(store).submit(run_id, body(n))


# --- requests and commands ------------------------------------------------------------------------------


def test_request_is_stored_once_and_enters_the_inbox(store: Store) -> None:
    assert submit(store, "r1", 1) is None
    assert submit(store, "r1", 2) == body(1)

    assert store.body("r1") == body(1)
    assert store.waiting() == ["r1"]
    assert (store.state("r1"), store.fields("r1")) == (None, {})


def test_concurrent_requests_create_one_run(server: RedisServer, connect: Callable[..., Store]) -> None:
    stores = [connect(server.url) for _ in range(8)]
    answers: list[dict[str, Any] | None] = []
    start = threading.Barrier(len(stores))

    def ask(n: int, store: Store) -> None:
        start.wait()
        answers.append(submit(store, "r1", n))

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers.count(None) == 1
    assert all(answer == stores[0].body("r1") for answer in answers if answer is not None)


def test_commands_are_stored_in_order_and_enter_the_inbox(store: Store) -> None:
    submit(store, "r1")
    here = socket.gethostname()
    first = store.command("r1", "cancel", reason="why", keep=True)
    second = store.command("r1", "undo")

    assert store.commands("r1") == [
        (first, {"kind": "cancel", "actor": "ann", "origin": here, "reason": "why", "keep": "1"}),
        (second, {"kind": "undo", "actor": "ann", "origin": here, "reason": "", "keep": ""}),
    ]
    assert store.waiting() == ["r1"]
    remove_from_inbox(store, "r1")
    assert store.waiting() == []


# --- reading --------------------------------------------------------------------------------------------


def test_look_returns_run_commands_and_time(stored: StoredRun) -> None:
    submit(stored.store, stored.run_id)
    unknown = stored.store.look("unknown")
    assert (unknown.fields, unknown.commands, unknown.inbox) == ({}, [], None)
    stored.begin(0)
    asked = stored.store.command(stored.run_id, "cancel")

    seen = stored.store.look(stored.run_id)
    fields, commands, now = seen.fields, seen.commands, seen.now

    assert fields == stored.store.fields(stored.run_id)
    assert fields["state"] == stored.store.state(stored.run_id) == "running"
    assert [command_id for command_id, _ in commands] == [asked]
    assert abs(now - stored.store.now()) < 5000


def test_steps_are_read_in_the_reducers_form(stored: StoredRun) -> None:
    stored.begin(0, 1, skipped={2: "dependency failed"})
    stored.claim(0)
    stored.complete(0, stored.step("fence:0") or "", "failed", no_effect=True)
    stored.put(steps={"ustatus:0": "undo_failed"})

    records = stored.store.step_records(stored.run_id, [0, 1, 2, 3])

    assert [record.status for record in records.values()] == [
        *(StepState.FAILED, StepState.READY, StepState.SKIPPED, StepState.PENDING),
    ]
    assert [record.attempts for record in records.values()] == [1, 0, 0, 0]
    assert (records[0].undo, records[1].undo) == (UndoState.UNDO_FAILED, None)
    assert (records[0].no_effect, records[1].no_effect) == (True, False)
    assert records[2].reason == "dependency failed"
    assert stored.store.step_records(stored.run_id, []) == {}


def test_everything_returns_run_and_step_hashes(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.everything(stored.run_id) == stored.dump()[:2]
    assert stored.store.everything("unknown") == ({}, {})


def test_events_are_read_after_a_cursor(stored: StoredRun) -> None:
    stored.begin(0)
    entries = stored.store.read_events(stored.run_id)

    assert [fields["event"] for _, fields in entries] == ["run_created", "run_started", "level_started"]
    assert stored.store.read_events(stored.run_id, entries[0][0]) == entries[1:]
    assert stored.store.read_events(stored.run_id, entries[-1][0], block_ms=1) == []
    assert stored.store.read_events(stored.run_id, count=1) == entries[:1]


def test_event_wakes_a_blocked_reader(stored: StoredRun, server: RedisServer) -> None:
    stored.begin(0)
    cursor = stored.store.read_events(stored.run_id)[-1][0]
    timer = threading.Timer(0.1, lambda: StoredRun(server.url, run_id=stored.run_id).claim(0))
    timer.start()
    began = time.monotonic()

    entries = stored.store.read_events(stored.run_id, cursor, block_ms=60_000)

    timer.join()
    assert [fields["event"] for _, fields in entries] == ["step_started"]
    assert time.monotonic() - began < SOON


# --- the indices ----------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_after_waiting_ones(store: Store) -> None:
    for n, run_id in enumerate(["old", "middle", "new"]):
        store.create(run_id, {"plan": "p"})
        store.client.zadd(store.keys.runs, {run_id: 1000 + n})
    submit(store, "waits")
    submit(store, "old")

    assert sorted(store.runs()[:2]) == ["old", "waits"]
    assert store.runs()[2:] == ["new", "middle"]
    assert len(store.runs(limit=1)) == 1
    assert len(store.runs(limit=3)) == 3
    remove_from_inbox(store, "waits")
    remove_from_inbox(store, "old")
    assert store.runs(limit=2) == ["new", "middle"]


def test_run_is_indexed_with_its_record(store: Store) -> None:
    """A worker may die at any point, and no sweep finds a record without an index entry."""
    made, fields = store.create("r1", {"plan": "p"}, audit={"what": "start"})

    assert made
    assert fields == store.fields("r1")
    assert store.runs() == ["r1"]
    assert store.live_count() == 1
    assert store.create("r1", {"plan": "another"}, audit={"what": "start"}) == (False, fields)
    assert store.client.xlen(store.keys.audit) == 1


def test_creation_takes_the_run_out_of_the_inbox(store: Store) -> None:
    submit(store, "r1")
    found = store.look("r1").inbox

    store.create("r1", {"plan": "p"}, inbox=None if found is None else found + 1)
    assert store.look("r1").inbox == found, "the entry of a later command was removed"
    store.create("r1", {"plan": "p"}, inbox=found)
    assert store.look("r1").inbox is None


def test_live_run_is_due_once_a_lease(store: Store) -> None:
    now = store.now()
    store.look_at("later", now + 60_000)
    store.look_at("due", now - 1)

    assert store.due(LEASE) == ["due"]
    assert store.due(LEASE) == []

    score = store.client.zscore(store.keys.live, "due")
    assert now + LEASE * 1000 <= float(str(score)) <= now + LEASE * 1000 + 5000
    store.remove_from_live("due")
    store.remove_from_live("due")
    assert store.live_count() == 1


def test_due_time_can_only_move_forward(store: Store) -> None:
    store.look_at("r1", 5000, sooner=True)
    store.look_at("r1", 9000, sooner=True)
    assert store.client.zscore(store.keys.live, "r1") == 5000
    store.look_at("r1", 3000, sooner=True)
    assert store.client.zscore(store.keys.live, "r1") == 3000
    store.look_at("r1", 9000)
    assert store.client.zscore(store.keys.live, "r1") == 9000


def test_terminal_run_is_not_rescheduled(store: Store) -> None:
    """`due` reschedules the runs that it read; a run that another sweeper removed meanwhile must stay removed."""
    store.look_at("r1", 0)
    found = store.client.zrangebyscore

    def read_and_end_the_run(*args: Any, **kwargs: Any) -> Any:
        result = found(*args, **kwargs)
        store.remove_from_live("r1")
        return result

    store.client.zrangebyscore = read_and_end_the_run  # type: ignore[method-assign]
    store.due(LEASE)
    assert store.live_count() == 0


def test_all_due_runs_are_swept_over_several_sweeps(store: Store) -> None:
    for n in range(250):
        store.look_at(f"r{n}", n)

    seen = [run_id for _ in range(4) for run_id in store.due(LEASE)]

    assert sorted(seen) == sorted(f"r{n}" for n in range(250))


def test_expired_attempts_are_listed_by_lease_member(stored: StoredRun) -> None:
    stored.begin(0, 1)
    stored.claim(0)
    stored.claim(1)
    stored.end_lease("1")
    assert stored.store.expired(stored.run_id, stored.store.now()) == ["1"]


def backdate_tick(store: Store, ago: float) -> None:
    """Backdate the last sweep by some seconds."""
    store.client.hset(store.keys.clock, "tick", store.now() - round(ago * 1000))


def test_leases_expire_only_while_a_sweeper_runs(store: Store) -> None:
    """After a gap every worker has one whole lease to renew."""
    clock = Clock(store)
    assert clock.look()
    assert clock.look()

    backdate_tick(store, 1.1 * LEASE)
    assert not clock.look()
    assert not clock.look()
    store.client.hset(store.keys.clock, "pause", store.now() - 1)
    assert clock.look()
    # The clock of Redis was set back.
    backdate_tick(store, -10 * LEASE)
    assert not clock.look()


def test_outage_longer_than_a_lease_delays_expiry(store: Store) -> None:
    """Workers renew every third of a lease, so their leases expire two thirds of a lease after the outage begins."""
    backdate_tick(store, 0.8 * LEASE)
    assert not Clock(store).look()


def test_sweepers_returning_together_expire_nothing(server: RedisServer, connect: Callable[..., Store]) -> None:
    one, other = connect(server.url), connect(server.url)
    backdate_tick(one, 2 * LEASE)
    whole, answers = one.client.hset, []

    def late(*args: Any, **kwargs: Any) -> Any:
        answers.append(Clock(other).look())
        found = whole(*args, **kwargs)
        answers.append(Clock(other).look())
        return found

    one.client.hset = late  # type: ignore[method-assign]
    answers.append(Clock(one).look())

    assert answers == [False, False, False]


def test_stale_reader_does_not_remove_a_newer_inbox_entry(store: Store) -> None:
    submit(store, "r1")
    slow = store.look("r1").inbox
    assert slow is not None

    store.command("r1", "cancel")
    store.seen("r1", slow)
    assert store.waiting() == ["r1"]

    remove_from_inbox(store, "r1")  # another reader removes the entry before the next command
    store.command("r1", "undo")
    store.seen("r1", slow)
    assert store.waiting() == ["r1"]


# --- output and dry runs --------------------------------------------------------------------------------


def test_step_output_keeps_its_last_thousand_lines(store: Store) -> None:
    store.add_log("r1", 0, [f"line {n}" for n in range(3000)])
    store.add_log("r1", 0, ["the end"])
    store.add_log("r1", 1, [])

    lines = [line for _, _, line in store.log("r1", 0)]

    assert 1000 <= len(lines) < 1200
    assert lines[-2:] == ["line 2999", "the end"]
    assert list(store.log("r1", 1)) == []


def test_dry_run_expires(store: Store) -> None:
    store.put_dry_run("p1", '{"a":1}', 0.05)
    store.answer("p1", '{"index":0}', 0.05)
    assert store.dry_run("p1") == '{"a":1}'

    time.sleep(0.1)

    assert store.dry_run("p1") is None
    assert store.client.keys("*") == []


def test_dry_run_is_deleted_by_its_client(store: Store) -> None:
    store.put_dry_run("p1", "{}", 60)
    store.answer("p1", '{"index":0}', 60)
    store.answer("p1", '{"index":1}', 60)

    assert store.next_answer("p1", 1.0) == {"index": 0}
    store.drop_dry_run("p1")

    assert store.next_answer("p1", 0.05) is None
    assert store.client.keys("*") == []


# --- namespaces -----------------------------------------------------------------------------------------


def test_two_installations_on_one_redis_are_isolated(server: RedisServer, connect: Callable[..., Store]) -> None:
    ours, theirs = connect(server.url), connect(server.url, namespace="other")
    submit(ours, "r1", 1)
    stored = StoredRun(server.url, store=ours, run_id="r1")
    stored.begin(0)
    ours.command("r1", "cancel")
    ours.put_dry_run("p1", "{}", 60)
    ours.answer("p1", "{}", 60)
    ours.add_log("r1", 0, ["line"])

    assert theirs.runs() == theirs.waiting() == theirs.due(LEASE) == []
    assert (theirs.body("r1"), theirs.dry_run("p1"), theirs.next_answer("p1", 0.05)) == (None, None, None)
    assert (theirs.live_count(), theirs.look("r1").fields, list(theirs.log("r1", 0))) == (0, {}, [])
    assert submit(theirs, "r1", 2) is None
    assert ours.body("r1") == body(1)
    names = [str(key) for key in ours.client.keys("*")]
    assert all(name.startswith(("stored:", "other:")) for name in names)


# --- outages of Redis -----------------------------------------------------------------------------------


def one_line(error: StoreUnavailable) -> str:
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_unreachable_server_is_one_line_within_the_timeout(connect: Callable[..., Store]) -> None:
    store = connect(f"redis://:hidden@127.0.0.1:{free_port()}/0", connect_timeout=30.0)
    began = time.monotonic()

    with pytest.raises(StoreUnavailable) as caught:
        submit(store, "r1")

    assert time.monotonic() - began < SOON
    text = one_line(caught.value)
    assert "redis://127.0.0.1" in text
    assert "LONGSHORE_REDIS_URL" in text
    assert "refused" in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    "url", ["redis://user:hidden@{}", "redis://{}?password=hidden", "redis://{}?db=1&password=hidden"]
)
def test_password_is_masked_in_errors(connect: Callable[..., Store], url: str) -> None:
    store = connect(url.format("127.0.0.1:1/0"))
    assert "hidden" not in store.shown_url()
    assert store.shown_url().startswith("redis://127.0.0.1:1/0")


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port that accepts connections and never answers, like a stopped or overloaded server."""
    with socket.create_server(("127.0.0.1", free_port()), backlog=64) as listener:
        yield listener.getsockname()[1]


def test_unresponsive_server_times_out(connect: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LONGEST_BLOCK", -0.5)  # each attempt waits only for the connection timeout
    raised: list[StoreUnavailable] = []

    def ask(patient: Store) -> None:
        try:
            patient.state("r1")
        except StoreUnavailable as error:
            raised.append(error)

    with silent_server() as port:
        asked = connect(f"redis://127.0.0.1:{port}/0", connect_timeout=0.5)
        thread = threading.Thread(target=ask, args=(asked,), daemon=True)
        thread.start()
        thread.join(timeout=20.0)
        given_up = list(raised)
    thread.join(timeout=10.0)
    assert given_up


def test_wrong_password_is_one_line(server: RedisServer, connect: Callable[..., Store]) -> None:
    store = connect(server.url.replace("redis://", "redis://unknown:hidden@"))
    with pytest.raises(StoreUnavailable, match="invalid username-password") as caught:
        store.state("r1")
    assert "hidden" not in one_line(caught.value)


def test_invalid_redis_url_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"the Redis URL is invalid.*redis://host:6379/0"):
        Store(settings_for("http://example.org"))


@contextlib.contextmanager
def full(stored: StoredRun) -> Iterator[None]:
    """A server with exhausted memory and without eviction."""
    stored.redis.config_set("maxmemory-policy", "noeviction")
    stored.redis.config_set("maxmemory", "1")
    try:
        yield
    finally:
        stored.redis.config_set("maxmemory", "0")


def test_read_only_server_is_one_line(stored: StoredRun) -> None:
    writes: list[Callable[[], object]] = [
        lambda: submit(stored.store, "r1"),
        lambda: stored.store.command("there", "cancel"),
        lambda: stored.store.put_dry_run("p1", "{}", 60),
        lambda: stored.store.add_log("r1", 0, ["line"]),
        lambda: stored.store.look_at("r1", 0),
    ]
    submit(stored.store, "there")
    before = sorted(stored.redis.keys("*"))
    with full(stored):
        for write in writes:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="maxmemory") as caught:
                write()
            assert time.monotonic() - began < SOON
            assert "redis://127.0.0.1" in one_line(caught.value)
        assert stored.store.runs() == ["there"]  # reads still work
        assert sorted(stored.redis.keys("*")) == before


#: Arguments with which each script writes, in a run prepared by `lay_for`.
WRITES: dict[str, tuple[str, tuple[object, ...]]] = {
    "abort": ("running", ("cancel", "", "", "")),
    "claim": ("running", (0, "", "owner", "task", 1000, "", "", "one")),
    "command": ("running", ("1-1", "cancel", "eve", "", "", 1)),
    "complete": ("running", (1, "", "77", "failed", "{}", "", "1", "", "", 1000, "")),
    "create": ("", ("r", "", 1000, 10, 0, "plan", "p")),
    "drain": ("aborting", (0, "")),
    "expire": ("running", (1, "", "1", 3, "{}", "lost", "", "", "", "")),
    "hold": ("pending", ("the run waits for admission",)),
    "finish": ("running", ("running", "failed", 0, "r", "", 2)),
    "journal": ("running", (1, "", "77", "r", "b")),
    "open_level": ("running", ("running", 0, "running", 1, 0, "", 0, "r", 2, "")),
    "open_undo": ("aborting", ("aborting", "", 0, 1000, 1000, 1, 0, 0)),
    "park": ("running", (1, "", "77", 1000, "{}", "a person")),
    "renew": ("running", (99_000, "1", "own")),
    "reopen": ("failed", ("1-1", "ann", "", 0, -1, "", 0)),
    "resolve": ("failed", ("1-1", "ann", "", "done", 0)),
    "store_units": ("running", ("running", 0, 0, 2, "token", 0, "1", "")),
    "suspend": ("running", ("breaker", "it is down", "billing", "", "")),
    "unsuspend": ("suspended", ("breaker", 0, "", 0, "", "", "", 0)),
    "resend": ("running", ("", 1000, 600_000, 0, "", "")),
    "retry": ("running", (1, "", "77", 0, 1000, "busy", "", "", "", "")),
}


@pytest.mark.parametrize("name", sorted(WRITES))
def test_script_refused_for_memory_changes_nothing_and_recovers(stored: StoredRun, name: str) -> None:
    state, args = WRITES[name]
    if state:
        stored.lay(
            state,
            left=0,
            steps={"status:0": "ready", "status:1": "running", "fence:1": "77", "owner:1": "owner", "attempts:1": 1},
        )
        stored.put(steps={"sent:0": stored.store.now(), "sent_until:0": 0})
        if state == "suspended":
            stored.put(suspended_state="running", hold="breaker")
    if name not in {"finish", "open_undo"}:  # these scripts wait for running steps
        stored.redis.zadd(stored.keys.leases, {"1": 1})
    before = stored.dump()

    with full(stored):
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            stored.script(name, *args)
        assert stored.dump() == before

    stored.script(name, *args)
    assert stored.dump() != before


# --- a crash of Redis -----------------------------------------------------------------------------------


@pytest.fixture
def own_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with RedisServer("--appendfsync", "always") as server:
        yield server


def test_record_survives_a_killed_redis(own_server: RedisServer) -> None:
    stored = StoredRun(own_server.url)
    stored.begin(0, 1)
    grant = stored.claim(0)
    stored.journal(0, grant.fence, "r", "b")
    before = stored.dump()

    own_server.restart(signal.SIGKILL)

    assert stored.dump() == before
    assert stored.claim(0) == replace(grant, rendered="r", step_rendered="r", before="b", version=grant.version)
    assert stored.complete(0, grant.fence).accepted
    assert stored.claim(1).attempt == 1
    assert stored.run("state") == RunState.RUNNING
    stored.close()


# --- connections ------------------------------------------------------------------------------------------


def test_waiting_threads_share_the_connection_pool(redis_server: RedisServer) -> None:
    redis_server.flush()
    # The client name identifies this test's connections on the shared server.
    store = Store(settings_for(f"{redis_server.url}?client_name=crowded", max_connections=8))
    began = threading.Barrier(60)
    errors: list[Exception] = []

    def wait() -> None:
        began.wait()
        try:
            for _ in range(3):
                store.read_events("r", block_ms=300)
                store.newest_event("r")
        except StoreUnavailable as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(60)]
    for thread in threads:
        thread.start()
    most, watching = 0, redis_server.client()
    while any(thread.is_alive() for thread in threads):
        most = max(most, sum(each["name"] == "crowded" for each in watching.client_list()))
        time.sleep(0.02)
    for thread in threads:
        thread.join()

    assert errors == []
    assert 1 < most <= 8


def test_exhausted_connection_pool_names_its_setting(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CONNECTION", 0.05)
    store = Store(settings_for(redis_server.url, max_connections=2))
    taken = [store.client.connection_pool.get_connection() for _ in range(2)]

    with pytest.raises(StoreUnavailable, match="LONGSHORE_MAX_CONNECTIONS"):
        store.now()

    for one in taken:
        store.client.connection_pool.release(one)
    assert store.now()
