"""Steps that were fanned out, and steps that are parked, in the record."""

from __future__ import annotations

import pytest

from longshore.orchestration.settings import LARGE_DATA_BYTES
from longshore.orchestration.states import Cause, RunState
from longshore.orchestration.store import Recorded
from tests.store.bed import Bed

pytestmark = pytest.mark.store


def end(bed: Bed, unit: str, status: str = "changed", **more: object) -> Recorded:
    return bed.complete(unit, bed.claim(unit).fence, status, **more)


def test_a_fanned_out_step_counts_as_one_and_runs_until_its_last_unit_has_ended(bed: Bed) -> None:
    bed.fan_out(3)
    assert (bed.run("left"), bed.step("s:0"), bed.step("k:0")) == ("1", "running", "3")

    assert end(bed, "0.1") == Recorded(True, False)
    assert end(bed, "0.0", "unchanged") == Recorded(True, False)
    assert end(bed, "0.2") == Recorded(True, True)

    assert (bed.run("left"), bed.step("s:0")) == ("0", "changed")
    assert [e["event"] for e in bed.events()][-2:] == ["item_ended", "step_ended"]


def test_each_unit_is_told_its_own_item(bed: Bed) -> None:
    bed.fan_out(2)
    assert [bed.claim(f"0.{n}").item for n in range(2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("tolerated", "failed", "status"), [(0, 0, "changed"), (0, 1, "failed"), (1, 1, "changed"), (1, 2, "failed")]
)
def test_so_many_units_may_fail_as_are_tolerated(bed: Bed, tolerated: int, failed: int, status: str) -> None:
    bed.fan_out(3, tolerated=tolerated)
    for n in range(3):
        end(bed, f"0.{n}", "failed" if n < failed else "changed", error="broken", stops=True)
    assert bed.step("s:0") == status
    assert bed.run("state") == ("aborting" if status == "failed" else "running")


def test_the_failure_of_a_fanned_out_step_says_how_many_and_the_first(bed: Bed) -> None:
    bed.fan_out(3)
    end(bed, "0.2", "failed", error="second thoughts", stops=True)
    assert bed.run("state") == "running", "all items run: failing fast acts between steps"
    end(bed, "0.0", "failed", error="no such file", stops=True)
    end(bed, "0.1", stops=True)
    assert bed.run("err") == "2 of 3 failed; the first: second thoughts"
    assert bed.run("err_step") == "0"


def test_what_is_held_back_goes_one_by_one_as_others_end(bed: Bed) -> None:
    bed.fan_out(4, at_once=2)
    assert bed.ask("0.2") == "pending"

    assert end(bed, "0.0").next_units == ("0.2",)
    assert end(bed, "0.1").next_units == ("0.3",)
    assert end(bed, "0.3").next_units == ()
    assert end(bed, "0.2") == Recorded(True, True)


def test_a_unit_that_was_lost_lets_the_next_one_go(bed: Bed) -> None:
    bed.fan_out(2, at_once=1, tolerated=1)
    bed.claim("0.0")
    bed.end_lease("0.0")
    assert bed.store.expire(bed.run_id, "0.0", "", repeatable=False) == ("unknown", ("0.1",))


def test_nothing_is_let_go_once_the_run_is_ending(bed: Bed) -> None:
    bed.fan_out(2, at_once=1)
    grant = bed.claim("0.0")
    bed.store.abort(bed.run_id, Cause.CANCEL, "")
    assert bed.complete("0.0", grant.fence).next_units == ()
    bed.store.drain(bed.run_id, [("0.1", False)])
    assert (bed.step("s:0.1"), bed.step("s:0")) == ("cancelled", "cancelled")


def test_what_is_parked_has_no_lease_and_is_no_workers(bed: Bed) -> None:
    bed.begin(0)
    grant = bed.claim(0)
    with bed.emits("step_waiting"):
        assert bed.park(0, grant.fence)
    assert (bed.step("s:0"), bed.leases(), list(bed.waits())) == ("waiting", {}, ["0"])
    with bed.unchanged():
        assert bed.park(0, grant.fence), "asked again, for the answer was lost"


def test_what_is_parked_ends_without_a_fence_and_with_the_one_it_had(bed: Bed) -> None:
    for known in (False, True):
        other = Bed("", store=bed.store)
        other.begin(0)
        fence = other.claim(0).fence
        other.park(0, fence)
        assert other.complete(0, fence if known else "") == Recorded(True, True)
        assert (other.step("s:0"), other.waits()) == ("changed", {})


def test_a_step_that_waits_for_a_person_is_cancelled_with_its_run(bed: Bed) -> None:
    bed.begin(0)
    bed.park(0, bed.claim(0).fence)
    bed.store.abort(bed.run_id, Cause.CANCEL, "")
    bed.store.drain(bed.run_id, [(0, False)])
    assert (bed.step("s:0"), bed.step("y:0"), bed.waits()) == ("cancelled", "the run was ended while it waited", {})


def test_a_step_can_fail_before_it_begins_and_end_its_run(bed: Bed) -> None:
    bed.create()
    opened = bed.store.open_level(
        bed.run_id, bed.record(), RunState.RUNNING, 0, (1,), {2: "when"}, failed={0: "no such data"}, stopped_by=0
    )
    assert opened
    assert (bed.step("s:0"), bed.step("s:1"), bed.step("s:2")) == ("failed", "ready", "skipped")
    assert (bed.run("state"), bed.run("err"), bed.run("err_step")) == ("aborting", "no such data", "0")


def test_large_data_is_kept_apart_and_found_again(bed: Bed) -> None:
    bed.begin(0)
    text = f'{{"data":{{"text":"{"x" * LARGE_DATA_BYTES}"}}}}'
    bed.complete(0, bed.claim(0).fence, bulk=text)

    assert len(bed.step("o:0") or "") < 100
    assert bed.store.steps_hash(bed.run_id, [0])["bulk:0"] == text
    assert bed.store.everything(bed.run_id)[1]["bulk:0"] == text


def test_what_is_not_large_is_a_part_of_the_outcome(bed: Bed) -> None:
    bed.begin(0, 1)
    bed.complete(0, bed.claim(0).fence, outcome='{"s":1}', bulk='{"data":{"n":2}}')
    bed.complete(1, bed.claim(1).fence, bulk='{"data":{"n":2}}')
    assert [bed.step("o:0"), bed.step("o:1")] == ['{"s":1,"data":{"n":2}}', '{"data":{"n":2}}']


def test_what_waits_while_others_are_claimed_is_not_refused(bed: Bed) -> None:
    """Nor is it, once they have not been for as long as the limit says."""
    bed.fan_out(2)
    limit = bed.store.settings.claim_timeout
    bed.age(limit + 1)
    bed.claim("0.0")
    assert bed.store.resend(bed.run_id, "", ["0.1"])[1] == []
    bed.age(limit + 1)
    bed.put(claimed=bed.store.now() - round(limit * 1000) - 1)
    assert bed.store.resend(bed.run_id, "", ["0.1"])[1] == ["0.1"]


def test_large_data_of_a_lost_attempt_is_not_left_lying(bed: Bed) -> None:
    bed.begin(0)
    bed.claim(0)
    before = set(bed.redis.keys(f"*{bed.run_id}*"))
    assert not bed.complete(0, "1", bulk="x" * (LARGE_DATA_BYTES + 1)).accepted
    assert set(bed.redis.keys(f"*{bed.run_id}*")) == before
