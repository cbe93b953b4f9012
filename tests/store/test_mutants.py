"""Each guard in a script is needed: without it, a scenario that is told here goes wrong.

A mutant is a script with one guard replaced. Its check must hold with the script as it is, and fail with
the mutant; a mutant that no check tells apart is a guard that nothing tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from longshore.orchestration import lua
from longshore.orchestration.admission import Admission, Wanted
from longshore.orchestration.errors import QueueFull
from longshore.orchestration.saga import Again, RunRecord
from longshore.orchestration.states import Cause, RunState
from longshore.orchestration.store import Grant
from tests.servers import RedisServer
from tests.store.stored_run import LEASE, StoredRun

pytestmark = pytest.mark.store

Check = Callable[[StoredRun], None]
R = RunState


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in the script, and becomes `new`."""

    script: str
    old: str
    new: str
    check: Check

    def __str__(self) -> str:
        return f"{self.script}-{self.check.__name__}"


# --- the checks -----------------------------------------------------------------------------------------


def the_outcome_of_a_lost_attempt_does_not_count(stored: StoredRun) -> None:
    stored.begin(0)
    lost = stored.claim(0, owner="first")
    stored.end_lease("0")
    stored.expire(0)
    stored.claim(0, owner="second")

    assert not stored.complete(0, lost.fence, "failed", stops=True).accepted
    assert stored.run("state") == R.RUNNING
    assert stored.step("s:0") == "running"


def an_outcome_counts_once(stored: StoredRun) -> None:
    stored.begin(0, 1)
    fence = stored.claim(0).fence
    stored.complete(0, fence)
    stored.complete(0, fence)
    assert stored.run("left") == "1"


def a_step_that_is_at_work_is_not_ended_by_the_sweeper(stored: StoredRun) -> None:
    """`resend` has told that it waited too long; a worker claims it just then."""
    stored.begin(0)
    stored.claim(0)
    assert not stored.complete(0, "", "failed", stops=True).accepted
    assert stored.step("s:0") == "running"


def a_failure_does_not_end_a_run_that_undoes(stored: StoredRun) -> None:
    """While undoing, the state must not fall back to aborting."""
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.put(state="finishing")
    stored.complete(0, fence, "failed", stops=True)
    assert stored.run("state") == R.FINISHING


def the_next_link_is_not_opened_after_a_failure(stored: StoredRun) -> None:
    stored.begin(0)
    stored.complete(0, stored.claim(0).fence, "failed", next_link=1)
    assert stored.step("s:1") is None


def the_next_link_is_not_opened_while_the_run_is_ending(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.complete(0, fence, next_link=1)
    assert stored.step("s:1") is None


def the_next_link_waits_for_its_siblings(stored: StoredRun) -> None:
    stored.begin(0, 2)
    stored.complete(0, stored.claim(0).fence, next_link=1)
    assert stored.step("s:1") is None


def what_has_ended_is_not_done_again(stored: StoredRun) -> None:
    stored.begin(0)
    stored.complete(0, stored.claim(0).fence)
    assert isinstance(stored.ask(0, owner="doubled"), str)


def nothing_begins_in_a_run_that_is_ending(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert isinstance(stored.ask(0), str)


def nothing_is_taken_back_in_a_run_that_does_not_undo(stored: StoredRun) -> None:
    stored.lay("undoing", ulevel=0, steps={"us:0": "ready"})
    stored.put(state="finishing")
    assert isinstance(stored.ask(0, "u"), str)


def a_retry_waits_for_its_time(stored: StoredRun) -> None:
    stored.begin(0)
    stored.retry(0, stored.claim(0).fence, delay=60)
    assert isinstance(stored.ask(0, owner="early"), str)


def the_same_delivery_has_its_grant_again(stored: StoredRun) -> None:
    stored.begin(0)
    grant = stored.claim(0)
    assert stored.ask(0) == grant
    assert stored.step("a:0") == "1"


def only_the_same_delivery_has_its_grant_again(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0, owner="first")
    assert isinstance(stored.ask(0, owner="second"), str)


def a_fence_is_not_granted_twice_though_redis_forgot_it(stored: StoredRun) -> None:
    stored.begin(0)
    before = int(stored.claim(0).fence)
    stored.redis.hdel(stored.keys.steps, "f:0")
    stored.put(steps={"s:0": "ready"})
    assert int(stored.claim(0, owner="other").fence) > before


def a_fence_grows_though_the_clock_went_back(stored: StoredRun) -> None:
    stored.begin(0)
    ahead = (stored.store.now() + 3_600_000) * 1000
    stored.put(steps={"f:0": ahead})
    assert int(stored.claim(0).fence) > ahead


def a_living_attempt_keeps_its_step(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    assert stored.expire(0) == "no"
    assert stored.step("s:0") == "running"


def a_lost_attempt_is_fenced_off_at_once(stored: StoredRun) -> None:
    """Also before anybody else has claimed the step."""
    stored.begin(0)
    lost = stored.claim(0)
    stored.end_lease("0")
    stored.expire(0)
    assert not stored.journal(0, lost.fence, "r", "b")
    assert stored.retry(0, lost.fence) == 0
    assert not stored.complete(0, lost.fence).accepted


def a_step_that_kills_its_workers_is_given_up(stored: StoredRun) -> None:
    stored.begin(0)
    for n in range(10):
        stored.claim(0, owner=f"owner-{n}")
        stored.end_lease("0")
        if stored.expire(0) == "unknown":
            return
    raise AssertionError("it goes on for ever")


def what_must_not_be_repeated_is_not(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    assert stored.expire(0, repeatable=False) == "unknown"


def a_loss_ends_a_run_that_runs_alone(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.put(state="finishing")
    stored.end_lease("0")
    stored.expire(0, repeatable=False, stops=True)
    assert stored.run("state") == R.FINISHING


def what_is_lost_in_a_run_that_is_ending_is_not_repeated(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.end_lease("0")
    assert stored.expire(0) == "unknown"


def an_always_step_that_is_lost_has_its_turn(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.end_lease("0")
    assert stored.expire(0, always=True) == "again"
    assert stored.step("s:0") is None


def reopen(stored: StoredRun) -> RunRecord:
    """The record of before; state, level and what is left are the same afterwards."""
    stored.lay("undoing", left=0, ulevel=2)
    seen = stored.record()
    stored.store.finish(stored.run_id, R.UNDOING, R.UNDO_FAILED, [])
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 2, [])
    return seen


def a_run_that_was_reopened_is_not_ended_by_what_was_decided_before(stored: StoredRun) -> None:
    seen = reopen(stored)
    assert not stored.store.finish(stored.run_id, R.UNDOING, R.UNDO_FAILED, [], seen.epoch)


def a_run_that_was_reopened_is_not_undone_by_what_was_decided_before(stored: StoredRun) -> None:
    seen = reopen(stored)
    assert not stored.open_undo(1, [1], seen=seen)


def a_run_that_was_reopened_is_not_finished_by_what_was_decided_before(stored: StoredRun) -> None:
    seen = reopen(stored)
    assert not stored.open_level(R.FINISHING, 1, [1], seen=seen)


def a_level_waits_for_the_one_before(stored: StoredRun) -> None:
    stored.begin(0)
    assert not stored.open_level(R.RUNNING, 1, [1])


def no_level_is_opened_in_a_run_that_was_cancelled_meanwhile(stored: StoredRun) -> None:
    stored.lay("running", left=0)
    seen = stored.record()
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert not stored.open_level(R.RUNNING, 1, [1], seen=seen)


def a_level_is_not_opened_once_more(stored: StoredRun) -> None:
    stored.lay("running", left=0, level=0)
    seen = stored.record()
    assert stored.open_level(R.RUNNING, 1, [], seen=seen)
    assert not stored.open_level(R.RUNNING, 1, [], seen=seen)


def the_always_steps_wait_for_what_runs(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert not stored.open_level(R.FINISHING, 1, [1])


def the_undo_waits_for_what_runs(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert not stored.open_undo(0, [0])


def an_undo_level_waits_for_the_one_above(stored: StoredRun) -> None:
    stored.lay("undoing", left=1, ulevel=1)
    assert not stored.open_undo(0, [0])


def an_undo_level_is_opened_once(stored: StoredRun) -> None:
    stored.lay("undoing", left=0, ulevel=2)
    seen = stored.record()
    assert stored.open_undo(1, [], seen=seen)
    assert not stored.open_undo(1, [], seen=seen)


def a_run_does_not_end_while_something_runs(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert not stored.store.finish(stored.run_id, R.ABORTING, R.UNDONE, [])


def a_run_does_not_end_while_something_is_left(stored: StoredRun) -> None:
    stored.begin(0)
    assert not stored.store.finish(stored.run_id, R.RUNNING, R.SUCCEEDED, [])


def a_run_ends_from_where_it_was_decided(stored: StoredRun) -> None:
    stored.lay("undoing", left=0)
    assert not stored.store.finish(stored.run_id, R.RUNNING, R.SUCCEEDED, [])


def a_lease_is_renewed_by_its_owner_alone(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0, owner="task-1@one/x")
    stored.age(1)  # within one ms a renewal would change nothing
    before = stored.leases()
    stored.store.renew(stored.run_id, [("0", "task-1@two/")])
    assert stored.leases() == before


def a_lease_that_was_taken_is_not_renewed(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0, owner="task-1@one/x")
    stored.end_lease("0")
    stored.expire(0)
    assert stored.store.renew(stored.run_id, [("0", "task-1@one/")]) == 0
    assert stored.leases() == {}


def a_command_is_carried_out_once(stored: StoredRun) -> None:
    stored.lay("undo_failed")
    command = {"kind": "undo"}
    stored.store.carry_out(stored.run_id, "1-1", command, 2, [0])
    assert stored.store.finish(stored.run_id, R.UNDOING, R.UNDO_FAILED, [], epoch=1)
    assert stored.store.carry_out(stored.run_id, "1-1", command, 2, [0]) == "old"
    assert stored.run("state") == R.UNDO_FAILED


def commands_of_one_millisecond_have_an_order(stored: StoredRun) -> None:
    stored.lay("running")
    stored.store.carry_out(stored.run_id, "1-10", {"kind": "none"}, 2, [])
    assert stored.store.carry_out(stored.run_id, "1-9", {"kind": "cancel"}, 2, []) == "old"


def what_is_undone_is_not_undone_again(stored: StoredRun) -> None:
    stored.lay("undone", left=0)
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 2, [])
    assert stored.run("state") == R.UNDONE


def a_cancel_does_not_touch_a_run_that_has_ended(stored: StoredRun) -> None:
    stored.lay("succeeded", left=0)
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "cancel"}, 2, [])
    assert stored.run("state") == R.SUCCEEDED


def an_abort_does_not_touch_a_run_that_has_ended(stored: StoredRun) -> None:
    stored.lay("succeeded", left=0)
    stored.store.abort(stored.run_id, Cause.DEADLINE, "")
    assert stored.run("state") == R.SUCCEEDED


def the_journal_keeps_what_came_first(stored: StoredRun) -> None:
    """A second attempt would find what the first one did, and take that for the state before."""
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.journal(0, fence, "rendered", "before")
    stored.journal(0, fence, "later", "later")
    assert (stored.step("r:0"), stored.step("j:0")) == ("rendered", "before")


def an_attempt_that_lost_its_step_writes_nothing_down(stored: StoredRun) -> None:
    stored.begin(0)
    lost = stored.claim(0, owner="first")
    stored.end_lease("0")
    stored.expire(0)
    stored.claim(0, owner="second")
    assert not stored.journal(0, lost.fence, "r", "b")


def an_attempt_that_has_ended_writes_nothing_down(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.retry(0, fence, delay=60)
    assert not stored.journal(0, fence, "r", "b")


def an_attempt_that_lost_its_step_does_not_put_it_back(stored: StoredRun) -> None:
    stored.begin(0)
    lost = stored.claim(0, owner="first")
    stored.end_lease("0")
    stored.expire(0)
    stored.claim(0, owner="second")
    assert stored.retry(0, lost.fence) == 0
    assert stored.step("s:0") == "running"


def there_is_no_retry_in_a_run_that_is_ending(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert stored.retry(0, fence) == -1


def an_always_step_has_its_retry_in_a_run_that_is_ending(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert stored.retry(0, fence, always=True) == 1


def what_has_ended_is_not_put_back(stored: StoredRun) -> None:
    stored.begin(0, 1)
    fence = stored.claim(0).fence
    stored.complete(0, fence)
    assert stored.retry(0, fence) == 0
    assert stored.step("s:0") == "changed"


def a_message_under_way_is_not_doubled(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


def a_parked_retry_is_not_sent_early(stored: StoredRun) -> None:
    stored.begin(0)
    stored.retry(0, stored.claim(0).fence, delay=60, grace=-50)
    stored.age(LEASE + 2)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


def no_message_is_sent_for_a_step_at_work(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.age(LEASE + 1)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


def drain_cancels_nothing_in_a_run_that_goes_on(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("s:0") == "ready"


def drain_leaves_what_runs_alone(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("s:0") == "running"


def drain_leaves_an_always_step_its_turn(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [(0, True)])
    assert stored.step("s:0") is None


def what_was_lost_is_not_called_cancelled(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    stored.expire(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("s:0") == "unknown"


def a_run_is_created_once(stored: StoredRun) -> None:
    stored.begin(0)
    stored.create()
    assert stored.run("state") == R.RUNNING


def an_undo_is_fenced_off_from_what_it_takes_back(stored: StoredRun) -> None:
    """What an undo leaves at its target refuses the forward attempt that wakes up after it."""
    stored.begin(0)
    ahead = (stored.store.now() + 3_600_000) * 1000
    stored.put(state="undoing", steps={"f:0": ahead, "us:0": "ready"})
    assert int(stored.claim(0, "u").fence) > ahead


def suspended(stored: StoredRun, was: str = "running") -> None:
    """Step 0 has been claimed, step 1 has not."""
    stored.begin(0, 1)
    stored.claim(0)
    stored.put(state=was)
    assert stored.store.suspend(stored.run_id, "breaker", "it is down", 0, service="billing")


def an_always_step_has_its_turn_in_a_suspended_run(stored: StoredRun) -> None:
    suspended(stored)
    assert isinstance(stored.store.claim(stored.run_id, 1, "", "o", "t", always=True), Grant)


def nothing_else_begins_in_a_suspended_run(stored: StoredRun) -> None:
    suspended(stored)
    assert isinstance(stored.ask(1), str)


def a_failure_ends_a_run_that_is_suspended(stored: StoredRun) -> None:
    suspended(stored)
    stored.complete(0, str(stored.step("f:0")), "failed", stops=True)
    assert (stored.run("state"), stored.run("was")) == ("aborting", None)


def a_suspended_run_can_be_ended(stored: StoredRun) -> None:
    suspended(stored)
    assert stored.store.abort(stored.run_id, Cause.DEADLINE, "")
    assert (stored.run("state"), stored.run("was")) == ("aborting", None)


def nobody_is_asked_while_the_run_is_ending(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.end_lease("0")
    assert stored.expire(0, repeatable=False, ask_for=60.0) == "unknown"


def a_person_is_asked_about_what_may_have_happened(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    assert stored.expire(0, repeatable=False, ask_for=60.0) == "asked"
    assert (stored.step("s:0"), stored.run("state"), stored.run("was")) == ("waiting", "suspended", "running")


def an_attempt_in_vain_does_not_count(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 0, 0, "down", counts=False)
    again = stored.claim(0, owner="second")
    assert (again.attempt, again.tries) == (2, 1)


def it_is_not_asked_for_ever(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 0, 0, "not yet", ask_for=10.0) == 1
    again = stored.claim(0, owner="second")
    assert stored.store.retry(stored.run_id, 0, "", again.fence, 11.0, 0, "not yet", ask_for=10.0) == -2
    assert stored.step("s:0") == "running"


def what_is_not_known_yet_is_not_called_cancelled(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.retry(stored.run_id, 0, "", stored.claim(0).fence, 60, 0, "not yet", ask_for=3600.0)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [(0, False)])
    assert stored.step("s:0") == "unknown"


def only_the_run_that_was_seen_is_suspended(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(epoch=1)
    assert not stored.store.suspend(stored.run_id, "breaker", "it is down", 0)


def what_rests_or_finishes_is_not_suspended(stored: StoredRun) -> None:
    stored.begin(0)
    for state in ("pending", "finishing", "failed", "undone"):
        stored.put(state=state)
        assert not stored.store.suspend(stored.run_id, "breaker", "it is down", 0)


def what_waits_for_a_person_is_not_lifted_by_a_service(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    stored.expire(0, repeatable=False, ask_for=60.0)
    stored.store.suspend(stored.run_id, "breaker", "it is down", 0)
    assert not stored.store.unsuspend(stored.run_id, "breaker", 0, "", [])
    assert stored.run("state") == R.SUSPENDED


def a_lost_version_is_not_reached_again(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.suspend(stored.run_id, "regressed", "writes were lost", 0, version=100)
    assert int(stored.run("ver") or 0) > 100


def a_loss_suspends_a_run_once(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(ver=100)
    assert not stored.store.suspend(stored.run_id, "regressed", "writes were lost", 0, version=100)


def what_goes_on_is_not_lifted_again(stored: StoredRun) -> None:
    stored.begin(0)
    stored.put(was="undoing", hold="breaker")
    assert not stored.store.unsuspend(stored.run_id, "breaker", 0, "", [])


def a_command_that_was_carried_out_lifts_nothing_again(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.suspend(stored.run_id, "regressed", "lost")
    asked = {"command_id": "5-1", "command": {"actor": "ann"}}
    assert stored.store.unsuspend(stored.run_id, "regressed", 0, "", [0], **asked)
    assert (stored.run("cmd"), stored.run("answer"), stored.run("state")) == ("5-1", "done", "running")
    stored.store.suspend(stored.run_id, "regressed", "lost again")
    assert not stored.store.unsuspend(stored.run_id, "regressed", 0, "", [0], **asked)
    assert stored.run("state") == "suspended"


def only_the_run_that_was_seen_goes_on(stored: StoredRun) -> None:
    suspended(stored)
    stored.put(epoch=1)
    assert not stored.store.unsuspend(stored.run_id, "breaker", 0, "", [])


def what_runs_is_left_alone_when_a_run_goes_on(stored: StoredRun) -> None:
    suspended(stored)
    sent = stored.step("q:0")
    stored.put(steps={"q:0": "1"})
    assert stored.store.unsuspend(stored.run_id, "breaker", 0, "", [0, 1])
    assert sent is not None
    assert stored.step("q:0") == "1"
    assert stored.run("state") == "running"
    assert int(stored.step("d:1") or 0) <= stored.store.now()


def failed(stored: StoredRun) -> None:
    stored.begin(0)
    stored.complete(0, stored.claim(0).fence, "failed")
    assert stored.store.finish(stored.run_id, R.RUNNING, R.FAILED, [1, 2])


def reopen_it(stored: StoredRun, command_id: str = "1-1", epoch: int = 0) -> str:
    return stored.store.reopen(stored.run_id, command_id, {"actor": "ann"}, epoch, Again(-1, (0, 1, 2)), keep=False)


def only_what_failed_begins_anew(stored: StoredRun) -> None:
    failed(stored)
    stored.put(state="succeeded")
    assert reopen_it(stored) != "done"
    assert stored.run("state") == R.SUCCEEDED


def a_run_is_not_reopened_from_what_was_seen_before(stored: StoredRun) -> None:
    failed(stored)
    stored.put(epoch=1)
    assert reopen_it(stored) != "done"


def a_resume_is_carried_out_once(stored: StoredRun) -> None:
    failed(stored)
    assert reopen_it(stored) == "done"
    assert (stored.run("state"), stored.step("s:0"), stored.step("ab:0")) == ("running", None, "1")
    stored.put(state="failed", epoch=0)
    assert reopen_it(stored) == "old"


def say(stored: StoredRun, word: str, command_id: str = "1-1", index: int = 0) -> str:
    return stored.store.resolve(stored.run_id, command_id, {"actor": "ann", "as": word}, index)


def a_word_is_carried_out_once(stored: StoredRun) -> None:
    failed(stored)
    assert say(stored, "done") == "done"
    assert stored.step("s:0") == "changed"
    stored.put(steps={"s:0": "failed"})
    assert say(stored, "done") == "old"


def the_first_word_counts(stored: StoredRun) -> None:
    a_person_is_asked_about_what_may_have_happened(stored)
    assert say(stored, "done") == "done"
    assert say(stored, "undone", "2-1") != "done"
    assert (stored.step("dk:0"), stored.step("dw:0")) == ("done", "ann")


def a_step_at_work_is_not_resolved(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.put(steps={"us:0": "undo_failed"})
    assert say(stored, "undone") != "done"
    assert stored.step("us:0") == "undo_failed"


def what_is_done_is_not_resolved(stored: StoredRun) -> None:
    failed(stored)
    stored.put(steps={"s:0": "unchanged"})
    assert say(stored, "skip") != "done"
    assert stored.step("s:0") == "unchanged"


def what_was_taken_back_is_not_resolved(stored: StoredRun) -> None:
    failed(stored)
    stored.put(state="undone", steps={"us:0": "undone"})
    assert say(stored, "abandon") != "done"
    assert stored.step("us:0") == "undone"


def a_live_run_is_not_forgotten(stored: StoredRun) -> None:
    stored.begin(0)
    assert not stored.store.forget(stored.run_id)
    assert stored.run("state") == R.RUNNING


def what_has_begun_is_not_held(stored: StoredRun) -> None:
    stored.begin(0)
    stored.store.hold(stored.run_id, "it waits for its turn")
    assert stored.run("held") is None


def why_a_run_waits_is_said_once(stored: StoredRun) -> None:
    stored.create()
    for _ in range(2):
        stored.store.hold(stored.run_id, "it waits for its turn")
    assert len(stored.events("run_held")) == 1


# --- the table ------------------------------------------------------------------------------------------

NEVER = "false"


def a_lost_attempt_parks_nothing(stored: StoredRun) -> None:
    stored.begin(0)
    lost = stored.claim(0, owner="first")
    stored.end_lease("0")
    stored.expire(0)
    stored.claim(0, owner="second")
    stored.park(0, lost.fence)
    assert stored.step("s:0") == "running"


def what_has_ended_is_not_parked(stored: StoredRun) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.complete(0, fence)
    stored.park(0, fence)
    assert stored.step("s:0") == "changed"


def the_first_decision_counts(stored: StoredRun) -> None:
    stored.begin(0)
    stored.park(0, stored.claim(0).fence)
    stored.script("command", "1-1", "approve", "ann", "", "", 1, 0)
    stored.script("command", "2-1", "reject", "eve", "", "", 1, 0)
    assert (stored.step("dk:0"), stored.step("dw:0")) == ("approve", "ann")


def only_what_waits_is_decided(stored: StoredRun) -> None:
    stored.begin(0)
    stored.script("command", "1-1", "approve", "ann", "", "", 1, 0)
    assert stored.step("dk:0") is None


def units_are_held_back(stored: StoredRun) -> None:
    stored.fan_out(3, at_once=1)
    assert [stored.step(f"s:0.{n}") for n in range(3)] == ["ready", None, None]


def a_unit_that_has_ended_is_not_done_again(stored: StoredRun) -> None:
    """An always step that was interrupted by an abort goes on with what is left of it."""
    stored.fan_out(2)
    stored.complete("0.0", stored.claim("0.0").fence)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [("0.1", True)])
    stored.fan_out(2, state=RunState.FINISHING)
    assert (stored.step("s:0.0"), stored.step("s:0.1"), stored.step("k:0")) == ("changed", "ready", "1")


def canaries_go_first(stored: StoredRun) -> None:
    stored.fan_out(4, canary=2)
    assert [stored.step(f"s:0.{n}") for n in range(4)] == ["ready", "ready", None, None]
    assert stored.complete("0.0", stored.claim("0.0").fence).next_units == ()
    assert stored.complete("0.1", stored.claim("0.1").fence).next_units == ("0.2", "0.3")


def more_canaries_than_there_are_units_are_all_of_them(stored: StoredRun) -> None:
    stored.fan_out(2, canary=5)
    stored.complete("0.0", stored.claim("0.0").fence)
    stored.complete("0.1", stored.claim("0.1").fence)
    assert (stored.step("cn:0"), stored.step("s:0")) == ("1", "changed")


def what_is_skipped_as_a_whole_leaves_no_part_open(stored: StoredRun) -> None:
    """An always step that an abort has stopped, and that is skipped when its turn comes again."""
    stored.fan_out(2, at_once=1)
    stored.complete("0.0", stored.claim("0.0").fence)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [("0.1", True)])
    seen = stored.record()
    assert stored.store.open_level(stored.run_id, seen, RunState.FINISHING, 0, (), {0: "it is not wanted"})
    assert [stored.step(f"s:0.{n}") for n in range(2)] == ["changed", "skipped"]


def what_has_failed_as_a_whole_leaves_no_part_open(stored: StoredRun) -> None:
    stored.fan_out(2, at_once=1)
    stored.complete("0.0", stored.claim("0.0").fence)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [("0.1", True)])
    seen = stored.record()
    assert stored.store.open_level(stored.run_id, seen, RunState.FINISHING, 0, (), {}, failed={0: "no host"})
    assert [stored.step(f"s:0.{n}") for n in range(2)] == ["changed", "not_run"]


def what_was_begun_on_a_host_is_not_claimed_on_another(stored: StoredRun) -> None:
    stored.begin(0)
    grant = stored.claim(0, host="web1", stays=True)
    stored.store.journal(stored.run_id, 0, "", grant.fence, "", "{}")
    stored.retry(0, grant.fence)
    assert stored.store.claim(stored.run_id, 0, "", "other", "task", host="web2", stays=True) == "begun on web1"


def the_rest_is_left_alone_when_a_canary_fails(stored: StoredRun) -> None:
    stored.fan_out(3, canary=1)
    assert stored.complete("0.0", stored.claim("0.0").fence, "failed", error="broken").next_units == ()
    assert [stored.step(f"s:0.{n}") for n in range(3)] == ["failed", "not_run", "not_run"]
    assert (stored.step("s:0"), stored.run("left")) == ("failed", "0")


def a_canary_that_fails_is_not_tolerated(stored: StoredRun) -> None:
    stored.fan_out(3, canary=1, tolerated=2)
    stored.complete("0.0", stored.claim("0.0").fence, "failed", error="broken")
    assert stored.step("s:0") == "failed"


def a_later_canary_is_one_of_those_that_were_chosen(stored: StoredRun) -> None:
    stored.fan_out(4, at_once=2, canary=2)
    assert stored.complete("0.0", stored.claim("0.0").fence).next_units == ()
    assert stored.step("s:0.2") is None


def a_step_that_every_host_skips_is_skipped(stored: StoredRun) -> None:
    stored.fan_out(2)
    for unit in ("0.0", "0.1"):
        stored.complete(unit, stored.claim(unit).fence, "skipped", error="it has no engine")
    assert stored.step("s:0") == "skipped"
    assert "it has no engine" in str(stored.step("y:0"))


def a_host_that_skips_it_gets_no_message(stored: StoredRun) -> None:
    stored.fan_out(3, skip={1: "it is drained"})
    assert [stored.step(f"s:0.{n}") for n in range(3)] == ["ready", "skipped", "ready"]


def other_hosts_claims_do_not_count(stored: StoredRun) -> None:
    stored.begin(0, 1)
    stored.age(stored.store.settings.claim_timeout + 1)
    stored.claim(1, host="web2")
    assert stored.store.resend(stored.run_id, "", [0], {0: "web1"}) == ([], [0])


def drain_cancels_what_was_held_back(stored: StoredRun) -> None:
    stored.fan_out(2, at_once=1)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [("0.0", False), ("0.1", False)])
    assert stored.step("s:0") == "cancelled"


MUTANTS = [
    Mutant("complete", "held ~= fence", NEVER, the_outcome_of_a_lost_attempt_does_not_count),
    Mutant("complete", "if was ~= busy and was ~= 'waiting' then", "if false then", an_outcome_counts_once),
    Mutant(
        "complete",
        "elseif was ~= 'ready' and was ~= 'retrying' and was ~= 'waiting' then",
        "elseif false then",
        a_step_that_is_at_work_is_not_ended_by_the_sweeper,
    ),
    Mutant(
        "complete",
        "ARGV[7] == '1' and doing() == 'running' and",
        "ARGV[7] == '1' and",
        a_failure_does_not_end_a_run_that_undoes,
    ),
    Mutant(
        "complete",
        "and (status == 'changed' or status == 'unchanged')",
        "",
        the_next_link_is_not_opened_after_a_failure,
    ),
    Mutant(
        "complete",
        "left <= 0 and state == 'running'",
        "left <= 0",
        the_next_link_is_not_opened_while_the_run_is_ending,
    ),
    Mutant("complete", "and left <= 0 and state", "and state", the_next_link_waits_for_its_siblings),
    Mutant(
        "claim", "if status ~= 'ready' and status ~= 'retrying' then", "if false then", what_has_ended_is_not_done_again
    ),
    Mutant(
        "claim",
        "p == '' and state ~= 'running' and state ~= 'finishing'",
        NEVER,
        nothing_begins_in_a_run_that_is_ending,
    ),
    Mutant("claim", "p == 'u' and state ~= 'undoing'", NEVER, nothing_is_taken_back_in_a_run_that_does_not_undo),
    Mutant("claim", "status == 'retrying' and tonumber", "false and tonumber", a_retry_waits_for_its_time),
    Mutant("claim", "status == busy and held == owner", NEVER, the_same_delivery_has_its_grant_again),
    Mutant("claim", "status == busy and held == owner", "status == busy", only_the_same_delivery_has_its_grant_again),
    Mutant(
        "claim",
        "math.max(highest + 1, clock[1] * 1000000 + clock[2])",
        "highest + 1",
        a_fence_is_not_granted_twice_though_redis_forgot_it,
    ),
    Mutant(
        "claim",
        "math.max(highest + 1, clock[1] * 1000000 + clock[2])",
        "clock[1] * 1000000 + clock[2]",
        a_fence_grows_though_the_clock_went_back,
    ),
    Mutant(
        "claim",
        "math.max(highest, tonumber(other) or 0)",
        "highest",
        an_undo_is_fenced_off_from_what_it_takes_back,
    ),
    Mutant("claim", "ARGV[6] == '1' and doing() or", "", an_always_step_has_its_turn_in_a_suspended_run),
    Mutant("claim", "ARGV[6] == '1' and doing() or", "doing() or", nothing_else_begins_in_a_suspended_run),
    Mutant("complete", "doing() == 'running'", "state == 'running'", a_failure_ends_a_run_that_is_suspended),
    Mutant(
        "abort",
        "if doing() ~= 'running' then",
        "if redis.call('HGET', run, 'state') ~= 'running' then",
        a_suspended_run_can_be_ended,
    ),
    Mutant(
        "expire",
        "ARGV[10] ~= '' and p == '' and state == 'running'",
        "ARGV[10] ~= '' and p == ''",
        nobody_is_asked_while_the_run_is_ending,
    ),
    Mutant("expire", "if ARGV[10] ~= '' and", "if false and", a_person_is_asked_about_what_may_have_happened),
    Mutant("retry", "if ARGV[8] == '1' then", "if false then", an_attempt_in_vain_does_not_count),
    Mutant("retry", "> tonumber(ARGV[9]) then", "< 0 then", it_is_not_asked_for_ever),
    Mutant(
        "drain", "or redis.call('HEXISTS', steps, 'ds:' .. i) == 1", "", what_is_not_known_yet_is_not_called_cancelled
    ),
    Mutant("suspend", "ARGV[4] ~= '' and (epoch or '0') ~= ARGV[4]", NEVER, only_the_run_that_was_seen_is_suspended),
    Mutant(
        "suspend",
        "if state ~= 'running' and state ~= 'aborting' and state ~= 'undoing' and state ~= 'suspended' then",
        "if false then",
        what_rests_or_finishes_is_not_suspended,
    ),
    Mutant(
        "suspend",
        "if state == 'suspended' and ARGV[1] == 'breaker' then",
        "if false then",
        what_waits_for_a_person_is_not_lifted_by_a_service,
    ),
    Mutant("suspend", "< tonumber(ARGV[5]) then", "< 0 then", a_lost_version_is_not_reached_again),
    Mutant(
        "suspend", "elseif ARGV[5] ~= '' then\n  return 0", "elseif false then\n  return 0", a_loss_suspends_a_run_once
    ),
    Mutant("unsuspend", "hold ~= ARGV[1] or", "", what_waits_for_a_person_is_not_lifted_by_a_service),
    Mutant(
        "unsuspend",
        "or (ARGV[5] ~= '' and handled(ARGV[5])) then",
        "then",
        a_command_that_was_carried_out_lifts_nothing_again,
    ),
    Mutant("unsuspend", "state ~= 'suspended' or", "", what_goes_on_is_not_lifted_again),
    Mutant("unsuspend", "or (epoch or '0') ~= ARGV[2]", "", only_the_run_that_was_seen_goes_on),
    Mutant(
        "unsuspend",
        "if status == 'ready' or status == 'retrying' then",
        "if true then",
        what_runs_is_left_alone_when_a_run_goes_on,
    ),
    Mutant("reopen", "(state ~= 'failed' and state ~= 'partial') or", "", only_what_failed_begins_anew),
    Mutant("reopen", "or (epoch or '0') ~= ARGV[4]", "", a_run_is_not_reopened_from_what_was_seen_before),
    Mutant("reopen", "if handled(ARGV[1]) then", "if false then", a_resume_is_carried_out_once),
    Mutant("resolve", "if handled(ARGV[1]) then", "if false then", a_word_is_carried_out_once),
    Mutant("resolve", "redis.call('HSETNX', steps, 'dk:' .. i, what) == 0", NEVER, the_first_word_counts),
    Mutant("resolve", "elseif not resting then", "elseif false then", a_step_at_work_is_not_resolved),
    Mutant(
        "resolve", "  elseif status == 'changed' or status == 'unchanged' or", "  elseif", what_is_done_is_not_resolved
    ),
    Mutant(
        "resolve",
        "elseif undo ~= 'undo_failed' and undo ~= 'not_undoable' and",
        "elseif false and",
        what_was_taken_back_is_not_resolved,
    ),
    Mutant("expire", "or tonumber(ends) > now", "", a_living_attempt_keeps_its_step),
    Mutant(
        "expire",
        "string.format('%.0f', math.max(fence + 1, clock[1] * 1000000 + clock[2]))",
        "string.format('%.0f', fence)",
        a_lost_attempt_is_fenced_off_at_once,
    ),
    Mutant("expire", "and lost < tonumber(ARGV[4])", "", a_step_that_kills_its_workers_is_given_up),
    Mutant("expire", "ARGV[3] == '1' and", "", what_must_not_be_repeated_is_not),
    Mutant("expire", "ARGV[7] == '1' and state == 'running'", "ARGV[7] == '1'", a_loss_ends_a_run_that_runs_alone),
    Mutant(
        "expire", "if state ~= 'aborting' then", "if true then", what_is_lost_in_a_run_that_is_ending_is_not_repeated
    ),
    Mutant("expire", "elseif ARGV[8] == '1' then", "elseif false then", an_always_step_that_is_lost_has_its_turn),
    Mutant(
        "open_level",
        "or (epoch or '0') ~= ARGV[6]",
        "",
        a_run_that_was_reopened_is_not_finished_by_what_was_decided_before,
    ),
    Mutant(
        "open_undo",
        "or (epoch or '0') ~= ARGV[#ARGV]",
        "",
        a_run_that_was_reopened_is_not_undone_by_what_was_decided_before,
    ),
    Mutant(
        "finish",
        "(redis.call('HGET', run, 'epoch') or '0') ~= ARGV[3]",
        NEVER,
        a_run_that_was_reopened_is_not_ended_by_what_was_decided_before,
    ),
    Mutant("open_level", "state ~= 'aborting' and tonumber", "false and tonumber", a_level_waits_for_the_one_before),
    Mutant("open_level", "state ~= ARGV[1] or", "", no_level_is_opened_in_a_run_that_was_cancelled_meanwhile),
    Mutant("open_level", "or level ~= ARGV[2]", "", a_level_is_not_opened_once_more),
    Mutant("open_level", "redis.call('ZCARD', leases) > 0", NEVER, the_always_steps_wait_for_what_runs),
    Mutant("open_undo", "redis.call('ZCARD', leases) > 0", NEVER, the_undo_waits_for_what_runs),
    Mutant(
        "open_undo",
        "tonumber(redis.call('HGET', run, 'left')) > 0",
        NEVER,
        an_undo_level_waits_for_the_one_above,
    ),
    Mutant("open_undo", "or (level or '') ~= ARGV[2]", "", an_undo_level_is_opened_once),
    Mutant("finish", "or redis.call('ZCARD', leases) > 0", "", a_run_does_not_end_while_something_runs),
    Mutant(
        "finish", "ARGV[1] ~= 'aborting' and tonumber", "false and tonumber", a_run_does_not_end_while_something_is_left
    ),
    Mutant("finish", "redis.call('HGET', run, 'state') ~= ARGV[1] or", "", a_run_ends_from_where_it_was_decided),
    Mutant("renew", "string.sub(owner, 1, #who) == who and", "", a_lease_is_renewed_by_its_owner_alone),
    Mutant(
        "renew",
        "and redis.call('ZSCORE', leases, member) then\n    redis.call('ZADD', leases, 'XX', 'GT',",
        "then\n    redis.call('ZADD', leases,",
        a_lease_that_was_taken_is_not_renewed,
    ),
    Mutant("command", "if handled(ARGV[1]) then", "if false then", a_command_is_carried_out_once),
    Mutant("command", "c == a and d <= b", "c == a and d == b", commands_of_one_millisecond_have_an_order),
    Mutant(
        "command",
        "if state ~= 'succeeded' and state ~= 'partial' and state ~= 'failed' and state ~= 'undo_failed' then",
        "if false then",
        what_is_undone_is_not_undone_again,
    ),
    Mutant("command", "if doing() ~= 'running' then", "if false then", a_cancel_does_not_touch_a_run_that_has_ended),
    Mutant("abort", "doing() ~= 'running'", NEVER, an_abort_does_not_touch_a_run_that_has_ended),
    Mutant(
        "journal",
        "redis.call('HSETNX', steps, p .. 'j:' .. i, ARGV[5])",
        "redis.call('HSET', steps, p .. 'j:' .. i, ARGV[5])",
        the_journal_keeps_what_came_first,
    ),
    Mutant(
        "journal",
        "redis.call('HSETNX', steps, p .. 'r:' .. i, ARGV[4])",
        "redis.call('HSET', steps, p .. 'r:' .. i, ARGV[4])",
        the_journal_keeps_what_came_first,
    ),
    Mutant(
        "journal",
        "redis.call('HGET', steps, p .. 'f:' .. i) ~= ARGV[3] or",
        "",
        an_attempt_that_lost_its_step_writes_nothing_down,
    ),
    Mutant(
        "journal",
        "or not redis.call('ZSCORE', leases, p .. i)",
        "",
        an_attempt_that_has_ended_writes_nothing_down,
    ),
    Mutant("retry", "if fence ~= ARGV[3] then", "if false then", an_attempt_that_lost_its_step_does_not_put_it_back),
    Mutant(
        "retry",
        "p == '' and ARGV[7] ~= '1' and doing() == 'aborting'",
        NEVER,
        there_is_no_retry_in_a_run_that_is_ending,
    ),
    Mutant(
        "retry",
        "if status ~= 'waiting' and status ~= (p == '' and 'running' or 'undoing') then",
        "if false then",
        what_has_ended_is_not_put_back,
    ),
    Mutant("retry", "ARGV[7] ~= '1' and ", "", an_always_step_has_its_retry_in_a_run_that_is_ending),
    Mutant("resend", "tonumber(due) <= now and", "", a_message_under_way_is_not_doubled),
    Mutant("resend", "and tonumber(not_before or 0) <= now", "", a_parked_retry_is_not_sent_early),
    Mutant(
        "resend",
        "if status == 'ready' or status == 'retrying' then",
        "if true then",
        no_message_is_sent_for_a_step_at_work,
    ),
    Mutant(
        "drain", "redis.call('HGET', run, 'state') ~= 'aborting'", NEVER, drain_cancels_nothing_in_a_run_that_goes_on
    ),
    Mutant(
        "drain",
        "if status == 'ready' or status == 'retrying' or status == 'waiting' or held_back then",
        "if true then",
        drain_leaves_what_runs_alone,
    ),
    Mutant("drain", "if ARGV[n + 1] == '1' then", "if false then", drain_leaves_an_always_step_its_turn),
    Mutant("drain", "        if status == 'ready' or", "        if", what_was_lost_is_not_called_cancelled),
    Mutant("create", "redis.call('EXISTS', run) == 1", NEVER, a_run_is_created_once),
    Mutant("hold", "state ~= 'pending' or", "", what_has_begun_is_not_held),
    Mutant("hold", "or held == ARGV[1]", "", why_a_run_waits_is_said_once),
    Mutant(
        "forget",
        "if state and state ~= 'succeeded'",
        "if false and state ~= 'succeeded'",
        a_live_run_is_not_forgotten,
    ),
    Mutant("park", "if fence ~= ARGV[3] then", "if false then", a_lost_attempt_parks_nothing),
    Mutant(
        "park", "if status ~= (p == '' and 'running' or 'undoing') then", "if false then", what_has_ended_is_not_parked
    ),
    Mutant("command", "redis.call('HSETNX', steps, 'dk:' .. id, ARGV[2]) == 0", "false", the_first_decision_counts),
    Mutant(
        "command",
        "  if status ~= 'waiting' then",
        "if false then",
        only_what_waits_is_decided,
    ),
    Mutant("open_level", "local begin = math.min(at_once, open)", "local begin = open", units_are_held_back),
    Mutant("open_level", "    if not begun then", "    if true then", a_unit_that_has_ended_is_not_done_again),
    Mutant("open_level", "    begin = math.min(at_once, canaries)", "", canaries_go_first),
    Mutant(
        "open_level", "  canaries = math.min(canaries, open)", "", more_canaries_than_there_are_units_are_all_of_them
    ),
    Mutant(
        "open_level", "    close_units(i, 'skipped', ARGV[n + 2])", "", what_is_skipped_as_a_whole_leaves_no_part_open
    ),
    Mutant(
        "open_level", "    close_units(i, 'not_run', ARGV[n + 3])", "", what_has_failed_as_a_whole_leaves_no_part_open
    ),
    Mutant(
        "claim",
        "begun_on and begun_on ~= ARGV[8] then",
        "false then",
        what_was_begun_on_a_host_is_not_claimed_on_another,
    ),
    Mutant("complete", "      leave_the_rest(step)", "", the_rest_is_left_alone_when_a_canary_fails),
    Mutant(
        "complete",
        "if failed > tonumber(tolerated) or canary then",
        "if failed > tonumber(tolerated) then",
        a_canary_that_fails_is_not_tolerated,
    ),
    Mutant("complete", "free = math.min(1, later)", "free = 1", a_later_canary_is_one_of_those_that_were_chosen),
    Mutant("complete", "  if skipped == all then", "  if false then", a_step_that_every_host_skips_is_skipped),
    Mutant("open_level", "    if reason ~= '' then", "    if false then", a_host_that_skips_it_gets_no_message),
    Mutant("resend", "host == '' and 'claimed' or 'claimed@' .. host", "'claimed'", other_hosts_claims_do_not_count),
    Mutant(
        "drain",
        "local held_back = not status and whole_of(i)",
        "local held_back = false",
        drain_cancels_what_was_held_back,
    ),
]


# --- the scripts that are about no single run ------------------------------------------------------------


def door(stored: StoredRun, **limits: int) -> Admission:
    """The queue of an installation without any other run."""
    stored.redis.flushall()
    stored.store.settings = stored.store.settings.model_copy(update={"max_queued": 3, **limits})
    return Admission(stored.store)


def ask_for(
    queue: Admission, run_id: str, key: str = "", line: Sequence[str] = (), locks: Sequence[str] = ()
) -> Wanted:
    body: dict[str, Any] = {"plan": {"name": "p"}, "parent": {"run": "top", "line": list(line)} if line else None}
    body["locks"] = list(locks)
    if key:
        body["concurrency"] = {"key": key, "limit": 1, "on_limit": "queue"}
    queue.submit(run_id, body)
    return Wanted.of(body)


def a_run_is_put_down_once(stored: StoredRun) -> None:
    queue = door(stored)
    ask_for(queue, "a")
    queue.admit("a", Wanted("p"))
    ask_for(queue, "a")
    assert not queue.waits("a")


def no_more_wait_than_may(stored: StoredRun) -> None:
    queue = door(stored)
    for name in "abc":
        ask_for(queue, name)
    try:
        ask_for(queue, "d")
    except QueueFull:
        return
    raise AssertionError("a fourth was taken")


def what_was_asked_of_a_forgotten_run_is_gone(stored: StoredRun) -> None:
    queue = door(stored)
    stored.redis.xadd(stored.store.keys.of("a").commands, {"kind": "cancel"})
    ask_for(queue, "a")
    assert stored.store.commands("a") == []


def no_more_are_live_than_may(stored: StoredRun) -> None:
    queue = door(stored, max_runs=1)
    queue.admit("a", ask_for(queue, "a"))
    assert queue.admit("b", ask_for(queue, "b")) == "all"


def no_more_of_a_plan_are_live_than_may(stored: StoredRun) -> None:
    queue = door(stored, max_runs_per_plan=1)
    queue.admit("a", ask_for(queue, "a"))
    assert queue.admit("b", ask_for(queue, "b")) == "plan"


def no_more_hold_a_key_than_may(stored: StoredRun) -> None:
    queue = door(stored)
    queue.admit("a", ask_for(queue, "a", "k"))
    assert queue.admit("b", ask_for(queue, "b", "k")) == "key"


def a_grandchild_does_not_wait_for_the_key_of_its_grandparent(stored: StoredRun) -> None:
    queue = door(stored)
    queue.admit("top", ask_for(queue, "top", "k"))
    assert queue.admit("low", ask_for(queue, "low", "k", ["top", "middle"])) == ""


def a_project_is_one_runs(stored: StoredRun) -> None:
    queue = door(stored)
    queue.admit("a", ask_for(queue, "a", locks=["web1/shop", "web2/shop"]))
    assert queue.admit("b", ask_for(queue, "b", locks=["web2/shop", "web3/shop"])) == "lock"
    assert queue.admit("c", ask_for(queue, "c", locks=["web3/shop"])) == "", "b holds nothing while it waits"


def a_child_has_the_projects_of_its_parents(stored: StoredRun) -> None:
    queue = door(stored)
    queue.admit("top", ask_for(queue, "top", locks=["web1/shop"]))
    assert queue.admit("low", ask_for(queue, "low", line=["top", "middle"], locks=["web1/shop"])) == ""


def a_child_takes_no_place(stored: StoredRun) -> None:
    queue = door(stored, max_runs=1)
    queue.admit("top", ask_for(queue, "top"))
    assert queue.admit("low", ask_for(queue, "low", line=["top"])) == ""
    assert queue.admitted() == ["top"]


def what_was_released_gets_no_place(stored: StoredRun) -> None:
    queue = door(stored)
    wanted = ask_for(queue, "a")
    queue.release("a", wanted)
    queue.admit("a", wanted)
    assert queue.admitted() == []


def a_place_is_given_once(stored: StoredRun) -> None:
    queue = door(stored, max_runs=1)
    wanted = ask_for(queue, "a")
    assert [queue.admit("a", wanted), queue.admit("a", wanted)] == ["", ""]


ALONE = [
    Mutant("submit", "if there then", "if false then", a_run_is_put_down_once),
    Mutant("submit", "waiting >= tonumber(ARGV[5])", "false", no_more_wait_than_may),
    Mutant("submit", "redis.call('DEL', KEYS[6])", "", what_was_asked_of_a_forgotten_run_is_gone),
    Mutant(
        "admit", "if redis.call('HEXISTS', KEYS[2], run) == 0 then", "if false then", what_was_released_gets_no_place
    ),
    Mutant("admit", "redis.call('ZSCORE', KEYS[3], run) or", "", a_place_is_given_once),
    Mutant("admit", "redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[2])", "false", no_more_are_live_than_may),
    Mutant("admit", "ARGV[2] ~= '' and not part and", "ARGV[2] ~= '' and", a_child_takes_no_place),
    Mutant("admit", "if not part then", "if true then", a_child_takes_no_place),
    Mutant("admit", "redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[3])", "false", no_more_of_a_plan_are_live_than_may),
    Mutant("admit", "redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[4])", "false", no_more_hold_a_key_than_may),
    Mutant("admit", "if others > 0 then", "if false then", a_project_is_one_runs),
    Mutant("admit", "redis.call('SADD', KEYS[k], run)", "local _ = run", a_project_is_one_runs),
    Mutant(
        "admit",
        "others = others - redis.call('SISMEMBER', KEYS[k], ARGV[n])",
        "others = others",
        a_child_has_the_projects_of_its_parents,
    ),
    Mutant(
        "admit",
        "ARGV[4] ~= '' and not holds and redis.call('SCARD'",
        "ARGV[4] ~= '' and redis.call('SCARD'",
        a_grandchild_does_not_wait_for_the_key_of_its_grandparent,
    ),
]


@pytest.fixture(scope="module")
def url(redis_server: RedisServer) -> str:
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def make_stored(url: str) -> Iterator[Callable[[], StoredRun]]:
    made: list[StoredRun] = []

    def make() -> StoredRun:
        made.append(StoredRun(url))
        return made[-1]

    yield make
    for stored in made:
        stored.close()


@pytest.mark.parametrize("mutant", [*MUTANTS, *ALONE], ids=str)
def test_a_script_without_this_guard_is_found_out(
    mutant: Mutant, make_stored: Callable[[], StoredRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "alone" if mutant in ALONE else "source"
    whole = getattr(lua, kind)
    own = whole(mutant.script)
    assert own.count(mutant.old) == 1, f"{mutant.script}.lua does not have just once: {mutant.old}"

    mutant.check(make_stored())

    changed = own.replace(mutant.old, mutant.new)
    monkeypatch.setattr(lua, kind, lambda name: changed if name == mutant.script else whole(name))
    with pytest.raises(AssertionError):
        mutant.check(make_stored())


def test_the_guards_and_what_needs_them_are_in_the_documents() -> None:
    from tests.faults.figures import PAGE, guards

    assert guards() in PAGE.read_text()


def test_every_script_has_a_mutant() -> None:
    assert {mutant.script for mutant in MUTANTS} == set(lua.names())
