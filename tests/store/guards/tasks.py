"""Scenarios of the scripts for an application's tasks: begin, release, and the loss of their workers."""

from __future__ import annotations

from tests.store.guards.marks import scenario
from tests.store.guards.situations import abort
from tests.store.stored_run import LEASE, StoredRun


def waiting(stored: StoredRun, seconds: float = 60.0) -> str:
    """The fence of step 0, which waits for an application's task."""
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.park(0, fence, seconds)
    return fence


def begun(stored: StoredRun) -> str:
    fence = waiting(stored)
    assert stored.begin_task(fence) == "ok"
    return fence


# --- resend ------------------------------------------------------------------------------------


def sends(stored: StoredRun, fence: str) -> bool:
    return stored.store.resend_task(stored.run_id, 0, "", fence)[0]


@scenario
def only_the_task_of_a_waiting_step_is_sent_again(stored: StoredRun) -> None:
    fence = waiting(stored)
    stored.put(steps={"status:0": "cancelled"})
    stored.age(LEASE + 2)
    assert not sends(stored, fence)


@scenario
def a_stale_attempt_sends_no_task_again(stored: StoredRun) -> None:
    fence = waiting(stored)
    stored.age(LEASE + 2)
    assert not sends(stored, str(int(fence) - 1))


@scenario
def a_task_that_has_begun_is_not_sent_again(stored: StoredRun) -> None:
    fence = begun(stored)
    stored.age(LEASE + 2)
    assert not sends(stored, fence)


@scenario
def a_task_whose_message_may_still_arrive_is_not_sent_again(stored: StoredRun) -> None:
    fence = waiting(stored)
    assert not sends(stored, fence)
    stored.age(LEASE + 2)
    assert sends(stored, fence)
    assert not sends(stored, fence)


# --- begin -------------------------------------------------------------------------------------


@scenario
def a_task_begins_only_under_the_current_fence(stored: StoredRun) -> None:
    fence = waiting(stored)
    assert stored.begin_task(str(int(fence) - 1)) == "no"


@scenario
def a_task_waits_until_its_step_is_parked(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.begin_task(stored.claim(0).fence) == "early"


@scenario
def a_task_of_a_step_that_has_ended_does_not_begin(stored: StoredRun) -> None:
    fence = waiting(stored)
    stored.put(steps={"status:0": "cancelled"})
    assert stored.begin_task(fence) == "no"


@scenario
def a_task_does_not_begin_after_its_time_limit(stored: StoredRun) -> None:
    assert stored.begin_task(waiting(stored, seconds=0.0)) == "no"


@scenario
def no_task_of_a_compensation_begins_after_the_time_limit_of_all_compensations(stored: StoredRun) -> None:
    stored.dispatch("u")
    fence = stored.claim(0, "u").fence
    stored.park(0, fence, side="u")
    stored.put(undo_deadline=stored.store.now())
    assert stored.begin_task(fence, side="u") == "no"


@scenario
def no_other_task_begins_in_an_aborting_run(stored: StoredRun) -> None:
    fence = waiting(stored)
    abort(stored)
    assert stored.begin_task(fence) == "no"


@scenario
def a_task_of_an_always_step_begins_in_an_aborting_run(stored: StoredRun) -> None:
    fence = waiting(stored)
    abort(stored)
    assert stored.store.begin_task(stored.run_id, 0, "", fence, "task@till/1", 0, always=True)[0] == "ok"


@scenario
def a_repeated_call_of_the_same_delivery_is_accepted(stored: StoredRun) -> None:
    fence = begun(stored)
    with stored.emits():
        assert stored.begin_task(fence) == "ok"


@scenario
def a_copy_of_a_message_does_not_begin_the_task_again(stored: StoredRun) -> None:
    fence = begun(stored)
    assert stored.begin_task(fence, "task@till/2") == "no"
    stored.release_task(fence)
    assert stored.begin_task(fence, "task@till/2") == "no"
    assert stored.begin_task(fence, "task@till/2", retries=1) == "ok"


@scenario
def a_retry_of_a_task_waits_for_the_end_of_the_previous_delivery(stored: StoredRun) -> None:
    assert stored.begin_task(begun(stored), "task@till/2", retries=1) == "early"


# --- release -----------------------------------------------------------------------------------


@scenario
def a_delivery_of_a_stale_attempt_releases_no_lease(stored: StoredRun) -> None:
    fence = begun(stored)
    stored.put(steps={"fence:0": str(int(fence) + 1)})
    stored.release_task(fence)
    assert set(stored.leases()) == {"0"}


@scenario
def only_the_delivery_that_began_a_task_releases_its_lease(stored: StoredRun) -> None:
    stored.release_task(begun(stored), "task@till/2")
    assert set(stored.leases()) == {"0"}


# --- expire ------------------------------------------------------------------------------------


@scenario
def the_external_wait_of_a_lost_task_is_removed(stored: StoredRun) -> None:
    begun(stored)
    stored.end_lease("0")
    assert stored.expire(0) == "again"
    assert stored.waits() == {}


@scenario
def a_task_that_is_lost_after_its_time_limit_is_not_repeated(stored: StoredRun) -> None:
    begun(stored)
    stored.end_lease("0")
    stored.redis.zadd(stored.keys.waits, {"0": 1})
    assert stored.expire(0) == "unknown"
