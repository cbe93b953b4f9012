"""The scripts for silent attempts and lost messages: renew, expire, resend."""

from __future__ import annotations

import pytest

from longshore.orchestration.states import Cause
from longshore.orchestration.states import RunState as R
from tests.store.stored_run import LEASE, NOT_CLAIMABLE, SIDES, StoredRun, busy

pytestmark = pytest.mark.store


# --- renew ----------------------------------------------------------------------------------------------


@SIDES
def test_lease_is_renewed_by_its_attempts_node(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.claim(0, side, "task-1@one/abc")
    stored.age(8)

    with stored.emits():
        assert stored.store.renew(stored.run_id, [(f"{side}0", "task-1@one/")]) == 1

    assert stored.leases()[f"{side}0"] > stored.store.now() + (LEASE - 5) * 1000


@SIDES
@pytest.mark.parametrize("who", ["task-1@two/", "task-2@one/", "ask-1@one/", "task-1@one/abcd"])
def test_lease_is_not_renewed_by_another_node(stored: StoredRun, side: str, who: str) -> None:
    stored.dispatch(side)
    stored.claim(0, side, "task-1@one/abc")
    stored.age(8)

    with stored.unchanged():
        assert stored.store.renew(stored.run_id, [(f"{side}0", who)]) == 0


@SIDES
def test_expired_lease_cannot_be_renewed(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.claim(0, side, "task-1@one/abc")
    stored.end_lease(f"{side}0")
    stored.expire(0, side)

    with stored.unchanged():
        assert stored.store.renew(stored.run_id, [(f"{side}0", "task-1@one/")]) == 0


def test_renewal_never_shortens_a_lease(stored: StoredRun) -> None:
    stored.dispatch("")
    stored.claim(0, owner="task-1@one/abc")
    stored.age(-60)

    with stored.unchanged():
        assert stored.store.renew(stored.run_id, [("0", "task-1@one/")]) == 1


def test_many_leases_are_renewed_in_one_call(stored: StoredRun) -> None:
    stored.begin(0, 1, 2)
    for i in (0, 1):
        stored.claim(i, owner=f"task-{i}@one/x")
    stored.age(5)

    renewed = stored.store.renew(stored.run_id, [(str(i), f"task-{i}@one/") for i in (2, 0, 1)])

    assert renewed == 2
    assert min(stored.leases().values()) > stored.store.now() + (LEASE - 5) * 1000


# --- expire ---------------------------------------------------------------------------------------------


@SIDES
def test_step_of_an_expired_attempt_is_requeued(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    grant = stored.claim(0, side, "lost@one/1")
    stored.age(LEASE + 1)

    with stored.emits("lease_lost") as events:
        assert stored.expire(0, side) == "again"

    assert (stored.step(f"{side}status:0"), stored.step(f"{side}lost:0"), stored.leases()) == ("ready", "1", {})
    assert int(stored.step(f"{side}fence:0") or 0) > int(grant.fence)
    assert stored.run("left") == "1"
    assert (events[0]["step"], events[0]["undo"], events[0]["owner"]) == ("0", side, "lost@one/1")
    assert events[0]["lost"] == "1"
    # The message is resent without the delay of a first message.
    assert stored.store.resend(stored.run_id, side, [0]) == ([0], [])


@SIDES
def test_step_of_a_live_attempt_is_not_expired(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.claim(0, side)
    stored.age(LEASE - 2)

    with stored.unchanged():
        assert stored.expire(0, side) == "no"


@SIDES
def test_attempt_is_expired_once(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.claim(0, side)
    stored.end_lease(f"{side}0")
    stored.expire(0, side)

    with stored.unchanged():
        assert stored.expire(0, side) == "no"


@SIDES
def test_lost_attempt_of_a_non_repeatable_step_is_unknown(stored: StoredRun, side: str) -> None:
    stored.dispatch(side, left=2)
    grant = stored.claim(0, side)
    stored.end_lease(f"{side}0")

    with stored.emits("lease_lost", "undo_ended" if side else "step_ended") as events:
        assert stored.expire(0, side, repeatable=False) == "unknown"

    final = "undo_failed" if side else "unknown"
    assert (stored.step(f"{side}status:0"), stored.run("left"), stored.leases()) == (final, "1", {})
    assert stored.step(f"{side}outcome:0") == '{"error": "its worker was lost"}'
    assert stored.step(f"{side}ended:0")
    assert (events[1]["status"], events[1]["error"]) == (final, "its worker was lost")
    assert not stored.complete(0, grant.fence, side=side).accepted
    assert stored.run("state") == busy(side)


@SIDES
def test_unknown_step_is_not_claimed_again(stored: StoredRun, side: str) -> None:
    """Remaining messages do not change the status."""
    stored.dispatch(side)
    stored.claim(0, side)
    stored.end_lease(f"{side}0")
    stored.expire(0, side, repeatable=False)

    with stored.unchanged():
        assert stored.store.resend(stored.run_id, side, [0]) == ([], [])
        assert isinstance(stored.ask(0, side, "other"), str)


@SIDES
def test_step_that_kills_its_workers_fails(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    verdicts = []
    for n in range(3):
        stored.claim(0, side, f"owner-{n}")
        stored.end_lease(f"{side}0")
        verdicts.append(stored.expire(0, side))
    assert verdicts == ["again"] * 2 + ["unknown"]
    assert "3 times" in str(stored.step(f"{side}outcome:0"))


def test_final_loss_aborts_the_run_like_a_failure(stored: StoredRun) -> None:
    stored.dispatch("", left=2)
    stored.claim(0)
    stored.end_lease("0")

    with stored.emits("lease_lost", "step_ended", "run_aborting"):
        stored.expire(0, repeatable=False, stops=True)

    assert (stored.run("state"), stored.run("cause"), stored.run("err_step")) == ("aborting", "failure", "0")
    assert stored.run("err") == "its worker was lost"


@pytest.mark.parametrize("state", ["aborting", "finishing"])
def test_final_loss_does_not_abort_an_ending_run(stored: StoredRun, state: str) -> None:
    stored.dispatch("")
    stored.claim(0)
    stored.end_lease("0")
    stored.put(state=state, cause="cancel")

    with stored.emits("lease_lost", "step_ended"):
        stored.expire(0, repeatable=False, stops=True)

    assert (stored.run("state"), stored.run("cause")) == (state, "cancel")


def test_step_lost_in_an_ending_run_is_not_repeated(stored: StoredRun) -> None:
    stored.dispatch("", left=2)
    stored.claim(0)
    stored.put(state="aborting")
    stored.end_lease("0")

    assert stored.expire(0) == "unknown"

    assert (stored.step("status:0"), stored.run("left")) == ("unknown", "1")


def test_always_step_lost_in_an_ending_run_waits_for_its_level(stored: StoredRun) -> None:
    stored.dispatch("")
    stored.claim(0)
    stored.put(state="aborting")
    stored.end_lease("0")

    with stored.emits("lease_lost"):
        assert stored.expire(0, always=True) == "again"

    assert (stored.step("status:0"), stored.run("left"), stored.leases()) == (None, "0", {})


def test_non_repeatable_always_step_is_unknown_when_lost(stored: StoredRun) -> None:
    stored.dispatch("")
    stored.claim(0)
    stored.put(state="aborting")
    stored.end_lease("0")
    assert stored.expire(0, repeatable=False, always=True) == "unknown"


@pytest.mark.parametrize("state", ["running", "finishing"])
def test_always_step_lost_in_a_running_run_is_requeued(stored: StoredRun, state: str) -> None:
    stored.dispatch("")
    stored.claim(0)
    stored.put(state=state)
    stored.end_lease("0")
    assert stored.expire(0, always=True) == "again"
    assert (stored.step("status:0"), stored.run("left")) == ("ready", "1")


# --- resend ---------------------------------------------------------------------------------------------


@SIDES
@pytest.mark.parametrize("status", ["ready", "retrying"])
def test_overdue_message_is_resent(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side, status=status)

    with stored.unchanged():
        assert stored.store.resend(stored.run_id, side, [0]) == ([], [])
    stored.age(LEASE + 0.1)
    with stored.emits("message_resent") as events:
        assert stored.store.resend(stored.run_id, side, [0]) == ([0], [])
    with stored.unchanged():
        assert stored.store.resend(stored.run_id, side, [0]) == ([], [])

    assert (events[0]["step"], events[0]["undo"], events[0]["times"]) == ("0", side, "1")


@pytest.mark.parametrize(("side", "status"), NOT_CLAIMABLE)
def test_no_message_is_resent_for_steps_not_dispatched(stored: StoredRun, side: str, status: str) -> None:
    stored.dispatch(side, status=status)
    stored.age(100_000)

    with stored.unchanged():
        assert stored.store.resend(stored.run_id, side, [0]) == ([], [])


def test_resend_delay_doubles_up_to_ten_minutes(stored: StoredRun) -> None:
    stored.dispatch("")
    waits = []
    for _ in range(9):
        stored.age(700)
        stored.put(steps={"sent:0": stored.store.now()})
        now = stored.store.now()
        assert stored.store.resend(stored.run_id, "", [0]) == ([0], [])
        waits.append(round((int(stored.step("sent_until:0") or 0) - now) / 1000))
    assert waits == [20, 40, 80, 160, 320, 600, 600, 600, 600]


@SIDES
def test_claim_resets_the_resend_delay(stored: StoredRun, side: str) -> None:
    """Otherwise each parked retry would wait longer, in the end beyond the claim timeout."""
    stored.dispatch(side)
    for n in range(8):
        stored.age(LEASE + 1)
        assert stored.store.resend(stored.run_id, side, [0]) == ([0], [])
        stored.retry(0, stored.claim(0, side, f"owner-{n}").fence, grace=0, side=side)

    stored.store.resend(stored.run_id, side, [0])

    assert int(stored.step(f"{side}sent_until:0") or 0) <= stored.store.now() + 2 * LEASE * 1000


@SIDES
def test_due_retry_is_sent(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.retry(0, stored.claim(0, side).fence, delay=60, grace=0, side=side)

    stored.age(59)
    assert stored.store.resend(stored.run_id, side, [0]) == ([], [])
    stored.age(1)
    assert stored.store.resend(stored.run_id, side, [0]) == ([0], [])


def test_retry_is_not_resent_before_it_is_due(stored: StoredRun) -> None:
    stored.dispatch("", status="retrying")
    stored.put(steps={"not_before:0": stored.store.now() + 60_000, "sent_until:0": 0})

    with stored.unchanged():
        assert stored.store.resend(stored.run_id, "", [0]) == ([], [])


@SIDES
def test_unclaimed_step_is_reported(stored: StoredRun, side: str) -> None:
    stored.dispatch(side)
    stored.age(601)

    with stored.unchanged():
        assert stored.store.resend(stored.run_id, side, [0]) == ([], [0])


def test_first_message_of_a_level_is_under_way_for_one_lease(stored: StoredRun) -> None:
    stored.create()
    stored.open_level(R.RUNNING, 0, [0])

    stored.age(LEASE - 6)
    assert stored.store.resend(stored.run_id, "", [0]) == ([], [])
    stored.age(6)
    assert stored.store.resend(stored.run_id, "", [0]) == ([0], [])


def test_always_step_that_waits_for_its_level_has_no_message_times(stored: StoredRun) -> None:
    """Otherwise the delay of a message from before the abort would delay the resend of the next message."""
    stored.begin(0)
    stored.age(LEASE + 1)
    assert stored.store.resend(stored.run_id, "", [0]) == ([0], [])
    assert stored.step("sent_until:0")
    assert stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [(0, True)])

    assert stored.step("sent_until:0") is None


def test_resend_checks_many_steps_in_one_call(stored: StoredRun) -> None:
    stored.begin(0, 1, 2, 3)
    stored.claim(1)
    stored.age(LEASE + 1)
    stored.put(steps={"sent:3": 0, "sent_until:2": stored.store.now() + 5000}, claimed=0)

    assert stored.store.resend(stored.run_id, "", [0, 1, 2, 3]) == ([0], [3])
    assert stored.store.resend(stored.run_id, "", []) == ([], [])
