"""The scripts that move a run: what each does, what it refuses, and that twice is once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from importlib.resources import files

import pytest
import redis
from redis.crc import key_slot

from longshore.orchestration import lua
from longshore.orchestration.saga import RunRecord
from longshore.orchestration.states import TERMINAL, Cause, RunState
from longshore.orchestration.store import Store
from tests.servers import RedisServer
from tests.store.bed import LEASE, Bed, settings_for

pytestmark = pytest.mark.store

R = RunState


def but(*states: RunState) -> list[RunState]:
    """All states of a run except these."""
    return [state for state in RunState if state not in states]


# --- all of them ----------------------------------------------------------------------------------------


def test_every_script_is_here() -> None:
    assert lua.names() == [
        *(
            "abort",
            "answer",
            "ask",
            "claim",
            "command",
            "complete",
            "create",
            "drain",
            "expire",
            "finish",
            "forget",
            "hold",
            "journal",
        ),
        *("open_level", "open_undo", "park", "renew", "reopen", "resend", "resolve", "retry", "settle", "shift"),
        *("suspend", "unsuspend"),
    ]


@pytest.mark.parametrize("name", lua.names())
def test_a_script_says_what_it_does_and_what_it_is_given(name: str) -> None:
    own = files(lua).joinpath(f"{name}.lua").read_text()
    header = re.match(r"(--.*\n)+", own)
    assert header is not None
    for word in ("ARGV", "RETURNS", "EVENTS"):
        assert f"-- {word}" in header[0]


@pytest.mark.parametrize("name", lua.names())
def test_a_script_runs_where_nothing_but_redis_is(name: str) -> None:
    source = lua.source(name)
    assert not re.search(r"cjson|cmsgpack|\bos\.|math\.random|sha1hex|loadstring", source)
    assert source.count("redis.call('TIME')") == 1


def live_a_whole_life(bed: Bed) -> None:
    """A run in which each script has its part: one step fails, one is lost, one is taken back."""
    bed.begin(0, 1, 2)
    done = bed.claim(0)
    bed.journal(0, done.fence, '{"a":1}', '{"b":2}')
    bed.retry(0, done.fence)
    done = bed.claim(0, owner="task@one/2")
    bed.store.renew(bed.run_id, [("0", "task@one/")])
    bed.complete(0, done.fence)
    bed.claim(1)
    bed.end_lease("1")
    bed.expire(1)
    bed.age(LEASE + 1)
    assert bed.store.resend(bed.run_id, "", [1, 2]) == ([1, 2], [])
    failed = bed.claim(2)
    bed.complete(2, failed.fence, "failed", error="no", stops=True)
    bed.store.drain(bed.run_id, [(1, False)])
    bed.open_undo(0, [0])
    undo = bed.claim(0, "u")
    bed.complete(0, undo.fence, "undo_failed", side="u")
    bed.store.finish(bed.run_id, R.UNDOING, R.UNDO_FAILED, [])
    bed.store.carry_out(bed.run_id, "1-1", {"kind": "undo", "actor": "eve"}, 1, [0])
    bed.open_undo(0, [0])
    bed.complete(0, bed.claim(0, "u").fence, "undone", side="u")
    bed.store.finish(bed.run_id, R.UNDOING, R.UNDONE, [], epoch=1)


def test_every_transition_is_one_version_and_one_event(bed: Bed) -> None:
    live_a_whole_life(bed)

    events = bed.events()
    assert [int(event["ver"]) for event in events] == list(range(1, len(events) + 1))
    assert bed.run("ver") == str(len(events))
    times = [float(event["at"]) for event in events]
    assert times == sorted(times)
    assert {event["event"] for event in events} == {
        *("run_created", "run_started", "level_started", "step_started", "step_retrying", "step_ended", "lease_lost"),
        *("message_resent", "run_aborting", "run_undoing", "undo_level_started", "undo_started", "undo_ended"),
        *("run_ended", "command"),
    }


def test_time_is_that_of_redis(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    began = bed.store.now()
    day = 86_400
    far = time.time() + day
    monkeypatch.setattr(time, "time", lambda: far)
    monkeypatch.setattr(time, "time_ns", lambda: int(far * 1e9))

    live_a_whole_life(bed)

    stamps = [int(float(event["at"])) for event in bed.events()]
    stamps += [int(bed.run(field) or 0) for field in ("created", "started", "ended")]
    stamps += [int(bed.step(field) or 0) for field in ("b:0", "e:0", "ub:0", "ue:0", "q:1")]
    # The time that was let pass inside is the only one by which they may differ.
    assert all(began - 2 * LEASE * 1000 <= stamp <= began + 60_000 for stamp in stamps)


def test_all_keys_of_a_run_lie_in_one_slot(bed: Bed) -> None:
    keys = [*bed.keys.record(), bed.keys.request, bed.keys.commands, bed.keys.log(3)]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert all(f"{{{bed.run_id}}}" in key for key in keys)
    others = bed.store.keys.of("another").record()
    assert not set(keys) & set(others)


def test_a_script_touches_no_key_that_it_was_not_given(server: RedisServer, bed: Bed) -> None:
    bed.redis.execute_command(
        "ACL", "SETUSER", "bound", "on", ">bound", "+@all", *(f"~{key}" for key in bed.keys.record()), "~bed:live",
        "~bed:runs",
    )  # fmt: skip
    try:
        url = server.url.replace("redis://", "redis://bound:bound@")
        bound = Bed(url, run_id=bed.run_id)
        live_a_whole_life(bound)
        bound.close()
    finally:
        bed.redis.execute_command("ACL", "DELUSER", "bound")
    assert bed.run("state") == R.UNDONE


def test_scripts_come_back_after_redis_forgot_them(bed: Bed) -> None:
    bed.begin(0)
    bed.redis.script_flush()
    assert bed.claim(0).attempt == 1


# --- create ---------------------------------------------------------------------------------------------


def test_create_begins_the_record(bed: Bed) -> None:
    now = bed.store.now()

    with bed.emits("run_created") as events:
        assert bed.create()

    fields = bed.store.fields(bed.run_id)
    expected = {"state": "pending", "level": "-1", "left": "0", "plan": "p", "digest": "d", "ver": "1"}
    assert fields.items() >= expected.items()
    assert now <= int(fields["created"]) <= now + 5000
    assert "deadline" not in fields
    assert (events[0]["plan"], events[0]["actor"]) == ("p", "ann")


def test_the_clock_of_a_run_starts_when_it_begins(bed: Bed) -> None:
    bed.create(timeout=60_000)
    assert bed.run("deadline") is None
    bed.open_level(R.RUNNING, 0, [0])
    assert int(bed.run("deadline") or 0) == int(bed.run("started") or 0) + 60_000


@pytest.mark.parametrize("state", list(RunState))
def test_create_leaves_a_run_that_is_there_alone(bed: Bed, state: RunState) -> None:
    bed.create()
    bed.put(state=state)

    with bed.unchanged():
        assert not bed.create(plan="another")


# --- open_level -----------------------------------------------------------------------------------------


def test_opening_the_first_level_begins_the_run(bed: Bed) -> None:
    bed.create()

    with bed.emits("run_started", "level_started", "step_skipped") as events:
        assert bed.open_level(R.RUNNING, 0, [0, 2], {1: "dependency failed"})

    now = bed.store.now()
    assert (bed.run("state"), bed.run("level"), bed.run("left")) == ("running", "0", "2")
    assert bed.run("started")
    assert [bed.step(f"s:{i}") for i in range(4)] == ["ready", "skipped", "ready", None]
    assert bed.step("y:1") == "dependency failed"
    assert now - 5000 <= int(bed.step("q:0") or 0) <= now
    assert int(bed.step("d:0") or 0) == int(bed.step("q:0") or 0) + LEASE * 1000
    assert (events[1]["level"], events[1]["steps"]) == ("0", "0 2")
    assert (events[2]["step"], events[2]["reason"]) == ("1", "dependency failed")


def test_opening_a_later_level_does_not_begin_the_run_again(bed: Bed) -> None:
    bed.lay(left=0, level=0, started=5)

    with bed.emits("level_started"):
        assert bed.open_level(R.RUNNING, 1, [1])

    assert (bed.run("level"), bed.run("left"), bed.run("started")) == ("1", "1", "5")


def test_opening_the_always_steps_finishes_the_run(bed: Bed) -> None:
    bed.lay("aborting", left=0, level=2)

    with bed.emits("run_finishing", "level_started"):
        assert bed.open_level(R.FINISHING, 0, [1])

    assert (bed.run("state"), bed.run("level"), bed.run("left")) == ("finishing", "0", "1")


@pytest.mark.parametrize("state", but(R.RUNNING))
def test_a_level_is_not_opened_from_another_state(bed: Bed, state: RunState) -> None:
    bed.lay("running", left=0)
    seen = bed.record()
    bed.put(state=state)

    with bed.unchanged():
        assert not bed.open_level(R.RUNNING, 1, [1], seen=seen)


@pytest.mark.parametrize("level", [-1, 1, 2])
def test_a_level_is_not_opened_from_another_level(bed: Bed, level: int) -> None:
    bed.lay("running", left=0, level=0)
    seen = bed.record()
    bed.put(level=level)

    with bed.unchanged():
        assert not bed.open_level(R.RUNNING, 1, [1], seen=seen)


@pytest.mark.parametrize("state", [R.RUNNING, R.FINISHING, R.UNDOING])
def test_a_level_is_not_opened_while_something_of_the_one_before_is_left(bed: Bed, state: RunState) -> None:
    bed.lay(state, left=1)

    with bed.unchanged():
        assert not bed.open_level(R.FINISHING, 1, [1])


def test_no_level_is_opened_while_the_run_is_ending_and_something_runs(bed: Bed) -> None:
    bed.begin(0)
    bed.claim(0)
    bed.store.abort(bed.run_id, Cause.CANCEL, "")

    with bed.unchanged():
        assert not bed.open_level(R.FINISHING, 1, [1])


def test_a_level_is_opened_once(bed: Bed) -> None:
    bed.create()
    seen = bed.record()
    assert bed.open_level(R.RUNNING, 0, [0], seen=seen)

    with bed.unchanged():
        assert not bed.open_level(R.RUNNING, 0, [0], seen=seen)


# --- open_undo ------------------------------------------------------------------------------------------


def test_opening_the_undo_takes_the_highest_level_first(bed: Bed) -> None:
    bed.lay("aborting", level=1, left=0)

    with bed.emits("run_undoing", "undo_level_started", "undo_impossible") as events:
        assert bed.open_undo(1, [1], {2: "it has no undo"})

    assert (bed.run("state"), bed.run("ulevel"), bed.run("left")) == ("undoing", "1", "1")
    assert (bed.step("us:1"), bed.step("us:2"), bed.step("uy:2")) == ("ready", "not_undoable", "it has no undo")
    assert int(bed.step("ud:1") or 0) == int(bed.step("uq:1") or 0) + LEASE * 1000
    assert int(bed.run("undo_deadline") or 0) >= bed.store.now() + 3_500_000
    assert (events[1]["steps"], events[2]["step"], events[2]["reason"]) == ("1", "2", "it has no undo")


def test_the_undo_goes_down_and_its_time_runs_on(bed: Bed) -> None:
    bed.lay("undoing", left=0, ulevel=1, undo_deadline=12345)

    with bed.emits("undo_level_started"):
        assert bed.open_undo(0, [0])

    assert (bed.run("ulevel"), bed.run("left"), bed.run("undo_deadline")) == ("0", "1", "12345")


def test_the_time_of_an_undo_that_an_operator_asked_for_is_limited_too(bed: Bed) -> None:
    bed.lay("succeeded", left=0)
    bed.store.carry_out(bed.run_id, "1-1", {"kind": "undo"}, 1, [])

    assert bed.open_undo(0, [0])

    assert int(bed.run("undo_deadline") or 0) > bed.store.now()


@pytest.mark.parametrize("state", but(R.ABORTING))
def test_the_undo_is_not_opened_from_another_state(bed: Bed, state: RunState) -> None:
    bed.lay("aborting", left=0)
    seen = bed.record()
    bed.put(state=state)

    with bed.unchanged():
        assert not bed.open_undo(0, [0], seen=seen)


@pytest.mark.parametrize("level", [0, 2, 3])
def test_the_undo_is_not_opened_from_another_level(bed: Bed, level: int) -> None:
    bed.lay("undoing", left=0, ulevel=1)
    seen = bed.record()
    bed.put(ulevel=level)

    with bed.unchanged():
        assert not bed.open_undo(0, [0], seen=seen)


def test_the_undo_waits_for_what_runs(bed: Bed) -> None:
    bed.begin(0)
    bed.claim(0)
    bed.store.abort(bed.run_id, Cause.CANCEL, "")

    with bed.unchanged():
        assert not bed.open_undo(0, [0])


def test_the_undo_waits_for_the_level_above(bed: Bed) -> None:
    bed.lay("undoing", left=1, ulevel=1)

    with bed.unchanged():
        assert not bed.open_undo(0, [0])


def test_an_undo_level_is_opened_once(bed: Bed) -> None:
    bed.lay("aborting", left=0)
    seen = bed.record()
    assert bed.open_undo(0, [0], seen=seen)

    with bed.unchanged():
        assert not bed.open_undo(0, [0], seen=seen)


# --- abort ----------------------------------------------------------------------------------------------


def test_abort_ends_what_runs_and_says_why(bed: Bed) -> None:
    bed.lay("running")

    with bed.emits("run_aborting") as events:
        assert bed.store.abort(bed.run_id, Cause.DEADLINE, "out of time", "bob")

    assert (bed.run("state"), bed.run("cause"), bed.run("err"), bed.run("keep")) == (
        *("aborting", "deadline", "out of time"),
        None,
    )
    assert (events[0]["cause"], events[0]["actor"]) == ("deadline", "bob")


def test_abort_can_keep_what_was_done(bed: Bed) -> None:
    bed.lay("running")
    bed.store.abort(bed.run_id, Cause.CANCEL, "", keep=True)
    assert bed.record().keep


@pytest.mark.parametrize("state", but(R.RUNNING))
def test_only_what_runs_is_aborted(bed: Bed, state: RunState) -> None:
    bed.lay(state, cause="cancel", err="first")

    with bed.unchanged():
        assert not bed.store.abort(bed.run_id, Cause.DEADLINE, "second", keep=True)


# --- drain ----------------------------------------------------------------------------------------------


def test_drain_cancels_what_was_not_begun(bed: Bed) -> None:
    bed.begin(0, 1, 2)
    bed.retry(1, bed.claim(1).fence)
    bed.claim(2)
    bed.put(state="aborting")

    with bed.emits("step_ended", "step_ended") as events:
        assert not bed.store.drain(bed.run_id, [(0, False), (1, False), (2, False)])

    assert [bed.step(f"s:{i}") for i in range(3)] == ["cancelled", "cancelled", "running"]
    assert bed.step("y:0") == "the run was ended before it began"
    assert bed.step("e:0")
    assert bed.run("left") == "1"
    assert [(event["step"], event["status"]) for event in events] == [("0", "cancelled"), ("1", "cancelled")]


def test_drain_says_when_nothing_runs_any_more(bed: Bed) -> None:
    bed.lay("aborting", steps={"s:0": "ready"})
    assert bed.script("drain", 0, "") == 1


def test_an_always_step_waits_for_its_turn(bed: Bed) -> None:
    bed.begin(0)
    bed.put(state="aborting")

    with bed.emits():
        bed.store.drain(bed.run_id, [(0, True)])

    assert bed.step("s:0") is None
    assert bed.run("left") == "0"


def test_a_step_whose_worker_was_lost_is_unknown_and_not_cancelled(bed: Bed) -> None:
    """It was claimed and never reported: it may have happened, and `left_over` has to name it."""
    bed.begin(0)
    bed.claim(0)
    bed.end_lease("0")
    assert bed.expire(0, repeatable=True) == "again"
    bed.put(state="aborting")

    with bed.emits("step_ended") as events:
        bed.store.drain(bed.run_id, [(0, False)])

    assert (bed.step("s:0"), events[0]["status"]) == ("unknown", "unknown")
    assert bed.step("y:0") != "the run was ended before it began"


@pytest.mark.parametrize("state", but(R.ABORTING))
def test_drain_takes_nothing_from_a_run_that_is_not_ending(bed: Bed, state: RunState) -> None:
    bed.lay(state, steps={"s:0": "ready", "s:1": "retrying"}, left=2)

    with bed.unchanged():
        bed.store.drain(bed.run_id, [(0, False), (1, True)])


@pytest.mark.parametrize("status", ["running", "changed", "unchanged", "failed", "unknown", "skipped", "cancelled"])
@pytest.mark.parametrize("always", [False, True])
def test_drain_leaves_every_other_step_as_it_is(bed: Bed, status: str, always: bool) -> None:
    bed.lay("aborting", steps={"s:0": status}, left=2)

    with bed.unchanged():
        bed.store.drain(bed.run_id, [(0, always)])


# --- finish ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [R.RUNNING, R.ABORTING, R.UNDOING, R.FINISHING])
def test_finish_ends_the_run(bed: Bed, state: RunState) -> None:
    bed.lay(state, left=0, cause="failure")

    with bed.emits("run_ended") as events:
        assert bed.store.finish(bed.run_id, state, R.UNDONE, [1, 2])

    assert (bed.run("state"), bed.run("left")) == ("undone", "0")
    assert bed.run("ended")
    assert (bed.step("s:1"), bed.step("s:2"), bed.step("s:0")) == ("not_run", "not_run", None)
    assert (events[0]["state"], events[0]["cause"]) == ("undone", "failure")


@pytest.mark.parametrize("state", but(R.RUNNING))
def test_finish_ends_nothing_from_another_state(bed: Bed, state: RunState) -> None:
    bed.lay(state, left=0)

    with bed.unchanged():
        assert not bed.store.finish(bed.run_id, R.RUNNING, R.SUCCEEDED, [1])


@pytest.mark.parametrize("state", [R.RUNNING, R.UNDOING, R.FINISHING])
def test_finish_waits_for_what_is_left(bed: Bed, state: RunState) -> None:
    bed.lay(state, left=1)

    with bed.unchanged():
        assert not bed.store.finish(bed.run_id, state, R.SUCCEEDED, [])


@pytest.mark.parametrize("state", [R.RUNNING, R.ABORTING, R.UNDOING, R.FINISHING])
def test_finish_waits_for_what_runs(bed: Bed, state: RunState) -> None:
    bed.begin(0)
    bed.claim(0)
    bed.put(state=state, left=0)

    with bed.unchanged():
        assert not bed.store.finish(bed.run_id, state, R.SUCCEEDED, [])


def test_a_run_ends_once(bed: Bed) -> None:
    bed.lay("running", left=0)
    assert bed.store.finish(bed.run_id, R.RUNNING, R.SUCCEEDED, [])

    with bed.unchanged():
        assert not bed.store.finish(bed.run_id, R.RUNNING, R.SUCCEEDED, [])


@pytest.fixture
def reopened(bed: Bed) -> tuple[Bed, RunRecord]:
    """A run that has come back to the state that a slow process had decided from."""
    bed.lay("undoing", left=0, ulevel=1)
    slow = bed.record()
    assert bed.store.finish(bed.run_id, R.UNDOING, R.UNDO_FAILED, [])
    bed.store.carry_out(bed.run_id, "1-1", {"kind": "undo"}, 1, [0])
    return bed, slow


def test_what_was_decided_before_a_run_was_reopened_moves_it_no_more(reopened: tuple[Bed, RunRecord]) -> None:
    """SEMANTICS 7: a command that reopens a run has an epoch of its own."""
    bed, slow = reopened

    with bed.unchanged():
        assert not bed.open_undo(0, [0], seen=slow)
        assert not bed.open_level(R.FINISHING, 0, [0], seen=slow)
        assert not bed.store.finish(bed.run_id, R.UNDOING, R.UNDO_FAILED, [], slow.epoch)

    assert bed.record().epoch == slow.epoch + 1
    assert bed.open_undo(0, [0])


# --- command --------------------------------------------------------------------------------------------


def carry_out(bed: Bed, kind: str, command_id: str = "5-1", failed: tuple[int, ...] = (), **more: str) -> str:
    command = {"kind": kind, "actor": "eve", "reason": "because"} | more
    return bed.store.carry_out(bed.run_id, command_id, command, 3, failed)


def test_a_cancel_ends_what_runs(bed: Bed) -> None:
    bed.lay("running")

    with bed.emits("command", "run_aborting") as events:
        assert carry_out(bed, "cancel") == "done"

    assert (bed.run("state"), bed.run("cause"), bed.run("err")) == ("aborting", "cancel", "because")
    assert (bed.run("cmd"), bed.run("answer"), bed.run("keep")) == ("5-1", "done", None)
    assert (events[0]["kind"], events[0]["actor"], events[0]["reason"]) == ("cancel", "eve", "because")
    assert (events[1]["cause"], events[1]["actor"]) == ("cancel", "eve")


def test_a_cancel_can_keep_what_was_done(bed: Bed) -> None:
    bed.lay("running")
    carry_out(bed, "cancel", keep="1")
    assert bed.record().keep


def test_a_cancel_of_a_run_that_has_not_begun_ends_it_and_all_its_steps(bed: Bed) -> None:
    bed.create(steps=3)

    with bed.emits("command", "run_ended") as events:
        assert carry_out(bed, "cancel") == "done"

    assert (bed.run("state"), bed.run("cause")) == ("failed", "cancel")
    assert bed.run("ended")
    assert (events[1]["state"], events[1]["cause"]) == ("failed", "cancel")
    assert [bed.step(f"s:{i}") for i in range(4)] == ["not_run", "not_run", "not_run", None]


@pytest.mark.parametrize("state", but(R.RUNNING, R.PENDING))
def test_a_cancel_of_any_other_run_says_why_not(bed: Bed, state: RunState) -> None:
    bed.lay(state, cause="failure")

    with bed.emits("command"):
        assert carry_out(bed, "cancel", keep="1") == f"the run is {state}"

    assert (bed.run("state"), bed.run("cause"), bed.run("keep")) == (state, "failure", None)
    assert bed.run("answer") == f"the run is {state}"


@pytest.mark.parametrize("state", sorted(TERMINAL - {R.UNDONE}))
def test_an_undo_reopens_a_run_that_rests(bed: Bed, state: RunState) -> None:
    bed.lay(state, left=7, ended=5, undo_deadline=5, keep="1")

    with bed.emits("command", "run_undoing"):
        assert carry_out(bed, "undo") == "done"

    assert (bed.run("state"), bed.run("ulevel"), bed.run("left")) == ("undoing", "3", "0")
    assert (bed.run("cause"), bed.run("ended"), bed.run("undo_deadline"), bed.run("keep")) == ("operator", *[None] * 3)


def test_an_undo_keeps_the_cause_that_the_run_ended_of(bed: Bed) -> None:
    bed.lay("undo_failed", cause="deadline")
    carry_out(bed, "undo")
    assert bed.run("cause") == "deadline"


@pytest.mark.parametrize("state", but(*(TERMINAL - {R.UNDONE})))
def test_an_undo_of_a_run_that_does_not_rest_says_why_not(bed: Bed, state: RunState) -> None:
    bed.lay(state)

    with bed.emits("command"):
        assert carry_out(bed, "undo", failed=(0,)) == f"the run is {state}"

    assert (bed.run("state"), bed.run("left")) == (state, "1")


def test_an_undo_tries_again_from_the_beginning_what_failed(bed: Bed) -> None:
    tried = {"s": "undo_failed", "n": 1, "a": 6, "x": 9, "l": 3}
    fields = {f"u{kind}:{i}": value for kind, value in tried.items() for i in (0, 1)}
    bed.lay("undo_failed", steps=fields | {"uf:0": 77, "us:1": "undone"})

    carry_out(bed, "undo", failed=(0,))

    assert [bed.step(f"u{kind}:0") for kind in tried] == [None] * 5
    assert bed.step("uf:0") == "77"  # a fence is never forgotten
    assert [bed.step(f"u{kind}:1") for kind in tried] == ["undone", "1", "6", "9", "3"]


@pytest.mark.parametrize("earlier", ["5-1", "5-0", "4-9", "4-10", "0-0"])
def test_a_command_is_carried_out_once_and_in_order(bed: Bed, earlier: str) -> None:
    bed.lay("running")
    carry_out(bed, "nothing", "5-1")

    with bed.unchanged():
        assert carry_out(bed, "cancel", earlier) == "old"


@pytest.mark.parametrize(("first", "second"), [("5-9", "5-10"), ("9-1", "10-0"), ("999999999999-5", "1000000000000-0")])
def test_ids_of_commands_are_numbers_and_not_text(bed: Bed, first: str, second: str) -> None:
    bed.lay("running")
    carry_out(bed, "nothing", first)
    assert carry_out(bed, "cancel", second) == "done"


def test_a_command_that_nobody_knows_is_answered(bed: Bed) -> None:
    bed.lay("running")

    with bed.emits("command"):
        assert carry_out(bed, "explode") == "no such command: explode"

    assert bed.run("state") == R.RUNNING


# --- the reducer's view ---------------------------------------------------------------------------------


@pytest.fixture
def other(server: RedisServer) -> Iterator[Store]:
    """Another process."""
    store = Store(settings_for(server.url))
    yield store
    client: redis.Redis = store.client
    client.close()


def test_two_processes_that_decided_the_same_open_a_level_once(bed: Bed, other: Store) -> None:
    bed.create()
    seen: RunRecord = bed.record()

    answers = [store.open_level(bed.run_id, seen, R.RUNNING, 0, [0, 1], {}) for store in (bed.store, other)]

    assert answers == [True, False]
    assert len(bed.events("level_started")) == 1
