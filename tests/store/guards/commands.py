"""Guards of the scripts that create, abort, suspend, resume, resolve and purge a run, and execute its commands."""

from __future__ import annotations

from longshore.orchestration.states import Cause, RunState
from tests.store.guards.marks import scenario
from tests.store.guards.situations import ask_a_person, failed, resolve, resume, suspended
from tests.store.stored_run import StoredRun

# --- create ------------------------------------------------------------------------------------


@scenario
def a_run_is_created_once(stored: StoredRun) -> None:
    stored.begin(0)
    stored.create()
    assert stored.run("state") == RunState.RUNNING


# --- abort -------------------------------------------------------------------------------------


@scenario
def a_run_that_has_ended_is_not_aborted(stored: StoredRun) -> None:
    stored.lay("succeeded", left=0)
    stored.store.abort(stored.run_id, Cause.DEADLINE, "")
    assert stored.run("state") == RunState.SUCCEEDED


@scenario
def a_suspended_run_is_aborted(stored: StoredRun) -> None:
    suspended(stored)
    assert stored.store.abort(stored.run_id, Cause.DEADLINE, "")
    assert (stored.run("state"), stored.run("suspended_state")) == ("aborting", None)


# --- command -----------------------------------------------------------------------------------


@scenario
def a_command_is_carried_out_once(stored: StoredRun) -> None:
    stored.lay("undo_failed")
    command = {"kind": "undo"}
    stored.store.carry_out(stored.run_id, "1-1", command, 2, [0])
    assert stored.store.finish(stored.run_id, RunState.UNDOING, RunState.UNDO_FAILED, [], epoch=1)
    assert stored.store.carry_out(stored.run_id, "1-1", command, 2, [0]) == "old"
    assert stored.run("state") == RunState.UNDO_FAILED


@scenario
def commands_of_the_same_millisecond_have_an_order(stored: StoredRun) -> None:
    stored.lay("running")
    stored.store.carry_out(stored.run_id, "1-10", {"kind": "none"}, 2, [])
    assert stored.store.carry_out(stored.run_id, "1-9", {"kind": "cancel"}, 2, []) == "old"


@scenario
def only_a_waiting_step_is_approved_or_rejected(stored: StoredRun) -> None:
    stored.begin(0)
    stored.script("command", "1-1", "approve", "ann", "", "", 1, 0)
    assert stored.step("decision:0") is None


@scenario
def the_first_decision_on_a_step_counts(stored: StoredRun) -> None:
    stored.begin(0)
    stored.park(0, stored.claim(0).fence)
    stored.script("command", "1-1", "approve", "ann", "", "", 1, 0)
    stored.script("command", "2-1", "reject", "eve", "", "", 1, 0)
    assert (stored.step("decision:0"), stored.step("decided_by:0")) == ("approve", "ann")


@scenario
def a_cancel_does_not_change_a_run_that_has_ended(stored: StoredRun) -> None:
    stored.lay("succeeded", left=0)
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "cancel"}, 2, [])
    assert stored.run("state") == RunState.SUCCEEDED


@scenario
def a_run_that_was_undone_is_not_undone_again(stored: StoredRun) -> None:
    stored.lay("undone", left=0)
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 2, [])
    assert stored.run("state") == RunState.UNDONE


# --- reopen ------------------------------------------------------------------------------------


@scenario
def a_resume_is_carried_out_once(stored: StoredRun) -> None:
    failed(stored)
    assert resume(stored) == "done"
    assert (stored.run("state"), stored.step("status:0"), stored.step("free_attempts:0")) == ("running", None, "1")
    stored.put(state="failed", epoch=0)
    assert resume(stored) == "old"


@scenario
def only_a_failed_or_partial_or_cancelled_run_runs_forward_again(stored: StoredRun) -> None:
    failed(stored)
    stored.put(state="succeeded")
    assert resume(stored) != "done"
    assert stored.run("state") == RunState.SUCCEEDED


@scenario
def a_run_is_resumed_only_in_the_epoch_that_the_worker_has_read(stored: StoredRun) -> None:
    failed(stored)
    stored.put(epoch=1)
    assert resume(stored) != "done"


# --- resolve -----------------------------------------------------------------------------------


@scenario
def a_resolution_is_carried_out_once(stored: StoredRun) -> None:
    failed(stored)
    assert resolve(stored, "done") == "done"
    assert stored.step("status:0") == "changed"
    stored.put(steps={"status:0": "failed"})
    assert resolve(stored, "done") == "old"


@scenario
def the_first_resolution_of_a_step_counts(stored: StoredRun) -> None:
    ask_a_person(stored)
    assert resolve(stored, "done") == "done"
    assert resolve(stored, "undone", "2-1") != "done"
    assert (stored.step("decision:0"), stored.step("decided_by:0")) == ("done", "ann")


@scenario
def in_a_live_run_only_a_step_that_waits_for_a_resolution_is_resolved(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.put(steps={"ustatus:0": "undo_failed"})
    assert resolve(stored, "undone") != "done"
    assert stored.step("ustatus:0") == "undo_failed"


@scenario
def a_step_that_is_done_is_not_resolved_as_done_or_skipped(stored: StoredRun) -> None:
    failed(stored)
    stored.put(steps={"status:0": "unchanged"})
    assert resolve(stored, "skip") != "done"
    assert stored.step("status:0") == "unchanged"


@scenario
def a_step_that_was_compensated_is_not_resolved_as_undone_or_abandoned(stored: StoredRun) -> None:
    failed(stored)
    stored.put(state="undone", steps={"ustatus:0": "undone"})
    assert resolve(stored, "abandon") != "done"
    assert stored.step("ustatus:0") == "undone"


# --- hold --------------------------------------------------------------------------------------


@scenario
def a_run_that_has_begun_gets_no_pending_reason(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.hold(stored.run_id, "the run waits for admission")
    assert stored.run("hold_reason") is None


@scenario
def a_pending_reason_is_recorded_once(stored: StoredRun) -> None:
    stored.create()
    for _ in range(2):
        stored.store.hold(stored.run_id, "the run waits for admission")
    assert len(stored.events("run_held")) == 1


# --- forget ------------------------------------------------------------------------------------


@scenario
def a_live_run_is_not_deleted(stored: StoredRun) -> None:
    stored.begin(0)
    assert not stored.store.forget(stored.run_id)
    assert stored.run("state") == RunState.RUNNING


@scenario
def a_deleted_run_leaves_no_side_record(stored: StoredRun) -> None:
    failed(stored)
    stored.redis.xadd(stored.keys.commands, {"kind": "cancel"})
    assert stored.store.forget(stored.run_id)
    assert stored.store.commands(stored.run_id) == []
