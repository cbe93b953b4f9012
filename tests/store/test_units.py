"""Units and external waits in the record."""

from __future__ import annotations

import pytest

from longshore.orchestration.settings import LARGE_DATA_BYTES
from longshore.orchestration.states import Cause, RunState
from longshore.orchestration.store.records import Recorded
from tests.store.stored_run import StoredRun

pytestmark = pytest.mark.store


def end(stored: StoredRun, unit: str, status: str = "changed", **more: object) -> Recorded:
    return stored.complete(unit, stored.claim(unit).fence, status, **more)


def test_fanned_out_step_ends_with_its_last_unit(stored: StoredRun) -> None:
    stored.fan_out(3)
    assert (stored.run("left"), stored.step("status:0"), stored.step("fan_out_left:0")) == ("1", "running", "3")

    assert end(stored, "0.1") == Recorded(True, False)
    assert end(stored, "0.0", "unchanged") == Recorded(True, False)
    assert end(stored, "0.2") == Recorded(True, True)

    assert (stored.run("left"), stored.step("status:0")) == ("0", "changed")
    assert [e["event"] for e in stored.events()][-2:] == ["item_ended", "step_ended"]


def test_each_unit_receives_its_own_item(stored: StoredRun) -> None:
    stored.fan_out(2)
    assert [stored.claim(f"0.{n}").item for n in range(2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("tolerated", "failed", "status"), [(0, 0, "changed"), (0, 1, "failed"), (1, 1, "changed"), (1, 2, "failed")]
)
def test_step_fails_when_more_units_fail_than_tolerated(
    stored: StoredRun, tolerated: int, failed: int, status: str
) -> None:
    stored.fan_out(3, tolerated=tolerated)
    for n in range(3):
        end(stored, f"0.{n}", "failed" if n < failed else "changed", error="broken", stops=True)
    assert stored.step("status:0") == status
    assert stored.run("state") == ("aborting" if status == "failed" else "running")


def test_fan_out_failure_counts_failed_units_and_quotes_the_first(stored: StoredRun) -> None:
    stored.fan_out(3)
    end(stored, "0.2", "failed", error="second thoughts", stops=True)
    assert stored.run("state") == "running", "a failed item cancelled other items"
    end(stored, "0.0", "failed", error="no such file", stops=True)
    end(stored, "0.1", stops=True)
    assert stored.run("err") == "2 of 3 failed; the first: second thoughts"
    assert stored.run("err_step") == "0"


def test_each_ended_unit_releases_the_next(stored: StoredRun) -> None:
    stored.fan_out(4, at_once=2)
    assert stored.ask("0.2") == "pending"

    assert end(stored, "0.0").next_units == ("0.2",)
    assert end(stored, "0.1").next_units == ("0.3",)
    assert end(stored, "0.3").next_units == ()
    assert end(stored, "0.2") == Recorded(True, True)


def test_lost_unit_releases_the_next(stored: StoredRun) -> None:
    stored.fan_out(2, at_once=1, tolerated=1)
    stored.claim("0.0")
    stored.end_lease("0.0")
    assert stored.store.expire(stored.run_id, "0.0", "", repeatable=False) == ("unknown", ("0.1",))


def test_ending_run_releases_no_units(stored: StoredRun) -> None:
    stored.fan_out(2, at_once=1)
    grant = stored.claim("0.0")
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    assert stored.complete("0.0", grant.fence).next_units == ()
    stored.store.drain(stored.run_id, [("0.1", False)])
    assert (stored.step("status:0.1"), stored.step("status:0")) == ("cancelled", "cancelled")


def test_step_with_an_external_wait_has_no_lease(stored: StoredRun) -> None:
    stored.begin(0)
    grant = stored.claim(0)
    with stored.emits("step_waiting"):
        assert stored.park(0, grant.fence)
    assert (stored.step("status:0"), stored.leases(), list(stored.waits())) == ("waiting", {}, ["0"])
    with stored.unchanged():
        assert stored.park(0, grant.fence), "the repeated call was refused"


def test_external_wait_can_be_completed_with_or_without_its_fence(stored: StoredRun) -> None:
    for known in (False, True):
        other = StoredRun("", store=stored.store)
        other.begin(0)
        fence = other.claim(0).fence
        other.park(0, fence)
        assert other.complete(0, fence if known else "") == Recorded(True, True)
        assert (other.step("status:0"), other.waits()) == ("changed", {})


def test_waiting_approval_is_cancelled_with_its_run(stored: StoredRun) -> None:
    stored.begin(0)
    stored.park(0, stored.claim(0).fence)
    stored.store.abort(stored.run_id, Cause.CANCEL, "")
    stored.store.drain(stored.run_id, [(0, False)])
    assert (stored.step("status:0"), stored.step("reason:0"), stored.waits()) == (
        "cancelled",
        "the run was aborted while the step waited",
        {},
    )


def test_step_can_fail_before_it_begins_and_abort_its_run(stored: StoredRun) -> None:
    stored.create()
    opened = stored.store.open_level(
        stored.run_id, stored.record(), RunState.RUNNING, 0, (1,), {2: "when"}, failed={0: "no such data"}, stopped_by=0
    )
    assert opened
    assert (stored.step("status:0"), stored.step("status:1"), stored.step("status:2")) == ("failed", "ready", "skipped")
    assert (stored.run("state"), stored.run("err"), stored.run("err_step")) == ("aborting", "no such data", "0")


def test_large_data_is_stored_separately(stored: StoredRun) -> None:
    stored.begin(0)
    text = f'{{"data":{{"text":"{"x" * LARGE_DATA_BYTES}"}}}}'
    stored.complete(0, stored.claim(0).fence, bulk=text)

    assert len(stored.step("outcome:0") or "") < 100
    assert stored.store.steps_hash(stored.run_id, [0])["bulk:0"] == text
    assert stored.store.everything(stored.run_id)[1]["bulk:0"] == text


def test_small_data_is_stored_in_the_outcome(stored: StoredRun) -> None:
    stored.begin(0, 1)
    stored.complete(0, stored.claim(0).fence, outcome='{"s":1}', bulk='{"data":{"n":2}}')
    stored.complete(1, stored.claim(1).fence, bulk='{"data":{"n":2}}')
    assert [stored.step("outcome:0"), stored.step("outcome:1")] == ['{"s":1,"data":{"n":2}}', '{"data":{"n":2}}']


def test_waiting_unit_is_reported_only_after_the_claim_timeout(stored: StoredRun) -> None:
    """The claim timeout of a waiting unit starts at the last claim of its step."""
    stored.fan_out(2)
    limit = stored.store.settings.claim_timeout
    stored.age(limit + 1)
    stored.claim("0.0")
    assert stored.store.resend(stored.run_id, "", ["0.1"])[1] == []
    stored.age(limit + 1)
    stored.put(claimed=stored.store.now() - round(limit * 1000) - 1)
    assert stored.store.resend(stored.run_id, "", ["0.1"])[1] == ["0.1"]


def test_large_data_of_a_lost_attempt_is_removed(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    before = set(stored.redis.keys(f"*{stored.run_id}*"))
    assert not stored.complete(0, "1", bulk="x" * (LARGE_DATA_BYTES + 1)).accepted
    assert set(stored.redis.keys(f"*{stored.run_id}*")) == before


def test_wide_fan_out_is_dispatched_in_parts(stored: StoredRun) -> None:
    stored.fan_out(2500)
    assert [stored.step(f"status:0.{n}") for n in (0, 999, 1000)] == ["ready", "ready", None]
    assert [stored.step(f"item:0.{n}") for n in (0, 1000, 2499)] == ["0", "1000", "2499"]
    assert stored.store.dispatch_units(stored.run_id, 0)[-1] == "0.1999"
    assert stored.store.dispatch_units(stored.run_id, 0)[-1] == "0.2499"
    assert stored.store.dispatch_units(stored.run_id, 0) == []


def test_wide_fan_out_with_a_limit_dispatches_no_more_units_than_the_limit(stored: StoredRun) -> None:
    stored.fan_out(2500, at_once=1200)
    assert len(stored.store.dispatch_units(stored.run_id, 0)) == 200
    assert stored.store.dispatch_units(stored.run_id, 0) == []
    assert stored.complete("0.0", stored.claim("0.0").fence).next_units == ("0.1200",)


def test_wide_fan_out_continues_after_its_coordinator_died_between_two_parts(stored: StoredRun) -> None:
    stored.fan_out(1500)
    ended, queue = set(), [f"0.{n}" for n in range(1000)]
    while queue:
        unit = queue.pop()
        ended.add(unit)
        queue += map(str, stored.complete(unit, stored.claim(unit).fence).next_units)
    assert len(ended) == 1500
    assert stored.step("status:0") == "changed"


def test_reason_skips_units_of_a_wide_fan_out(stored: StoredRun) -> None:
    stored.fan_out(1500, skip={3: "it is drained", 1200: "it is drained"})
    assert [stored.step(f"status:0.{n}") for n in (2, 3, 1200)] == ["ready", "skipped", "skipped"]
    assert stored.step("fan_out_left:0") == "1498"
