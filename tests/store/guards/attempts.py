"""Guards of the scripts that one attempt at a step calls."""

from __future__ import annotations

from longshore.orchestration.states import RunState
from longshore.orchestration.store.records import Grant
from tests.store.guards.marks import scenario
from tests.store.guards.situations import abort, superseded, suspended
from tests.store.stored_run import LEASE, StoredRun

# --- claim -------------------------------------------------------------------------------------


@scenario
def an_always_step_begins_in_a_suspended_run(stored: StoredRun) -> None:
    suspended(stored)
    assert isinstance(stored.store.claim(stored.run_id, 1, "", "o", "t", always=True), Grant)


@scenario
def no_other_step_begins_in_a_suspended_run(stored: StoredRun) -> None:
    suspended(stored)
    assert isinstance(stored.ask(1), str)


@scenario
def a_message_of_an_earlier_run_with_the_same_id_claims_nothing(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(instance_id="second")
    assert stored.store.claim(stored.run_id, 0, "", "o", "t", instance_id="first") == "another run"


@scenario
def no_step_begins_in_an_aborting_or_undoing_or_ended_run(stored: StoredRun) -> None:
    stored.begin(0)
    for state in ("aborting", "undoing", "failed"):
        stored.put(state=state)
        assert isinstance(stored.ask(0), str)


@scenario
def a_compensation_begins_only_in_an_undoing_run(stored: StoredRun) -> None:
    stored.lay("undoing", undo_level=0, steps={"ustatus:0": "ready"})
    stored.put(state="finishing")
    assert isinstance(stored.ask(0, "u"), str)


@scenario
def a_delivery_that_repeats_its_claim_gets_the_same_fence(stored: StoredRun) -> None:
    stored.begin(0)
    grant = stored.claim(0)
    assert stored.ask(0) == grant
    assert stored.step("attempts:0") == "1"


@scenario
def no_other_delivery_gets_the_fence_of_a_running_attempt(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0, owner="first")
    assert isinstance(stored.ask(0, owner="second"), str)


@scenario
def only_a_dispatched_step_is_claimed(stored: StoredRun) -> None:
    stored.begin(0)
    stored.complete(0, stored.claim(0).fence)
    assert isinstance(stored.ask(0, owner="doubled"), str)


@scenario
def a_retry_begins_no_earlier_than_it_is_due(stored: StoredRun) -> None:
    stored.begin(0)
    stored.retry(0, stored.claim(0).fence, delay=60)
    assert isinstance(stored.ask(0, owner="early"), str)


@scenario
def no_compensation_begins_after_the_time_limit_of_all_compensations(stored: StoredRun) -> None:
    stored.lay("undoing", undo_level=0, undo_deadline=stored.store.now(), steps={"ustatus:0": "ready"})
    assert isinstance(stored.ask(0, "u"), str)


@scenario
def a_step_with_a_journal_is_claimed_only_on_its_host(stored: StoredRun) -> None:
    stored.begin(0)
    grant = stored.claim(0, host="web1", stays=True)
    stored.store.journal(stored.run_id, 0, "", grant.fence, "", "{}")
    stored.retry(0, grant.fence)
    assert stored.store.claim(stored.run_id, 0, "", "other", "task", host="web2", stays=True) == "begun on web1"


@scenario
def a_step_without_a_journal_may_begin_on_another_host(stored: StoredRun) -> None:
    stored.begin(0)
    stored.retry(0, stored.claim(0, host="web1", stays=True).fence)
    assert isinstance(stored.ask(0, owner="other", host="web2", stays=True), Grant)


@scenario
def a_compensation_has_a_higher_fence_than_its_step(stored: StoredRun) -> None:
    """The undo's receipt rejects a forward attempt that wakes up later."""
    stored.begin(0)
    ahead = (stored.store.now() + 3_600_000) * 1000
    stored.put(state="undoing", steps={"fence:0": ahead, "ustatus:0": "ready"})
    assert int(stored.claim(0, "u").fence) > ahead


@scenario
def a_fence_grows_even_if_the_clock_went_back(stored: StoredRun) -> None:
    stored.begin(0)
    ahead = (stored.store.now() + 3_600_000) * 1000
    stored.put(steps={"fence:0": ahead})
    assert int(stored.claim(0).fence) > ahead


@scenario
def a_fence_that_redis_has_lost_is_not_granted_again(stored: StoredRun) -> None:
    stored.begin(0)
    before = int(stored.claim(0).fence)
    stored.redis.hdel(stored.keys.steps, "fence:0")
    stored.put(steps={"status:0": "ready"})
    assert int(stored.claim(0, owner="other").fence) > before


@scenario
def a_claim_resets_the_delay_of_repeated_messages(stored: StoredRun) -> None:
    """The delay of a resent message doubles each time, which must not delay the next attempt."""
    stored.begin(0)
    stored.age(LEASE + 1)
    assert stored.store.resend(stored.run_id, "", [0]) == ([0], [])
    stored.claim(0)
    assert stored.step("resent:0") is None


# --- complete ----------------------------------------------------------------------------------


@scenario
def an_outcome_counts_only_under_the_current_fence(stored: StoredRun) -> None:
    lost = superseded(stored)

    assert not stored.complete(0, lost, "failed", stops=True).accepted
    assert stored.run("state") == RunState.RUNNING
    assert stored.step("status:0") == "running"


@scenario
def an_outcome_counts_once(stored: StoredRun) -> None:
    stored.begin(0, 1)
    fence = stored.claim(0).fence
    stored.complete(0, fence)
    stored.complete(0, fence)
    assert stored.run("left") == "1"


@scenario
def the_sweeper_does_not_end_a_claimed_step(stored: StoredRun) -> None:
    """`resend` has reported the step as overdue; a worker claims the step at that moment."""
    stored.begin(0)
    stored.claim(0)
    assert not stored.complete(0, "", "failed", stops=True).accepted
    assert stored.step("status:0") == "running"


@scenario
def an_attempt_that_has_ended_holds_no_lease(stored: StoredRun) -> None:
    stored.begin(0, 1)
    stored.complete(0, stored.claim(0).fence)
    assert stored.leases() == {}


@scenario
def a_completed_step_has_no_external_wait(stored: StoredRun) -> None:
    stored.begin(0, 1)
    fence = stored.claim(0).fence
    stored.park(0, fence)
    stored.complete(0, fence)
    assert stored.waits() == {}


@scenario
def a_failure_does_not_abort_a_finishing_run(stored: StoredRun) -> None:
    """While undoing, the state must not fall back to aborting."""
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.put(state="finishing")
    stored.complete(0, fence, "failed", stops=True)
    assert stored.run("state") == RunState.FINISHING


@scenario
def a_failure_aborts_a_suspended_run(stored: StoredRun) -> None:
    suspended(stored)
    stored.complete(0, str(stored.step("fence:0")), "failed", stops=True)
    assert (stored.run("state"), stored.run("suspended_state")) == ("aborting", None)


@scenario
def the_next_link_of_a_chain_waits_for_the_end_of_the_previous_level(stored: StoredRun) -> None:
    stored.begin(0, 2)
    stored.complete(0, stored.claim(0).fence, next_link=1)
    assert stored.step("status:1") is None


@scenario
def a_worker_that_repeats_an_outcome_gets_the_claim_of_the_next_link_again(stored: StoredRun) -> None:
    """The reply to the first call was lost, and the caller calls again."""
    stored.begin(0)
    fence, ahead = stored.claim(0).fence, ("task@one.1", "task-1", "one", False)
    first = stored.complete(0, fence, next_link=1, ahead=ahead).next_grant
    again = stored.complete(0, fence, next_link=1, ahead=ahead).next_grant
    assert first is not None
    assert again is not None
    assert (again.fence, again.attempt) == (first.fence, first.attempt)
    assert stored.complete(0, fence, next_link=1, ahead=("task@two.1", *ahead[1:])).next_grant is None


@scenario
def the_next_link_of_a_chain_does_not_begin_in_an_aborting_run(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    abort(stored)
    stored.complete(0, fence, next_link=1)
    assert stored.step("status:1") is None


@scenario
def the_next_link_of_a_chain_does_not_begin_after_a_failure(stored: StoredRun) -> None:
    stored.begin(0)
    stored.complete(0, stored.claim(0).fence, "failed", next_link=1)
    assert stored.step("status:1") is None


# --- journal -----------------------------------------------------------------------------------


@scenario
def a_journal_entry_needs_the_current_fence(stored: StoredRun) -> None:
    lost = superseded(stored)
    assert not stored.journal(0, lost, "r", "b")


@scenario
def an_attempt_that_has_ended_writes_no_journal(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.retry(0, fence, delay=60)
    assert not stored.journal(0, fence, "r", "b")


@scenario
def the_first_journal_entry_counts(stored: StoredRun) -> None:
    """A second attempt would journal the effect of the first one as the state before."""
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.journal(0, fence, "rendered", "before")
    stored.journal(0, fence, "later", "later")
    assert (stored.step("rendered:0"), stored.step("before:0")) == ("rendered", "before")


# --- park --------------------------------------------------------------------------------------


@scenario
def a_stale_attempt_does_not_park_its_step(stored: StoredRun) -> None:
    lost = superseded(stored)
    stored.park(0, lost)
    assert stored.step("status:0") == "running"


@scenario
def a_step_that_has_ended_is_not_parked(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.complete(0, fence)
    stored.park(0, fence)
    assert stored.step("status:0") == "changed"


@scenario
def a_parked_step_holds_no_lease(stored: StoredRun) -> None:
    stored.begin(0)
    stored.park(0, stored.claim(0).fence)
    assert stored.leases() == {}


# --- renew -------------------------------------------------------------------------------------


@scenario
def a_lease_is_renewed_only_by_the_worker_of_its_attempt(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0, owner="task-1@one/x")
    stored.age(1)  # within one ms a renewal would change nothing
    before = stored.leases()
    stored.store.renew(stored.run_id, [("0", "task-1@two/")])
    assert stored.leases() == before


@scenario
def an_expired_lease_is_not_renewed(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0, owner="task-1@one/x")
    stored.end_lease("0")
    stored.expire(0)
    assert stored.store.renew(stored.run_id, [("0", "task-1@one/")]) == 0
    assert stored.leases() == {}


# --- retry -------------------------------------------------------------------------------------


@scenario
def a_stale_attempt_does_not_retry_its_step(stored: StoredRun) -> None:
    lost = superseded(stored)
    assert stored.retry(0, lost) == 0
    assert stored.step("status:0") == "running"


@scenario
def a_step_that_has_ended_is_not_retried(stored: StoredRun) -> None:
    stored.begin(0, 1)
    fence = stored.claim(0).fence
    stored.complete(0, fence)
    assert stored.retry(0, fence) == 0
    assert stored.step("status:0") == "changed"


@scenario
def an_always_step_is_retried_in_an_aborting_run(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    abort(stored)
    assert stored.retry(0, fence, always=True) == 1


@scenario
def no_other_step_is_retried_in_an_aborting_run(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    abort(stored)
    assert stored.retry(0, fence) == -1


@scenario
def a_step_whose_outcome_is_not_known_in_time_becomes_unknown(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 0, 0, "not yet", ask_for=10.0) == 1
    again = stored.claim(0, owner="second")
    assert stored.store.retry(stored.run_id, 0, "", again.fence, 11.0, 0, "not yet", ask_for=10.0) == -2
    assert stored.step("status:0") == "running"


@scenario
def an_attempt_that_did_not_act_does_not_count_for_the_limit_of_retries(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 0, 0, "down", counts=False)
    again = stored.claim(0, owner="second")
    assert (again.attempt, again.tries) == (2, 1)


@scenario
def a_retried_step_holds_no_lease(stored: StoredRun) -> None:
    stored.begin(0)
    stored.retry(0, stored.claim(0).fence)
    assert stored.leases() == {}


@scenario
def a_retried_step_has_no_external_wait(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.park(0, fence)
    stored.retry(0, fence)
    assert stored.waits() == {}
