"""The scripts about attempts and messages that are not heard of: renew, expire, resend."""

from __future__ import annotations

import pytest

from tests.store.bed import LEASE, NOT_CLAIMABLE, SIDES, Bed, busy

pytestmark = pytest.mark.store


# --- renew ----------------------------------------------------------------------------------------------


@SIDES
def test_a_lease_is_renewed_by_the_node_of_its_attempt(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    bed.claim(0, side, "task-1@one/abc")
    bed.age(8)

    with bed.emits():
        assert bed.store.renew(bed.run_id, [(f"{side}0", "task-1@one/")]) == 1

    assert bed.leases()[f"{side}0"] > bed.store.now() + (LEASE - 5) * 1000


@SIDES
@pytest.mark.parametrize("who", ["task-1@two/", "task-2@one/", "ask-1@one/", "task-1@one/abcd"])
def test_a_lease_is_not_renewed_by_another(bed: Bed, side: str, who: str) -> None:
    bed.dispatch(side)
    bed.claim(0, side, "task-1@one/abc")
    bed.age(8)

    with bed.unchanged():
        assert bed.store.renew(bed.run_id, [(f"{side}0", who)]) == 0


@SIDES
def test_a_lease_that_was_taken_away_does_not_come_back(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    bed.claim(0, side, "task-1@one/abc")
    bed.end_lease(f"{side}0")
    bed.expire(0, side)

    with bed.unchanged():
        assert bed.store.renew(bed.run_id, [(f"{side}0", "task-1@one/")]) == 0


def test_a_renewal_never_shortens_a_lease(bed: Bed) -> None:
    bed.dispatch("")
    bed.claim(0, owner="task-1@one/abc")
    bed.age(-60)

    with bed.unchanged():
        assert bed.store.renew(bed.run_id, [("0", "task-1@one/")]) == 1


def test_many_leases_are_renewed_at_once(bed: Bed) -> None:
    bed.begin(0, 1, 2)
    for i in (0, 1):
        bed.claim(i, owner=f"task-{i}@one/x")
    bed.age(5)

    renewed = bed.store.renew(bed.run_id, [(str(i), f"task-{i}@one/") for i in (2, 0, 1)])

    assert renewed == 2
    assert min(bed.leases().values()) > bed.store.now() + (LEASE - 5) * 1000


# --- expire ---------------------------------------------------------------------------------------------


@SIDES
def test_a_step_is_taken_from_an_attempt_that_is_silent(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    grant = bed.claim(0, side, "lost@one/1")
    bed.age(LEASE + 1)

    with bed.emits("lease_lost") as events:
        assert bed.expire(0, side) == "again"

    assert (bed.step(f"{side}s:0"), bed.step(f"{side}l:0"), bed.leases()) == ("ready", "1", {})
    assert int(bed.step(f"{side}f:0") or 0) > int(grant.fence)
    assert bed.run("left") == "1"
    assert (events[0]["step"], events[0]["undo"], events[0]["owner"]) == ("0", side, "lost@one/1")
    assert events[0]["lost"] == "1"
    # Its message goes out again without waiting for the grace of a new one.
    assert bed.store.resend(bed.run_id, side, [0]) == ([0], [])


@SIDES
def test_a_step_is_not_taken_from_an_attempt_that_is_alive(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    bed.claim(0, side)
    bed.age(LEASE - 2)

    with bed.unchanged():
        assert bed.expire(0, side) == "no"


@SIDES
def test_a_step_is_taken_away_once(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    bed.claim(0, side)
    bed.end_lease(f"{side}0")
    bed.expire(0, side)

    with bed.unchanged():
        assert bed.expire(0, side) == "no"


@SIDES
def test_what_must_not_be_repeated_is_unknown(bed: Bed, side: str) -> None:
    bed.dispatch(side, left=2)
    grant = bed.claim(0, side)
    bed.end_lease(f"{side}0")

    with bed.emits("lease_lost", "undo_ended" if side else "step_ended") as events:
        assert bed.expire(0, side, repeatable=False) == "unknown"

    final = "undo_failed" if side else "unknown"
    assert (bed.step(f"{side}s:0"), bed.run("left"), bed.leases()) == (final, "1", {})
    assert bed.step(f"{side}o:0") == '{"error": "its worker was lost"}'
    assert bed.step(f"{side}e:0")
    assert (events[1]["status"], events[1]["error"]) == (final, "its worker was lost")
    assert not bed.complete(0, grant.fence, side=side).accepted
    assert bed.run("state") == busy(side)


@SIDES
def test_what_is_unknown_is_not_begun_again(bed: Bed, side: str) -> None:
    """SEMANTICS 14, whatever messages there still are."""
    bed.dispatch(side)
    bed.claim(0, side)
    bed.end_lease(f"{side}0")
    bed.expire(0, side, repeatable=False)

    with bed.unchanged():
        assert bed.store.resend(bed.run_id, side, [0]) == ([], [])
        assert isinstance(bed.ask(0, side, "other"), str)


@SIDES
def test_a_step_that_kills_its_workers_is_given_up(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    verdicts = []
    for n in range(3):
        bed.claim(0, side, f"owner-{n}")
        bed.end_lease(f"{side}0")
        verdicts.append(bed.expire(0, side))
    assert verdicts == ["again"] * 2 + ["unknown"]
    assert "3 times" in str(bed.step(f"{side}o:0"))


def test_a_loss_for_good_ends_the_run_where_a_failure_would(bed: Bed) -> None:
    bed.dispatch("", left=2)
    bed.claim(0)
    bed.end_lease("0")

    with bed.emits("lease_lost", "step_ended", "run_aborting"):
        bed.expire(0, repeatable=False, stops=True)

    assert (bed.run("state"), bed.run("cause"), bed.run("err_step")) == ("aborting", "failure", "0")
    assert bed.run("err") == "its worker was lost"


@pytest.mark.parametrize("state", ["aborting", "finishing"])
def test_a_loss_for_good_ends_no_run_that_is_ending_already(bed: Bed, state: str) -> None:
    bed.dispatch("")
    bed.claim(0)
    bed.end_lease("0")
    bed.put(state=state, cause="cancel")

    with bed.emits("lease_lost", "step_ended"):
        bed.expire(0, repeatable=False, stops=True)

    assert (bed.run("state"), bed.run("cause")) == (state, "cancel")


def test_a_step_that_is_lost_while_the_run_is_ending_is_not_repeated(bed: Bed) -> None:
    bed.dispatch("", left=2)
    bed.claim(0)
    bed.put(state="aborting")
    bed.end_lease("0")

    assert bed.expire(0) == "unknown"

    assert (bed.step("s:0"), bed.run("left")) == ("unknown", "1")


def test_an_always_step_that_is_lost_while_the_run_is_ending_waits_for_its_turn(bed: Bed) -> None:
    bed.dispatch("")
    bed.claim(0)
    bed.put(state="aborting")
    bed.end_lease("0")

    with bed.emits("lease_lost"):
        assert bed.expire(0, always=True) == "again"

    assert (bed.step("s:0"), bed.run("left"), bed.leases()) == (None, "0", {})


def test_an_always_step_that_must_not_be_repeated_is_unknown_all_the_same(bed: Bed) -> None:
    bed.dispatch("")
    bed.claim(0)
    bed.put(state="aborting")
    bed.end_lease("0")
    assert bed.expire(0, repeatable=False, always=True) == "unknown"


@pytest.mark.parametrize("state", ["running", "finishing"])
def test_an_always_step_that_is_lost_in_a_run_that_goes_on_is_ready_again(bed: Bed, state: str) -> None:
    bed.dispatch("")
    bed.claim(0)
    bed.put(state=state)
    bed.end_lease("0")
    assert bed.expire(0, always=True) == "again"
    assert (bed.step("s:0"), bed.run("left")) == ("ready", "1")


# --- resend ---------------------------------------------------------------------------------------------


@SIDES
@pytest.mark.parametrize("status", ["ready", "retrying"])
def test_a_message_that_is_overdue_is_sent_again(bed: Bed, side: str, status: str) -> None:
    bed.dispatch(side, status=status)

    with bed.unchanged():
        assert bed.store.resend(bed.run_id, side, [0]) == ([], [])
    bed.age(LEASE + 0.1)
    with bed.emits("message_resent") as events:
        assert bed.store.resend(bed.run_id, side, [0]) == ([0], [])
    with bed.unchanged():
        assert bed.store.resend(bed.run_id, side, [0]) == ([], [])

    assert (events[0]["step"], events[0]["undo"], events[0]["times"]) == ("0", side, "1")


@pytest.mark.parametrize(("side", "status"), NOT_CLAIMABLE)
def test_no_message_is_sent_for_what_is_not_waited_for(bed: Bed, side: str, status: str) -> None:
    bed.dispatch(side, status=status)
    bed.age(100_000)

    with bed.unchanged():
        assert bed.store.resend(bed.run_id, side, [0]) == ([], [])


def test_the_patience_doubles_up_to_ten_minutes(bed: Bed) -> None:
    bed.dispatch("")
    waits = []
    for _ in range(9):
        bed.age(700)
        bed.put(steps={"q:0": bed.store.now()})
        now = bed.store.now()
        assert bed.store.resend(bed.run_id, "", [0]) == ([0], [])
        waits.append(round((int(bed.step("d:0") or 0) - now) / 1000))
    assert waits == [20, 40, 80, 160, 320, 600, 600, 600, 600]


@SIDES
def test_a_message_that_arrived_ends_the_doubling(bed: Bed, side: str) -> None:
    """Else a parked retry would wait longer for each next one, in the end beyond the limit of the claim."""
    bed.dispatch(side)
    for n in range(8):
        bed.age(LEASE + 1)
        assert bed.store.resend(bed.run_id, side, [0]) == ([0], [])
        bed.retry(0, bed.claim(0, side, f"owner-{n}").fence, grace=0, side=side)

    bed.store.resend(bed.run_id, side, [0])

    assert int(bed.step(f"{side}d:0") or 0) <= bed.store.now() + 2 * LEASE * 1000


@SIDES
def test_a_parked_retry_is_sent_when_its_time_has_come(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    bed.retry(0, bed.claim(0, side).fence, delay=60, grace=0, side=side)

    bed.age(59)
    assert bed.store.resend(bed.run_id, side, [0]) == ([], [])
    bed.age(1)
    assert bed.store.resend(bed.run_id, side, [0]) == ([0], [])


def test_a_retry_is_not_sent_before_its_time_though_its_message_is_overdue(bed: Bed) -> None:
    bed.dispatch("", status="retrying")
    bed.put(steps={"n:0": bed.store.now() + 60_000, "d:0": 0})

    with bed.unchanged():
        assert bed.store.resend(bed.run_id, "", [0]) == ([], [])


@SIDES
def test_a_step_that_nobody_takes_is_told_of(bed: Bed, side: str) -> None:
    bed.dispatch(side)
    bed.age(601)

    with bed.unchanged():
        assert bed.store.resend(bed.run_id, side, [0]) == ([], [0])


def test_resend_looks_at_many_steps_at_once(bed: Bed) -> None:
    bed.begin(0, 1, 2, 3)
    bed.claim(1)
    bed.age(LEASE + 1)
    bed.put(steps={"q:3": 0, "d:2": bed.store.now() + 5000}, claimed=0)

    assert bed.store.resend(bed.run_id, "", [0, 1, 2, 3]) == ([0], [3])
    assert bed.store.resend(bed.run_id, "", []) == ([], [])
