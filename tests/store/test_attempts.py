"""The scripts that one attempt calls: claim, journal, complete, retry."""

from __future__ import annotations

import pytest

from longshore.orchestration.states import RunState
from longshore.orchestration.store.records import Recorded
from tests.store.stored_run import LEASE, NOT_CLAIMABLE, SIDES, StoredRun, busy

pytestmark = pytest.mark.store

R = RunState


# --- claim ----------------------------------------------------------------------------------------------


@SIDES
def test_claim_grants_the_step_to_one_attempt(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    now = stored.store.now()

    with stored.emits("undo_started" if side else "step_started") as events:
        grant = stored.claim(0, side, "task-7@one/abc", "task-7")

    assert (grant.attempt, grant.rendered, grant.before, grant.outcome) == (1, "", "", "")
    assert now <= grant.first_started <= now + 5000
    assert stored.step(f"{side}status:0") == busy(side)
    assert (stored.step(f"{side}owner:0"), stored.step(f"{side}task_ids:0")) == ("task-7@one/abc", "task-7")
    assert stored.step(f"{side}fence:0") == grant.fence
    assert now + LEASE * 1000 <= stored.leases()[f"{side}0"] <= now + LEASE * 1000 + 5000
    assert (events[0]["step"], events[0]["attempt"], events[0]["owner"]) == ("0", "1", "task-7@one/abc")


def test_always_step_can_be_claimed_while_the_run_finishes(stored: StoredRun) -> None:
    stored.dispatch("")
    stored.put(state="finishing")
    assert stored.claim(0).attempt == 1


@pytest.mark.parametrize(
    ("side", "state"),
    [
        *(("", state) for state in RunState if state not in {R.RUNNING, R.FINISHING}),
        *(("u", state) for state in RunState if state is not R.UNDOING),
    ],
)
def test_claim_is_refused_in_other_run_states(stored: StoredRun, side: str, state: RunState) -> None:
    stored.dispatch(side)
    stored.put(state=state)

    with stored.unchanged():
        assert stored.ask(0, side) == f"run {state}"


@SIDES
def test_claim_is_refused_for_an_unknown_run(stored: StoredRun, side: str) -> None:
    with stored.unchanged():
        assert stored.ask(0, side) == "run gone"


@pytest.mark.parametrize(("side", "status"), NOT_CLAIMABLE)
def test_claim_is_refused_for_a_step_that_is_not_dispatched(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side, status=status)

    with stored.unchanged():
        assert stored.ask(0, side) == status


@SIDES
def test_claim_is_refused_for_a_step_without_a_status(stored: StoredRun, side: str) -> None:
    stored.lay(busy(side), undo_level=0)

    with stored.unchanged():
        assert stored.ask(0, side) == "pending"


@SIDES
def test_repeated_claim_of_one_delivery_returns_the_same_grant(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    grant = stored.claim(0, side)
    stored.age(5)

    with stored.emits():
        again = stored.claim(0, side)

    assert again == grant
    assert stored.step(f"{side}attempts:0") == "1"
    assert stored.leases()[f"{side}0"] > stored.store.now() + (LEASE - 5) * 1000


@SIDES
def test_second_delivery_is_refused_while_the_first_runs(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.claim(0, side, "first@one/1")

    with stored.unchanged():
        assert stored.ask(0, side, "first@one/2") == busy(side)


@SIDES
def test_delivery_cannot_reclaim_a_released_step(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.retry(0, stored.claim(0, side, "first@one/1").fence, delay=60, side=side)
    assert stored.ask(0, side, "first@one/1") == "early"


@SIDES
def test_retry_cannot_be_claimed_before_it_is_due(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.retry(0, stored.claim(0, side).fence, delay=60, side=side)

    with stored.unchanged():
        assert stored.ask(0, side, "other") == "early"
    stored.age(59)
    with stored.unchanged():
        assert stored.ask(0, side, "other") == "early"
    stored.age(1)
    assert stored.claim(0, side, "other").attempt == 2


def test_drained_always_retry_can_be_claimed_at_once(stored: StoredRun) -> None:
    stored.dispatch("")
    stored.retry(0, stored.claim(0).fence, delay=600)
    stored.put(state="aborting")
    stored.store.drain(stored.run_id, [(0, True)])

    assert stored.open_level(R.FINISHING, 0, [0])

    assert stored.claim(0, owner="other").attempt == 2


@SIDES
def test_fence_grows_with_every_claim(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fences = []
    for n in range(20):
        grant = stored.claim(0, side, f"owner-{n}")
        fences.append(int(grant.fence))
        assert stored.retry(0, grant.fence, side=side) == 1
    assert fences == sorted(set(fences))


@SIDES
def test_fence_exceeds_one_lost_by_redis(stored: StoredRun, side: str) -> None:
    """A crash of Redis loses its last writes; a lost fence must not be granted again."""
    stored.dispatch(side)
    before = int(stored.claim(0, side).fence)
    stored.redis.hdel(stored.keys.steps, f"{side}fence:0", f"{side}owner:0", f"{side}attempts:0")
    stored.put(steps={f"{side}status:0": "ready"})

    assert int(stored.claim(0, side, "other").fence) > before


@SIDES
def test_fence_grows_when_the_clock_goes_back(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    ahead = (stored.store.now() + 3_600_000) * 1000
    stored.put(steps={f"{side}fence:0": ahead})

    assert int(stored.claim(0, side).fence) == ahead + 1


def test_undo_fence_exceeds_the_steps_fence(stored: StoredRun) -> None:
    stored.dispatch("")
    forward = stored.claim(0)
    stored.complete(0, forward.fence)
    stored.dispatch("u")
    assert int(stored.claim(0, "u").fence) > int(forward.fence)


def test_later_attempt_receives_the_first_journal(stored: StoredRun) -> None:
    stored.dispatch("")
    first = stored.claim(0, task="t1")
    stored.journal(0, first.fence, '{"a":1}', '{"was":2}')
    stored.end_lease("0")
    stored.expire(0)

    second = stored.claim(0, owner="other", task="t2")

    assert (second.attempt, second.rendered, second.before) == (2, '{"a":1}', '{"was":2}')
    assert second.first_started == first.first_started
    assert stored.step("task_ids:0") == "t1 t2"


def test_undo_receives_journal_and_outcome(stored: StoredRun) -> None:
    stored.dispatch("")
    first = stored.claim(0)
    stored.journal(0, first.fence, '{"a":1}', '{"was":2}')
    stored.complete(0, first.fence, outcome='{"data":3}')
    stored.dispatch("u")
    tried = stored.claim(0, "u")
    assert (tried.rendered, tried.step_rendered) == ("", '{"a":1}')
    stored.journal(0, tried.fence, '{"undo":4}', side="u")
    stored.retry(0, tried.fence, side="u")

    undo = stored.claim(0, "u", "other")

    assert (undo.attempt, undo.tries) == (2, 2)
    assert (undo.rendered, undo.step_rendered, undo.before) == ('{"undo":4}', '{"a":1}', '{"was":2}')
    assert undo.outcome == '{"data":3}'


# --- journal --------------------------------------------------------------------------------------------


@SIDES
def test_journal_keeps_the_first_entry(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence

    with stored.emits():
        assert stored.journal(0, fence, "rendered", "before", side=side)
        assert stored.journal(0, fence, "later", "later", side=side)

    assert (stored.step(f"{side}rendered:0"), stored.step(f"{side}before:0")) == ("rendered", "before")


def test_journal_has_no_empty_entries(stored: StoredRun) -> None:
    stored.dispatch("")
    fence = stored.claim(0).fence

    with stored.unchanged():
        assert stored.journal(0, fence)
    assert stored.journal(0, fence, "", "before")
    assert (stored.step("rendered:0"), stored.step("before:0")) == (None, "before")


@SIDES
def test_superseded_attempt_cannot_journal(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    lost = stored.claim(0, side)
    stored.end_lease(f"{side}0")
    stored.expire(0, side)

    with stored.unchanged():
        assert not stored.journal(0, lost.fence, "r", "b", side=side)
    stored.claim(0, side, "other")
    with stored.unchanged():
        assert not stored.journal(0, lost.fence, "r", "b", side=side)


@SIDES
def test_ended_attempt_cannot_journal(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence
    stored.retry(0, fence, side=side)

    with stored.unchanged():
        assert not stored.journal(0, fence, "r", "b", side=side)


# --- complete -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "status"),
    [
        *(("", status) for status in ("changed", "unchanged", "failed", "unknown", "cancelled")),
        *(("u", status) for status in ("undone", "undo_failed")),
    ],
)
def test_complete_records_the_outcome(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side, left=2)
    fence = stored.claim(0, side).fence

    with stored.emits("undo_ended" if side else "step_ended") as events:
        recorded = stored.complete(0, fence, status, side=side, outcome='{"x":1}', error="why")

    assert recorded == Recorded(accepted=True, advance=False)
    assert (stored.step(f"{side}status:0"), stored.step(f"{side}outcome:0")) == (status, '{"x":1}')
    assert stored.step(f"{side}ended:0")
    assert stored.step(f"{side}no_effect:0") is None
    assert (stored.run("left"), stored.leases()) == ("1", {})
    assert (events[0]["step"], events[0]["status"], events[0]["error"]) == ("0", status, "why")


@SIDES
def test_last_outcome_of_a_level_advances_the_run(stored: StoredRun, side: str) -> None:
    stored.dispatch(side, left=1)
    assert stored.complete(0, stored.claim(0, side).fence, side=side).advance


def test_outcome_can_state_no_effect(stored: StoredRun) -> None:
    stored.dispatch("")
    stored.complete(0, stored.claim(0).fence, "failed", no_effect=True)
    assert stored.store.step_records(stored.run_id, [0])[0].no_effect


@pytest.mark.parametrize("status", ["failed", "unknown"])
def test_stopping_failure_aborts_the_run(stored: StoredRun, status: str) -> None:
    stored.dispatch("", left=2)
    fence = stored.claim(0).fence

    with stored.emits("step_ended", "run_aborting") as events:
        recorded = stored.complete(0, fence, status, error="no space", stops=True)

    assert recorded.advance
    assert (stored.run("state"), stored.run("cause"), stored.run("err_step"), stored.run("err")) == (
        *("aborting", "failure"),
        *("0", "no space"),
    )
    assert (events[1]["cause"], events[1]["step"]) == ("failure", "0")


@pytest.mark.parametrize("status", ["failed", "unknown"])
def test_tolerated_failure_does_not_abort_the_run(stored: StoredRun, status: str) -> None:
    stored.dispatch("", left=2)

    with stored.emits("step_started", "step_ended"):
        stored.complete(0, stored.claim(0).fence, status, stops=False)

    assert stored.run("state") == R.RUNNING


@pytest.mark.parametrize("status", ["changed", "unchanged", "cancelled"])
def test_good_outcome_never_aborts_the_run(stored: StoredRun, status: str) -> None:
    stored.dispatch("", left=2)
    stored.complete(0, stored.claim(0).fence, status, stops=True)
    assert stored.run("state") == R.RUNNING


@pytest.mark.parametrize("state", [R.ABORTING, R.FINISHING])
def test_failure_does_not_abort_an_ending_run(stored: StoredRun, state: RunState) -> None:
    stored.dispatch("")
    fence = stored.claim(0).fence
    stored.put(state=state, cause="cancel", err="first")

    with stored.emits("step_ended"):
        assert stored.complete(0, fence, "failed", stops=True, error="second").advance

    assert (stored.run("state"), stored.run("cause"), stored.run("err")) == (state, "cancel", "first")


def test_ending_run_advances_when_nothing_runs(stored: StoredRun) -> None:
    stored.begin(0, 1, 2)
    first, second = stored.claim(0), stored.claim(1)
    stored.put(state="aborting")

    assert not stored.complete(0, first.fence).advance
    assert stored.complete(1, second.fence).advance  # step 2 was never claimed


@SIDES
def test_outcome_of_another_attempt_is_rejected(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence

    for stale in (str(int(fence) - 1), str(int(fence) + 1), "0", f"{fence}0"):
        with stored.unchanged():
            assert stored.complete(0, stale, "failed", side=side, stops=True) == Recorded(accepted=False, advance=False)


@SIDES
def test_expired_attempt_cannot_abort_the_run(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    lost = stored.claim(0, side)
    stored.end_lease(f"{side}0")
    stored.expire(0, side)

    with stored.unchanged():
        assert not stored.complete(0, lost.fence, "failed", side=side, stops=True).accepted
    second = stored.claim(0, side, "other")
    with stored.unchanged():
        assert not stored.complete(0, lost.fence, "failed", side=side, stops=True).accepted
    assert stored.complete(0, second.fence, side=side).accepted


@SIDES
@pytest.mark.parametrize("left", [1, 2])
def test_repeated_outcome_counts_once_with_the_same_answer(stored: StoredRun, side: str, left: int) -> None:
    stored.dispatch(side, left=left)
    fence = stored.claim(0, side).fence
    first = stored.complete(0, fence, "undone" if side else "changed", side=side)

    with stored.unchanged():
        second = stored.complete(0, fence, "failed", side=side, outcome='{"later":1}', stops=True)

    assert second == first == Recorded(accepted=True, advance=left == 1)


def test_repeated_failure_returns_advance_twice(stored: StoredRun) -> None:
    stored.dispatch("", left=2)
    fence = stored.claim(0).fence
    first = stored.complete(0, fence, "failed", stops=True)

    with stored.unchanged():
        assert stored.complete(0, fence, "failed", stops=True) == first == Recorded(accepted=True, advance=True)


@SIDES
def test_outcome_after_a_recorded_retry_is_rejected(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence
    stored.retry(0, fence, delay=60, side=side)

    with stored.unchanged():
        stored.complete(0, fence, "failed", side=side, stops=True)


@SIDES
@pytest.mark.parametrize("status", ["ready", "retrying"])
def test_complete_without_fence_ends_an_unclaimed_step(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side, left=1, status=status)

    with stored.emits("undo_ended" if side else "step_ended"):
        assert stored.complete(0, "", "undo_failed" if side else "failed", side=side) == Recorded(True, True)

    assert stored.run("left") == "0"


@pytest.mark.parametrize(("side", "status"), [pair for pair in NOT_CLAIMABLE if pair[1] != "waiting"])
def test_complete_without_fence_ends_no_claimed_step(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side, status=status)

    with stored.unchanged():
        assert not stored.complete(0, "", "failed", side=side, stops=True).accepted


@pytest.mark.parametrize("status", ["changed", "unchanged"])
def test_successful_chain_link_opens_the_next_level(stored: StoredRun, status: str) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence

    with stored.emits("step_ended", "level_started") as events:
        recorded = stored.complete(0, fence, status, next_link=1)

    assert recorded == Recorded(accepted=True, advance=False)  # the next message of the chain follows
    assert (stored.run("level"), stored.run("left"), stored.step("status:1")) == ("1", "1", "ready")
    assert int(stored.step("sent_until:1") or 0) == int(stored.step("sent:1") or 0) + LEASE * 1000
    assert (events[1]["level"], events[1]["steps"]) == ("1", "1")
    with stored.unchanged():
        assert stored.complete(0, fence, status, next_link=1) == recorded


@pytest.mark.parametrize("status", ["failed", "unknown", "cancelled"])
def test_failed_chain_link_ends_its_chain(stored: StoredRun, status: str) -> None:
    stored.begin(0)

    assert stored.complete(0, stored.claim(0).fence, status, next_link=1).advance

    assert (stored.run("level"), stored.step("status:1")) == ("0", None)


def test_chain_stops_while_its_level_has_open_steps(stored: StoredRun) -> None:
    stored.begin(0, 2)

    assert not stored.complete(0, stored.claim(0).fence, next_link=1).advance

    assert (stored.run("level"), stored.run("left"), stored.step("status:1")) == ("0", "1", None)


@pytest.mark.parametrize("state", [R.ABORTING, R.FINISHING])
def test_chain_stops_in_an_ending_run(stored: StoredRun, state: RunState) -> None:
    stored.begin(0)
    fence = stored.claim(0).fence
    stored.put(state=state)

    assert stored.complete(0, fence, next_link=1).advance

    assert (stored.run("level"), stored.step("status:1")) == ("0", None)


# --- retry ----------------------------------------------------------------------------------------------


@SIDES
def test_retry_delays_the_step_until_due(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence
    now = stored.store.now()

    with stored.emits("undo_retrying" if side else "step_retrying") as events:
        assert stored.retry(0, fence, delay=60, grace=5, side=side) == 1

    due = int(stored.step(f"{side}not_before:0") or 0)
    assert now + 60_000 <= due <= now + 65_000
    assert (stored.step(f"{side}sent:0"), stored.step(f"{side}sent_until:0")) == (str(due), str(due + 5000))
    assert (stored.step(f"{side}status:0"), stored.leases(), stored.run("left")) == ("retrying", {}, "1")
    assert (events[0]["step"], events[0]["attempt"], events[0]["error"]) == ("0", "1", "busy")
    assert events[0]["delay_ms"] == "60000"


@SIDES
def test_repeated_retry_is_recorded_once(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence
    stored.retry(0, fence, delay=60, side=side)

    with stored.unchanged():
        assert stored.retry(0, fence, delay=90, side=side) == 1


@SIDES
def test_superseded_attempt_cannot_record_a_retry(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    lost = stored.claim(0, side)
    stored.end_lease(f"{side}0")
    stored.expire(0, side)

    with stored.unchanged():
        assert stored.retry(0, lost.fence, side=side) == 0
    second = stored.claim(0, side, "other")
    with stored.unchanged():
        assert stored.retry(0, lost.fence, side=side) == 0
    stored.retry(0, second.fence, side=side)
    with stored.unchanged():
        assert stored.retry(0, lost.fence, side=side) == 0


@pytest.mark.parametrize(
    ("side", "status"), [pair for pair in NOT_CLAIMABLE if pair[1] not in {busy(pair[0]), "waiting"}]
)
def test_ended_step_is_not_retried(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side)
    fence = stored.claim(0, side).fence
    stored.put(steps={f"{side}status:0": status})

    with stored.unchanged():
        assert stored.retry(0, fence, side=side) == 0


def test_ending_run_allows_no_retry(stored: StoredRun) -> None:
    stored.dispatch("")
    fence = stored.claim(0).fence
    stored.put(state="aborting")

    with stored.unchanged():
        assert stored.retry(0, fence) == -1


def test_ending_run_retries_always_steps(stored: StoredRun) -> None:
    stored.dispatch("")
    fence = stored.claim(0).fence
    stored.put(state="aborting")

    with stored.emits("step_retrying"):
        assert stored.retry(0, fence, always=True) == 1

    assert (stored.step("status:0"), stored.run("left")) == ("retrying", "1")
