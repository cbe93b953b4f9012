"""Guards of the scripts that open a level, dispatch its units, compensate a level, and end a run."""

from __future__ import annotations

from longshore.orchestration.states import RunState
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.records import Ending
from tests.store.guards.marks import scenario
from tests.store.guards.situations import abort, interrupted, reopened
from tests.store.stored_run import StoredRun

# --- open_level --------------------------------------------------------------------------------


@scenario
def a_level_opens_only_in_the_state_that_the_worker_has_read(stored: StoredRun) -> None:
    stored.lay("running", left=0)
    seen = stored.record()
    abort(stored)
    assert not stored.open_level(RunState.RUNNING, 1, [1], seen=seen)


@scenario
def a_level_opens_once(stored: StoredRun) -> None:
    stored.lay("running", left=0, level=0)
    seen = stored.record()
    assert stored.open_level(RunState.RUNNING, 1, [], seen=seen)
    assert not stored.open_level(RunState.RUNNING, 1, [], seen=seen)


@scenario
def an_older_decision_opens_no_level_of_a_reopened_run(stored: StoredRun) -> None:
    seen = reopened(stored)
    assert not stored.open_level(RunState.FINISHING, 1, [1], seen=seen)


@scenario
def a_level_waits_for_the_previous_level(stored: StoredRun) -> None:
    stored.begin(0)
    assert not stored.open_level(RunState.RUNNING, 1, [1])


@scenario
def the_always_steps_of_an_aborting_run_wait_for_running_attempts(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    abort(stored)
    assert not stored.open_level(RunState.FINISHING, 1, [1])


@scenario
def a_skipped_unit_gets_no_message(stored: StoredRun) -> None:
    stored.fan_out(3, skip={1: "it is drained"})
    assert [stored.step(f"status:0.{n}") for n in range(3)] == ["ready", "skipped", "ready"]


@scenario
def no_more_units_are_dispatched_than_may_run_at_the_same_time(stored: StoredRun) -> None:
    stored.fan_out(3, at_once=1)
    assert [stored.step(f"status:0.{n}") for n in range(3)] == ["ready", None, None]


@scenario
def a_step_has_no_more_canaries_than_units(stored: StoredRun) -> None:
    stored.fan_out(2, canary=5)
    stored.complete("0.0", stored.claim("0.0").fence)
    stored.complete("0.1", stored.claim("0.1").fence)
    assert (stored.step("canaries:0"), stored.step("status:0")) == ("1", "changed")


@scenario
def canaries_are_dispatched_first(stored: StoredRun) -> None:
    stored.fan_out(4, canary=2)
    assert [stored.step(f"status:0.{n}") for n in range(4)] == ["ready", "ready", None, None]
    assert stored.complete("0.0", stored.claim("0.0").fence).next_units == ()
    assert stored.complete("0.1", stored.claim("0.1").fence).next_units == ("0.2", "0.3")


@scenario
def a_skipped_step_skips_its_units_that_have_not_ended(stored: StoredRun) -> None:
    seen = interrupted(stored)
    assert stored.store.open_level(stored.run_id, seen, RunState.FINISHING, 0, (), {0: "when: false"})
    assert [stored.step(f"status:0.{n}") for n in range(2)] == ["changed", "skipped"]


@scenario
def the_remaining_units_of_a_step_that_fails_before_it_begins_do_not_run(stored: StoredRun) -> None:
    seen = interrupted(stored)
    assert stored.store.open_level(stored.run_id, seen, RunState.FINISHING, 0, (), {}, failed={0: "no host"})
    assert [stored.step(f"status:0.{n}") for n in range(2)] == ["changed", "not_run"]


# --- store_units and dispatch_units ------------------------------------------------------------


def store(stored: StoredRun, token: str, first: int, *units: tuple[str, str], state: str = "pending") -> bool:
    """Store a part of the items of step 0; whether it was accepted."""
    flat = [part for unit in units for part in unit]
    return bool(stored.script("store_units", state, -1, 0, 0, token, first, *flat))


def opened(stored: StoredRun, token: str, units: int) -> bool:
    """Open level 0, in which step 0 is fanned out into stored items; whether it was opened."""
    fan_out = ("x", 0, units, units, 0, 0, 0, 0)
    return bool(stored.script("open_level", "pending", -1, "running", 0, 0, "", 1, 0, token, units, *fan_out))


@scenario
def items_are_stored_only_for_the_state_that_the_worker_has_read(stored: StoredRun) -> None:
    stored.create()
    assert not store(stored, "a", 0, ("1", ""), state="running")


@scenario
def a_step_that_was_fanned_out_keeps_its_items(stored: StoredRun) -> None:
    stored.fan_out(1)
    assert stored.script("store_units", "running", 0, 0, 0, "a", 0, '"other"', "") == 1
    assert stored.step("item:0.0") == "0"


@scenario
def the_items_of_two_guard_decisions_are_not_mixed(stored: StoredRun) -> None:
    stored.create()
    assert store(stored, "a", 0, ("1", ""))
    assert store(stored, "b", 0, ("2", ""))
    assert not store(stored, "a", 1, ("1", ""))
    assert store(stored, "b", 1, ("2", ""))


@scenario
def no_unit_keeps_the_host_of_another_guard_decision(stored: StoredRun) -> None:
    stored.create()
    assert store(stored, "a", 0, ("1", "one"))
    assert store(stored, "b", 0, ("1", ""))
    assert stored.step("host:0.0") is None


@scenario
def a_level_opens_only_with_all_items_of_one_guard_decision(stored: StoredRun) -> None:
    stored.create()
    assert store(stored, "a", 0, ("1", ""))
    assert not opened(stored, "a", 2)
    assert store(stored, "a", 1, ("2", ""))
    assert not opened(stored, "b", 2)
    assert opened(stored, "a", 2)


@scenario
def an_aborting_run_dispatches_no_unit(stored: StoredRun) -> None:
    stored.fan_out(1001)
    abort(stored)
    assert stored.store.dispatch_units(stored.run_id, 0) == []


# --- open_undo ---------------------------------------------------------------------------------


@scenario
def a_level_of_the_compensation_opens_once(stored: StoredRun) -> None:
    stored.lay("undoing", left=0, undo_level=2)
    seen = stored.record()
    assert stored.open_undo(1, [], seen=seen)
    assert not stored.open_undo(1, [], seen=seen)


@scenario
def an_older_decision_does_not_compensate_a_reopened_run(stored: StoredRun) -> None:
    seen = reopened(stored)
    assert not stored.open_undo(1, [1], seen=seen)


@scenario
def the_compensation_waits_for_running_attempts(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    abort(stored)
    assert not stored.open_undo(0, [0])


@scenario
def a_level_of_the_compensation_waits_for_the_previous_level(stored: StoredRun) -> None:
    stored.lay("undoing", left=1, undo_level=1)
    assert not stored.open_undo(0, [0])


# --- finish ------------------------------------------------------------------------------------


@scenario
def a_run_ends_only_from_the_state_that_the_worker_has_read(stored: StoredRun) -> None:
    stored.lay("undoing", left=0)
    assert not stored.store.finish(stored.run_id, RunState.RUNNING, RunState.SUCCEEDED, [])


@scenario
def a_run_does_not_end_while_an_attempt_runs(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    abort(stored)
    assert not stored.store.finish(stored.run_id, RunState.ABORTING, RunState.UNDONE, [])


@scenario
def an_older_decision_does_not_end_a_reopened_run(stored: StoredRun) -> None:
    seen = reopened(stored)
    assert not stored.store.finish(stored.run_id, RunState.UNDOING, RunState.UNDO_FAILED, [], seen.epoch)


@scenario
def a_run_does_not_end_while_a_step_of_its_level_has_not_ended(stored: StoredRun) -> None:
    stored.begin(0)
    assert not stored.store.finish(stored.run_id, RunState.RUNNING, RunState.SUCCEEDED, [])


# --- prelude: units -----------------------------------------------------------------------------------


@scenario
def a_step_is_skipped_if_all_of_its_units_are_skipped(stored: StoredRun) -> None:
    stored.fan_out(2)
    for unit in ("0.0", "0.1"):
        stored.complete(unit, stored.claim(unit).fence, "skipped", error="it has no engine")
    assert stored.step("status:0") == "skipped"
    assert "it has no engine" in str(stored.step("reason:0"))


@scenario
def a_failed_canary_is_not_tolerated(stored: StoredRun) -> None:
    stored.fan_out(3, canary=1, tolerated=2)
    stored.complete("0.0", stored.claim("0.0").fence, "failed", error="broken")
    assert stored.step("status:0") == "failed"


@scenario
def held_back_units_do_not_run_after_a_failed_canary(stored: StoredRun) -> None:
    stored.fan_out(3, canary=1)
    assert stored.complete("0.0", stored.claim("0.0").fence, "failed", error="broken").next_units == ()
    assert [stored.step(f"status:0.{n}") for n in range(3)] == ["failed", "not_run", "not_run"]
    assert (stored.step("status:0"), stored.run("left")) == ("failed", "0")


@scenario
def a_unit_that_has_ended_is_not_dispatched_again(stored: StoredRun) -> None:
    """An always step that an abort interrupted continues with the units that are left."""
    stored.fan_out(2)
    stored.complete("0.0", stored.claim("0.0").fence)
    abort(stored)
    stored.store.drain(stored.run_id, [("0.1", True)])
    stored.fan_out(2, state=RunState.FINISHING)
    assert (stored.step("status:0.0"), stored.step("status:0.1"), stored.step("fan_out_left:0")) == (
        "changed",
        "ready",
        "1",
    )


@scenario
def no_more_canaries_are_dispatched_than_the_plan_allows(stored: StoredRun) -> None:
    stored.fan_out(4, at_once=2, canary=2)
    assert stored.complete("0.0", stored.claim("0.0").fence).next_units == ()
    assert stored.step("status:0.2") is None


@scenario
def an_ended_run_is_swept_until_its_parent_run_and_its_hooks_know_the_end(stored: StoredRun) -> None:
    assert finished(stored, last=False) is Ending.RELEASED
    assert stored.store.live_count() == 1


@scenario
def an_ended_run_is_swept_until_the_runs_that_wait_for_its_place_are_admitted(stored: StoredRun) -> None:
    stored.redis.zadd(stored.store.keys.queue, {"another": 1})
    assert finished(stored, last=True) is Ending.RELEASED
    assert stored.store.live_count() == 1


def finished(stored: StoredRun, *, last: bool) -> Ending:
    """End a live run and release its place."""
    stored.redis.delete(stored.store.keys.live)
    stored.lay("running", left=0)
    stored.store.look_at(stored.run_id, 1)
    held = Admission(stored.store).held_keys(AdmissionRequest("p"))
    return stored.store.finish(stored.run_id, RunState.RUNNING, RunState.SUCCEEDED, [], release=held, last=last)
