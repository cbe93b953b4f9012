"""Guards of the scripts that expire leases, resend messages, drain an aborting run, suspend and release one."""

from __future__ import annotations

from longshore.orchestration.states import RunState
from tests.store.guards.marks import scenario
from tests.store.guards.situations import abort, ask_a_person, expired, lost_while_aborting, suspended
from tests.store.stored_run import LEASE, StoredRun

# --- expire ------------------------------------------------------------------------------------


@scenario
def an_attempt_whose_lease_has_not_expired_keeps_its_step(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    assert stored.expire(0) == "no"
    assert stored.step("status:0") == "running"


@scenario
def the_fence_rises_when_a_lease_expires(stored: StoredRun) -> None:
    """Before another attempt has claimed the step."""
    lost = expired(stored)
    assert not stored.journal(0, lost, "r", "b")
    assert stored.retry(0, lost) == 0
    assert not stored.complete(0, lost).accepted


@scenario
def an_expired_lease_is_removed(stored: StoredRun) -> None:
    expired(stored)
    assert stored.leases() == {}


@scenario
def a_step_that_must_not_be_repeated_becomes_unknown(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    assert stored.expire(0, repeatable=False) == "unknown"


@scenario
def a_step_with_too_many_lost_attempts_becomes_unknown(stored: StoredRun) -> None:
    stored.begin(0)
    for n in range(10):
        stored.claim(0, owner=f"owner-{n}")
        stored.end_lease("0")
        if stored.expire(0) == "unknown":
            return
    raise AssertionError("the step was repeated ten times")


@scenario
def an_aborting_run_does_not_repeat_a_lost_attempt(stored: StoredRun) -> None:
    lost_while_aborting(stored)
    assert stored.expire(0) == "unknown"


@scenario
def an_always_step_with_a_lost_attempt_runs_again_in_the_finishing_run(stored: StoredRun) -> None:
    lost_while_aborting(stored)
    assert stored.expire(0, always=True) == "again"
    assert stored.step("status:0") is None


@scenario
def a_plan_can_let_a_person_decide_about_a_step_that_may_have_acted(stored: StoredRun) -> None:
    assert ask_a_person(stored) == "asked"
    assert (stored.step("status:0"), stored.run("state"), stored.run("suspended_state")) == (
        "waiting",
        "suspended",
        "running",
    )


@scenario
def a_person_is_asked_only_in_a_running_run(stored: StoredRun) -> None:
    lost_while_aborting(stored)
    assert stored.expire(0, repeatable=False, ask_for=60.0) == "unknown"


@scenario
def a_lost_attempt_does_not_abort_a_finishing_run(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.put(state="finishing")
    stored.end_lease("0")
    stored.expire(0, repeatable=False, stops=True)
    assert stored.run("state") == RunState.FINISHING


# --- resend ------------------------------------------------------------------------------------


@scenario
def the_claim_timeout_of_a_step_bound_to_a_host_ignores_claims_on_other_hosts(stored: StoredRun) -> None:
    stored.begin(0, 1)
    stored.age(stored.store.settings.claim_timeout + 1)
    stored.claim(1, host="web2")
    assert stored.store.resend(stored.run_id, "", [0], {0: "web1"}) == ([], [0])


@scenario
def no_message_is_sent_for_a_claimed_step(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.age(LEASE + 1)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


@scenario
def a_message_that_waits_in_its_queue_is_not_sent_again(stored: StoredRun) -> None:
    stored.begin(0, 1)
    stored.age(LEASE + 1)
    assert stored.store.resend(stored.run_id, "", [0, 1], queued={0}) == ([1], [])


@scenario
def a_message_that_may_still_arrive_is_not_sent_again(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


@scenario
def a_retry_is_not_sent_before_it_is_due(stored: StoredRun) -> None:
    stored.begin(0)
    stored.retry(0, stored.claim(0).fence, delay=60, grace=-50)
    stored.age(LEASE + 2)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


# --- drain -------------------------------------------------------------------------------------


@scenario
def a_drain_cancels_nothing_in_a_run_that_is_not_aborting(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("status:0") == "ready"


@scenario
def a_drain_cancels_units_that_were_held_back(stored: StoredRun) -> None:
    stored.fan_out(2, at_once=1)
    abort(stored)
    stored.store.drain(stored.run_id, [("0.0", False), ("0.1", False)])
    assert stored.step("status:0") == "cancelled"


@scenario
def a_drain_does_not_cancel_a_claimed_step(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    abort(stored)
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("status:0") == "running"


@scenario
def a_drain_does_not_cancel_an_always_step(stored: StoredRun) -> None:
    stored.begin(0)
    abort(stored)
    stored.store.drain(stored.run_id, [(0, True)])
    assert stored.step("status:0") is None


@scenario
def a_step_with_a_lost_attempt_becomes_unknown_instead_of_cancelled(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    stored.expire(0)
    abort(stored)
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("status:0") == "unknown"


@scenario
def a_step_whose_service_was_down_at_each_attempt_had_no_effect(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 60, 0, "down", counts=False, service="billing")
    abort(stored)
    stored.store.drain(stored.run_id, [(0, False)])
    assert (stored.step("status:0"), stored.step("no_effect:0")) == ("cancelled", "1")


@scenario
def a_step_whose_outcome_is_not_known_yet_becomes_unknown_instead_of_cancelled(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 60, 0, "not yet", ask_for=3600.0)
    abort(stored)
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("status:0") == "unknown"


# --- suspend -----------------------------------------------------------------------------------


@scenario
def a_run_is_suspended_only_in_the_epoch_that_the_worker_has_read(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(epoch=1)
    assert not stored.store.suspend(stored.run_id, "breaker", "it is down", 0)


@scenario
def new_versions_are_higher_than_all_lost_versions(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.suspend(stored.run_id, "regressed", "writes were lost", 0, version=100)
    assert int(stored.run("version") or 0) > 100


@scenario
def a_loss_of_writes_suspends_a_run_once(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(version=100)
    assert not stored.store.suspend(stored.run_id, "regressed", "writes were lost", 0, version=100)


@scenario
def a_breaker_does_not_release_a_run_that_waits_for_a_person(stored: StoredRun) -> None:
    ask_a_person(stored)
    stored.store.suspend(stored.run_id, "breaker", "it is down", 0)
    assert not stored.store.unsuspend(stored.run_id, "breaker", 0, "", [])
    assert stored.run("state") == RunState.SUSPENDED


@scenario
def a_pending_or_finishing_or_ended_run_is_not_suspended(stored: StoredRun) -> None:
    stored.begin(0)
    for state in ("pending", "finishing", "failed", "undone"):
        stored.put(state=state)
        assert not stored.store.suspend(stored.run_id, "breaker", "it is down", 0)


# --- unsuspend ---------------------------------------------------------------------------------


@scenario
def only_a_suspended_run_is_released(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(suspended_state="undoing", hold="breaker")
    assert not stored.store.unsuspend(stored.run_id, "breaker", 0, "", [])


@scenario
def a_run_is_released_only_in_the_epoch_that_the_worker_has_read(stored: StoredRun) -> None:
    suspended(stored)
    stored.put(epoch=1)
    assert not stored.store.unsuspend(stored.run_id, "breaker", 0, "", [])


@scenario
def a_command_releases_a_run_once(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.suspend(stored.run_id, "regressed", "lost")
    asked = {"command_id": "5-1", "command": {"actor": "ann"}}
    assert stored.store.unsuspend(stored.run_id, "regressed", 0, "", [0], **asked)
    assert (stored.run("last_command"), stored.run("answer"), stored.run("state")) == ("5-1", "done", "running")
    stored.store.suspend(stored.run_id, "regressed", "lost again")
    assert not stored.store.unsuspend(stored.run_id, "regressed", 0, "", [0], **asked)
    assert stored.run("state") == "suspended"


@scenario
def a_release_does_not_change_a_running_step(stored: StoredRun) -> None:
    suspended(stored)
    stored.put(steps={"sent:0": "1"})
    assert stored.store.unsuspend(stored.run_id, "breaker", 0, "", [0, 1])
    assert stored.step("sent:0") == "1"
    assert stored.run("state") == "running"
    assert int(stored.step("sent_until:1") or 0) <= stored.store.now()
