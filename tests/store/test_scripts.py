"""The scripts that change a run's state: effects, refusals and idempotency."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from importlib.resources import files

import pytest
import redis
from redis.crc import key_slot

from longshore.orchestration.saga import ResumeSet
from longshore.orchestration.states import TERMINAL, Cause, RunState
from longshore.orchestration.store import lua
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from tests.servers import RedisServer
from tests.store.stored_run import LEASE, StoredRun, settings_for

pytestmark = pytest.mark.store

R = RunState


def all_states_except(*states: RunState) -> list[RunState]:
    """All states of a run except these."""
    return [state for state in RunState if state not in states]


# --- all scripts ----------------------------------------------------------------------------------------


def test_all_scripts_are_tested() -> None:
    assert lua.names() == [
        *(
            "abort",
            "answer",
            "ask",
            "begin",
            "claim",
            "command",
            "complete",
            "create",
            "dispatch_units",
            "drain",
            "expire",
            "finish",
            "forget",
            "hold",
            "journal",
        ),
        *(
            "open_level",
            "open_undo",
            "park",
            "release",
            "renew",
            "reopen",
            "resend",
            "resend_task",
            "resolve",
            "retry",
            "settle",
            "shift",
        ),
        *("store_units", "suspend", "unsuspend"),
    ]


@pytest.mark.parametrize("name", lua.names())
def test_script_declares_its_effect_and_arguments(name: str) -> None:
    own = files(lua).joinpath(f"{name}.lua").read_text()
    header = re.match(r"(--.*\n)+", own)
    assert header is not None
    for word in ("ARGV", "RETURNS", "EVENTS"):
        assert f"-- {word}" in header[0]
    described, used = (
        max(map(int, re.findall(r"ARGV\[(\d+)\]", text)), default=0)
        for text in (header[0], own.removeprefix(header[0]))
    )
    assert used <= described or "then" in header[0]


@pytest.mark.parametrize("name", lua.names())
def test_script_runs_on_plain_redis(name: str) -> None:
    source = lua.source(name)
    assert not re.search(r"cjson|cmsgpack|\bos\.|math\.random|sha1hex|loadstring", source)
    assert source.count("redis.call('TIME')") == 1


def call_every_script(stored: StoredRun) -> None:
    """Call all scripts in one run: one step fails, one is lost, one is undone."""
    stored.begin(0, 1, 2)
    done = stored.claim(0)
    stored.journal(0, done.fence, '{"a":1}', '{"b":2}')
    stored.retry(0, done.fence)
    done = stored.claim(0, owner="task@one/2")
    stored.store.renew(stored.run_id, [("0", "task@one/")])
    stored.complete(0, done.fence)
    stored.claim(1)
    stored.end_lease("1")
    stored.expire(1)
    stored.age(LEASE + 1)
    assert stored.store.resend(stored.run_id, "", [1, 2]) == ([1, 2], [])
    failed = stored.claim(2)
    stored.complete(2, failed.fence, "failed", error="no", stops=True)
    stored.store.drain(stored.run_id, [(1, False)])
    stored.open_undo(0, [0])
    undo = stored.claim(0, "u")
    stored.complete(0, undo.fence, "undo_failed", side="u")
    stored.store.finish(stored.run_id, R.UNDOING, R.UNDO_FAILED, [])
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo", "actor": "eve"}, 1, [0])
    stored.open_undo(0, [0])
    stored.complete(0, stored.claim(0, "u").fence, "undone", side="u")
    stored.store.finish(stored.run_id, R.UNDOING, R.UNDONE, [], epoch=1)


def test_every_transition_adds_one_version_and_one_event(stored: StoredRun) -> None:
    call_every_script(stored)

    events = stored.events()
    assert [int(event["version"]) for event in events] == list(range(1, len(events) + 1))
    assert stored.run("version") == str(len(events))
    times = [float(event["at"]) for event in events]
    assert times == sorted(times)
    assert {event["event"] for event in events} == {
        *("run_created", "run_started", "level_started", "step_started", "step_retrying", "step_ended", "lease_lost"),
        *("message_resent", "run_aborting", "run_undoing", "undo_level_started", "undo_started", "undo_ended"),
        *("run_ended", "command"),
    }


def test_scripts_use_the_time_of_redis(stored: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    began = stored.store.now()
    day = 86_400
    far = time.time() + day
    monkeypatch.setattr(time, "time", lambda: far)
    monkeypatch.setattr(time, "time_ns", lambda: int(far * 1e9))

    call_every_script(stored)

    stamps = [int(float(event["at"])) for event in stored.events()]
    stamps += [int(stored.run(field) or 0) for field in ("created", "started", "ended")]
    stamps += [int(stored.step(field) or 0) for field in ("started:0", "ended:0", "ustarted:0", "uended:0", "sent:1")]
    # The elapsed time is the only difference.
    assert all(began - 2 * LEASE * 1000 <= stamp <= began + 60_000 for stamp in stamps)


def test_all_keys_of_a_run_share_one_slot(stored: StoredRun) -> None:
    keys = [*stored.keys.record(), stored.keys.request, stored.keys.commands, stored.keys.log(3)]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert all(f"{{{stored.run_id}}}" in key for key in keys)
    others = stored.store.keys.of("another").record()
    assert not set(keys) & set(others)


def test_script_touches_only_its_given_keys(server: RedisServer, stored: StoredRun) -> None:
    stored.redis.execute_command(
        "ACL", "SETUSER", "bound", "on", ">bound", "+@all", *(f"~{key}" for key in stored.keys.record()),
        *(f"~stored:{name}" for name in ("live", "runs", "inbox", "clock", "audit")),
    )  # fmt: skip
    try:
        url = server.url.replace("redis://", "redis://bound:bound@")
        bound = StoredRun(url, run_id=stored.run_id)
        call_every_script(bound)
        bound.close()
    finally:
        stored.redis.execute_command("ACL", "DELUSER", "bound")
    assert stored.run("state") == R.UNDONE


def test_scripts_are_reloaded_after_a_flush(stored: StoredRun) -> None:
    stored.begin(0)
    stored.redis.script_flush()
    assert stored.claim(0).attempt == 1


# --- create ---------------------------------------------------------------------------------------------


def test_create_starts_the_record(stored: StoredRun) -> None:
    now = stored.store.now()

    with stored.emits("run_created") as events:
        assert stored.create()

    fields = stored.store.fields(stored.run_id)
    expected = {"state": "pending", "level": "-1", "left": "0", "plan": "p", "digest": "d", "version": "1"}
    assert fields.items() >= expected.items()
    assert now <= int(fields["created"]) <= now + 5000
    assert "deadline" not in fields
    assert (events[0]["plan"], events[0]["actor"]) == ("p", "ann")


def test_run_timeout_starts_when_the_run_begins(stored: StoredRun) -> None:
    stored.create(timeout=60_000)
    assert stored.run("deadline") is None
    stored.open_level(R.RUNNING, 0, [0])
    assert int(stored.run("deadline") or 0) == int(stored.run("started") or 0) + 60_000


@pytest.mark.parametrize("state", list(RunState))
def test_create_keeps_an_existing_run(stored: StoredRun, state: RunState) -> None:
    stored.create()
    stored.put(state=state)

    with stored.unchanged():
        assert not stored.create(plan="another")


# --- open_level -----------------------------------------------------------------------------------------


def test_opening_the_first_level_starts_the_run(stored: StoredRun) -> None:
    stored.create()

    with stored.emits("run_started", "level_started", "step_skipped") as events:
        assert stored.open_level(R.RUNNING, 0, [0, 2], {1: "dependency failed"})

    now = stored.store.now()
    assert (stored.run("state"), stored.run("level"), stored.run("left")) == ("running", "0", "2")
    assert stored.run("started")
    assert [stored.step(f"status:{i}") for i in range(4)] == ["ready", "skipped", "ready", None]
    assert stored.step("reason:1") == "dependency failed"
    assert now - 5000 <= int(stored.run("opened") or 0) <= now
    assert stored.step("sent_until:0") is None, "a resend is due before the end of the first lease"
    assert (events[1]["level"], events[1]["steps"]) == ("0", "0 2")
    assert (events[2]["step"], events[2]["reason"]) == ("1", "dependency failed")


def test_opening_a_later_level_does_not_restart_the_run(stored: StoredRun) -> None:
    stored.lay(left=0, level=0, started=5)

    with stored.emits("level_started"):
        assert stored.open_level(R.RUNNING, 1, [1])

    assert (stored.run("level"), stored.run("left"), stored.run("started")) == ("1", "1", "5")


def test_opening_the_always_steps_moves_the_run_to_finishing(stored: StoredRun) -> None:
    stored.lay("aborting", left=0, level=2)

    with stored.emits("run_finishing", "level_started"):
        assert stored.open_level(R.FINISHING, 0, [1])

    assert (stored.run("state"), stored.run("level"), stored.run("left")) == ("finishing", "0", "1")


@pytest.mark.parametrize("state", all_states_except(R.RUNNING))
def test_level_is_not_opened_from_another_state(stored: StoredRun, state: RunState) -> None:
    stored.lay("running", left=0)
    seen = stored.record()
    stored.put(state=state)

    with stored.unchanged():
        assert not stored.open_level(R.RUNNING, 1, [1], seen=seen)


@pytest.mark.parametrize("level", [-1, 1, 2])
def test_level_is_not_opened_from_another_level(stored: StoredRun, level: int) -> None:
    stored.lay("running", left=0, level=0)
    seen = stored.record()
    stored.put(level=level)

    with stored.unchanged():
        assert not stored.open_level(R.RUNNING, 1, [1], seen=seen)


@pytest.mark.parametrize("state", [R.RUNNING, R.FINISHING, R.UNDOING])
def test_level_is_not_opened_while_the_previous_has_open_steps(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, left=1)

    with stored.unchanged():
        assert not stored.open_level(R.FINISHING, 1, [1])


def test_level_is_not_opened_while_an_ending_run_has_running_steps(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")

    with stored.unchanged():
        assert not stored.open_level(R.FINISHING, 1, [1])


def test_level_is_opened_once(stored: StoredRun) -> None:
    stored.create()
    seen = stored.record()
    assert stored.open_level(R.RUNNING, 0, [0], seen=seen)

    with stored.unchanged():
        assert not stored.open_level(R.RUNNING, 0, [0], seen=seen)


# --- open_undo ------------------------------------------------------------------------------------------


def test_undo_opens_the_highest_level_first(stored: StoredRun) -> None:
    stored.lay("aborting", level=1, left=0)

    with stored.emits("run_undoing", "undo_level_started", "undo_impossible") as events:
        assert stored.open_undo(1, [1], {2: "the step has no undo"})

    assert (stored.run("state"), stored.run("undo_level"), stored.run("left")) == ("undoing", "1", "1")
    assert (stored.step("ustatus:1"), stored.step("ustatus:2"), stored.step("ureason:2")) == (
        "ready",
        "not_undoable",
        "the step has no undo",
    )
    assert int(stored.step("usent_until:1") or 0) == int(stored.step("usent:1") or 0) + LEASE * 1000
    assert int(stored.run("undo_deadline") or 0) >= stored.store.now() + 3_500_000
    assert (events[1]["steps"], events[2]["step"], events[2]["reason"]) == ("1", "2", "the step has no undo")


def test_undo_is_held_back_with_the_reason(stored: StoredRun) -> None:
    stored.lay("undoing", left=0, undo_level=1)

    with stored.emits("undo_level_started", "undo_impossible", "undo_held_back") as events:
        assert stored.open_undo(0, [], {1: "it has no undo"}, held_back={0: "up depends on it, and its undo failed"})

    assert (stored.run("left"), stored.step("ustatus:0"), stored.step("ustatus:1")) == (
        "0",
        "held_back",
        "not_undoable",
    )
    assert stored.step("ureason:0") == events[2]["reason"] == "up depends on it, and its undo failed"


def test_undo_that_was_held_back_is_decided_again(stored: StoredRun) -> None:
    stored.lay("undo_failed", steps={"status:0": "changed", "ustatus:0": "held_back", "ureason:0": "up depends on it"})

    assert stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 1, [0]) == "done"

    assert (stored.step("ustatus:0"), stored.step("ureason:0")) == (None, None)


@pytest.mark.parametrize(("word", "undo"), [("undone", "undone"), ("abandon", "not_undoable")])
def test_undo_that_was_held_back_is_resolved(stored: StoredRun, word: str, undo: str) -> None:
    stored.lay("undo_failed", steps={"status:0": "changed", "ustatus:0": "held_back"})

    command = {"kind": "resolve", "as": word, "actor": "ann"}
    assert stored.store.resolve(stored.run_id, "1-1", command, 0) == "done"

    assert stored.step("ustatus:0") == undo


def test_undo_descends_under_one_timeout(stored: StoredRun) -> None:
    stored.lay("undoing", left=0, undo_level=1, undo_deadline=12345)

    with stored.emits("undo_level_started"):
        assert stored.open_undo(0, [0])

    assert (stored.run("undo_level"), stored.run("left"), stored.run("undo_deadline")) == ("0", "1", "12345")


def test_operator_undo_has_a_timeout_too(stored: StoredRun) -> None:
    stored.lay("succeeded", left=0)
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 1, [])

    assert stored.open_undo(0, [0])

    assert int(stored.run("undo_deadline") or 0) > stored.store.now()


@pytest.mark.parametrize("state", all_states_except(R.ABORTING))
def test_undo_is_not_opened_from_another_state(stored: StoredRun, state: RunState) -> None:
    stored.lay("aborting", left=0)
    seen = stored.record()
    stored.put(state=state)

    with stored.unchanged():
        assert not stored.open_undo(0, [0], seen=seen)


@pytest.mark.parametrize("level", [0, 2, 3])
def test_undo_is_not_opened_from_another_level(stored: StoredRun, level: int) -> None:
    stored.lay("undoing", left=0, undo_level=1)
    seen = stored.record()
    stored.put(undo_level=level)

    with stored.unchanged():
        assert not stored.open_undo(0, [0], seen=seen)


def test_undo_waits_for_running_steps(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")

    with stored.unchanged():
        assert not stored.open_undo(0, [0])


def test_undo_waits_for_the_level_above(stored: StoredRun) -> None:
    stored.lay("undoing", left=1, undo_level=1)

    with stored.unchanged():
        assert not stored.open_undo(0, [0])


def test_undo_level_is_opened_once(stored: StoredRun) -> None:
    stored.lay("aborting", left=0)
    seen = stored.record()
    assert stored.open_undo(0, [0], seen=seen)

    with stored.unchanged():
        assert not stored.open_undo(0, [0], seen=seen)


# --- abort ----------------------------------------------------------------------------------------------


def test_abort_moves_a_running_run_to_aborting_with_its_cause(stored: StoredRun) -> None:
    stored.lay("running")

    with stored.emits("run_aborting") as events:
        assert stored.store.abort(stored.run_id, Cause.DEADLINE, "out of time", "bob")

    assert (stored.run("state"), stored.run("cause"), stored.run("err"), stored.run("keep")) == (
        *("aborting", "deadline", "out of time"),
        None,
    )
    assert (events[0]["cause"], events[0]["actor"]) == ("deadline", "bob")


def test_abort_can_keep_completed_steps(stored: StoredRun) -> None:
    stored.lay("running")
    stored.store.abort(stored.run_id, Cause.CANCEL, "", keep=True)
    assert stored.record().keep


@pytest.mark.parametrize("state", all_states_except(R.RUNNING))
def test_only_a_running_run_is_aborted(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, cause="cancel", err="first")

    with stored.unchanged():
        assert not stored.store.abort(stored.run_id, Cause.DEADLINE, "second", keep=True)


# --- drain ----------------------------------------------------------------------------------------------


def test_drain_cancels_unclaimed_steps(stored: StoredRun) -> None:
    stored.begin(0, 1, 2)
    stored.retry(1, stored.claim(1).fence)
    stored.claim(2)
    stored.put(state="aborting")

    with stored.emits("step_ended", "step_ended") as events:
        assert not stored.store.drain(stored.run_id, [(0, False), (1, False), (2, False)])

    assert [stored.step(f"status:{i}") for i in range(3)] == ["cancelled", "cancelled", "running"]
    assert stored.step("reason:0") == "the run was aborted before the step began"
    assert stored.step("ended:0")
    assert stored.run("left") == "1"
    assert [(event["step"], event["status"]) for event in events] == [("0", "cancelled"), ("1", "cancelled")]


def test_drain_reports_when_no_step_runs(stored: StoredRun) -> None:
    stored.lay("aborting", steps={"status:0": "ready"})
    assert stored.script("drain", 0, "") == 1


def test_drain_keeps_always_steps_pending(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(state="aborting")

    with stored.emits():
        stored.store.drain(stored.run_id, [(0, True)])

    assert stored.step("status:0") is None
    assert stored.run("left") == "0"


def test_drain_marks_a_lost_step_unknown(stored: StoredRun) -> None:
    """A claimed step without an outcome may have had an effect, and `left_over` has to name the step."""
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    assert stored.expire(0, repeatable=True) == "again"
    stored.put(state="aborting")

    with stored.emits("step_ended") as events:
        stored.store.drain(stored.run_id, [(0, False)])

    assert (stored.step("status:0"), events[0]["status"]) == ("unknown", "unknown")
    assert stored.step("reason:0") != "the run was aborted before the step began"


@pytest.mark.parametrize("state", all_states_except(R.ABORTING))
def test_drain_changes_nothing_in_a_running_run(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, steps={"status:0": "ready", "status:1": "retrying"}, left=2)

    with stored.unchanged():
        stored.store.drain(stored.run_id, [(0, False), (1, True)])


@pytest.mark.parametrize("status", ["running", "changed", "unchanged", "failed", "unknown", "skipped", "cancelled"])
@pytest.mark.parametrize("always", [False, True])
def test_drain_keeps_all_other_steps(stored: StoredRun, status: str, always: bool) -> None:
    stored.lay("aborting", steps={"status:0": status}, left=2)

    with stored.unchanged():
        stored.store.drain(stored.run_id, [(0, always)])


# --- finish ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [R.RUNNING, R.ABORTING, R.UNDOING, R.FINISHING])
def test_finish_ends_the_run(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, left=0, cause="failure")

    with stored.emits("run_ended") as events:
        assert stored.store.finish(stored.run_id, state, R.UNDONE, [1, 2])

    assert (stored.run("state"), stored.run("left")) == ("undone", "0")
    assert stored.run("ended")
    assert (stored.step("status:1"), stored.step("status:2"), stored.step("status:0")) == ("not_run", "not_run", None)
    assert (events[0]["state"], events[0]["cause"]) == ("undone", "failure")


@pytest.mark.parametrize("state", all_states_except(R.RUNNING))
def test_finish_is_refused_from_another_state(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, left=0)

    with stored.unchanged():
        assert not stored.store.finish(stored.run_id, R.RUNNING, R.SUCCEEDED, [1])


@pytest.mark.parametrize("state", [R.RUNNING, R.UNDOING, R.FINISHING])
def test_finish_waits_for_open_steps(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, left=1)

    with stored.unchanged():
        assert not stored.store.finish(stored.run_id, state, R.SUCCEEDED, [])


@pytest.mark.parametrize("state", [R.RUNNING, R.ABORTING, R.UNDOING, R.FINISHING])
def test_finish_waits_for_running_steps(stored: StoredRun, state: RunState) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.put(state=state, left=0)

    with stored.unchanged():
        assert not stored.store.finish(stored.run_id, state, R.SUCCEEDED, [])


def test_run_ends_once(stored: StoredRun) -> None:
    stored.lay("running", left=0)
    assert stored.store.finish(stored.run_id, R.RUNNING, R.SUCCEEDED, [])

    with stored.unchanged():
        assert not stored.store.finish(stored.run_id, R.RUNNING, R.SUCCEEDED, [])


@pytest.fixture
def reopened(stored: StoredRun) -> tuple[StoredRun, RunRecord]:
    """A reopened run in the state that an earlier, delayed decision expects."""
    stored.lay("undoing", left=0, undo_level=1)
    slow = stored.record()
    assert stored.store.finish(stored.run_id, R.UNDOING, R.UNDO_FAILED, [])
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 1, [0])
    return stored, slow


def test_decisions_before_a_reopening_are_rejected(reopened: tuple[StoredRun, RunRecord]) -> None:
    """A command that reopens a run starts a new epoch."""
    stored, slow = reopened

    with stored.unchanged():
        assert not stored.open_undo(0, [0], seen=slow)
        assert not stored.open_level(R.FINISHING, 0, [0], seen=slow)
        assert not stored.store.finish(stored.run_id, R.UNDOING, R.UNDO_FAILED, [], slow.epoch)

    assert stored.record().epoch == slow.epoch + 1
    assert stored.open_undo(0, [0])


# --- command --------------------------------------------------------------------------------------------


def carry_out(stored: StoredRun, kind: str, command_id: str = "5-1", failed: tuple[int, ...] = (), **more: str) -> str:
    command = {"kind": kind, "actor": "eve", "reason": "because"} | more
    return stored.store.carry_out(stored.run_id, command_id, command, 3, failed)


def refused(events: list[dict[str, str]]) -> tuple[str, str, str]:
    """Kind, actor and reason of the first event."""
    return events[0]["kind"], events[0]["actor"], events[0]["reason"]


def test_cancel_aborts_a_running_run(stored: StoredRun) -> None:
    stored.lay("running")

    with stored.emits("command", "run_aborting") as events:
        assert carry_out(stored, "cancel") == "done"

    assert (stored.run("state"), stored.run("cause"), stored.run("err")) == ("aborting", "cancel", "because")
    assert (stored.run("last_command"), stored.run("answer"), stored.run("keep")) == ("5-1", "done", None)
    assert (events[0]["kind"], events[0]["actor"], events[0]["reason"]) == ("cancel", "eve", "because")
    assert (events[1]["cause"], events[1]["actor"]) == ("cancel", "eve")


def test_cancel_can_keep_completed_steps(stored: StoredRun) -> None:
    stored.lay("running")
    carry_out(stored, "cancel", keep="1")
    assert stored.record().keep


def test_cancel_of_a_pending_run_ends_it_with_all_steps(stored: StoredRun) -> None:
    stored.create(steps=3)

    with stored.emits("command", "run_ended") as events:
        assert carry_out(stored, "cancel") == "done"

    assert (stored.run("state"), stored.run("cause")) == ("cancelled", "cancel")
    assert stored.run("ended")
    assert (events[1]["state"], events[1]["cause"]) == ("cancelled", "cancel")
    assert [stored.step(f"status:{i}") for i in range(4)] == ["not_run", "not_run", "not_run", None]


@pytest.mark.parametrize("state", all_states_except(R.RUNNING, R.PENDING))
def test_cancel_in_another_state_returns_the_reason(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, cause="failure")

    with stored.emits("command") as events:
        assert carry_out(stored, "cancel", keep="1") == f"the run is {state}"

    assert refused(events) == ("refuse", "eve", f"the run is {state}")
    assert (stored.run("state"), stored.run("cause"), stored.run("keep")) == (state, "failure", None)
    assert stored.run("answer") == f"the run is {state}"


@pytest.mark.parametrize("state", sorted(TERMINAL - {R.UNDONE, R.CANCELLED}))
def test_undo_reopens_a_terminal_run(stored: StoredRun, state: RunState) -> None:
    stored.lay(state, left=7, ended=5, undo_deadline=5, keep="1")

    with stored.emits("command", "run_undoing"):
        assert carry_out(stored, "undo") == "done"

    assert (stored.run("state"), stored.run("undo_level"), stored.run("left")) == ("undoing", "3", "0")
    assert (stored.run("cause"), stored.run("ended"), stored.run("undo_deadline"), stored.run("keep")) == (
        "operator",
        *[None] * 3,
    )


def test_undo_keeps_the_runs_cause(stored: StoredRun) -> None:
    stored.lay("undo_failed", cause="deadline")
    carry_out(stored, "undo")
    assert stored.run("cause") == "deadline"


@pytest.mark.parametrize("state", all_states_except(*(TERMINAL - {R.UNDONE, R.CANCELLED})))
def test_undo_of_a_live_run_returns_the_reason(stored: StoredRun, state: RunState) -> None:
    stored.lay(state)

    with stored.emits("command") as events:
        assert carry_out(stored, "undo", failed=(0,)) == f"the run is {state}"

    assert refused(events) == ("refuse", "eve", f"the run is {state}")
    assert (stored.run("state"), stored.run("left")) == (state, "1")


def test_undo_resets_failed_undos(stored: StoredRun) -> None:
    tried = {"status": "undo_failed", "not_before": 1, "attempts": 6, "resent": 9, "lost": 3}
    fields = {f"u{kind}:{i}": value for kind, value in tried.items() for i in (0, 1)}
    stored.lay("undo_failed", steps=fields | {"ufence:0": 77, "ustatus:1": "undone"})

    carry_out(stored, "undo", failed=(0,))

    assert [stored.step(f"u{kind}:0") for kind in tried] == [None] * 5
    assert stored.step("ufence:0") == "77"  # the fence is kept
    assert [stored.step(f"u{kind}:1") for kind in tried] == ["undone", "1", "6", "9", "3"]


@pytest.mark.parametrize("earlier", ["5-1", "5-0", "4-9", "4-10", "0-0"])
def test_commands_are_executed_once_and_in_order(stored: StoredRun, earlier: str) -> None:
    stored.lay("running")
    carry_out(stored, "nothing", "5-1")

    with stored.unchanged():
        assert carry_out(stored, "cancel", earlier) == "old"


@pytest.mark.parametrize(("first", "second"), [("5-9", "5-10"), ("9-1", "10-0"), ("999999999999-5", "1000000000000-0")])
def test_command_ids_compare_as_numbers(stored: StoredRun, first: str, second: str) -> None:
    stored.lay("running")
    carry_out(stored, "nothing", first)
    assert carry_out(stored, "cancel", second) == "done"


def test_unknown_command_is_answered(stored: StoredRun) -> None:
    stored.lay("running")

    with stored.emits("command") as events:
        assert carry_out(stored, "explode") == "unknown command: explode"

    assert refused(events) == ("refuse", "eve", "unknown command: explode")
    assert stored.run("state") == R.RUNNING


@pytest.mark.parametrize("state", all_states_except(R.FAILED, R.PARTIAL, R.CANCELLED))
def test_refused_resume_is_recorded_with_its_reason(stored: StoredRun, state: RunState) -> None:
    stored.lay(state)
    command = {"kind": "resume", "actor": "eve", "reason": "because"}
    again = ResumeSet(level=-1, steps=())

    with stored.emits("command") as events:
        assert stored.store.reopen(stored.run_id, "5-1", command, 0, again, keep=False) == f"the run is {state}"

    assert refused(events) == ("refuse", "eve", f"the run is {state}")


# --- the reducer's view ---------------------------------------------------------------------------------


@pytest.fixture
def other(server: RedisServer) -> Iterator[Store]:
    """Decide like another process."""
    store = Store(settings_for(server.url))
    yield store
    client: redis.Redis = store.client
    client.close()


def test_concurrent_decisions_open_a_level_once(stored: StoredRun, other: Store) -> None:
    stored.create()
    seen: RunRecord = stored.record()

    answers = [store.open_level(stored.run_id, seen, R.RUNNING, 0, [0, 1], {}) for store in (stored.store, other)]

    assert answers == [True, False]
    assert len(stored.events("level_started")) == 1
