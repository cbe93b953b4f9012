"""The scripts that compare receipts with a record, and the scripts that detect clock jumps."""

from __future__ import annotations

import signal

import pytest

from longshore.orchestration.states import RunState
from longshore.orchestration.store.records import UnrecordedAttempt, run_record
from tests import servers
from tests.conftest import get
from tests.store.stored_run import LEASE, StoredRun

pytestmark = pytest.mark.store

R = RunState


@pytest.fixture
def aborting(stored: StoredRun) -> StoredRun:
    stored.lay("aborting", left=0, lost=1)
    return stored


def ask(stored: StoredRun, *hosts: str, question: str = "0:1:all", epoch: int = 0) -> bool:
    return stored.store.ask(stored.run_id, epoch, question, hosts)


def found(fence: int, status: str = "unknown", *, rendered: str = "", before: str = "") -> UnrecordedAttempt:
    return UnrecordedAttempt(0, fence, status, "{}", rendered, before)


def answer(
    stored: StoredRun,
    *unseen: UnrecordedAttempt,
    question: str = "0:1:all",
    host: str = "web1",
    doubts: list[str] | None = None,
) -> bool:
    return stored.store.note_answer(stored.run_id, question, host, 0, doubts or [], unseen)


def settle(
    stored: StoredRun, *doubts: str, ending: bool = True, epoch: int | None = None, lost: int | None = None
) -> bool:
    fields = stored.store.fields(stored.run_id)
    given = {} if epoch is None else {"epoch": str(epoch)}
    given |= {} if lost is None else {"lost": str(lost)}
    return stored.store.settle(stored.run_id, run_record(fields | given, 0), doubts, ending=ending)


# --- queries --------------------------------------------------------------------------------------------


def test_receipt_query_is_recorded_once_in_the_hosts_list(aborting: StoredRun) -> None:
    with aborting.emits("hosts_asked"):
        assert ask(aborting, "web1", "web2")
        assert not ask(aborting, "web1", "web2")
    assert aborting.store.asked("web1") == aborting.store.asked("web2") == [aborting.run_id]
    assert aborting.run("asked") == "web1 web2"


def test_reopened_run_drops_earlier_receipt_queries(aborting: StoredRun) -> None:
    aborting.put(epoch=1)
    with aborting.unchanged():
        assert not ask(aborting, "web1")


# --- answers --------------------------------------------------------------------------------------------


def test_receipt_of_an_unrecorded_attempt_restores_its_outcome_and_journal(aborting: StoredRun) -> None:
    ask(aborting, "web1")
    with aborting.emits("step_found", "hosts_answered"):
        assert answer(aborting, found(7, "changed", rendered='{"path":"x"}', before='{"sha256":"ab"}'))

    assert [aborting.step(f"{name}:0") for name in ("status", "attempts", "fence", "done_at", "journalled")] == [
        "changed",
        "1",
        "7",
        "web1",
        "1",
    ]
    assert (aborting.step("rendered:0"), aborting.step("before:0")) == ('{"path":"x"}', '{"sha256":"ab"}')
    assert aborting.run("answered") == " web1"
    assert aborting.store.asked("web1") == []


@pytest.mark.parametrize("side", ["", "u"])
def test_receipt_of_a_recorded_attempt_changes_nothing(aborting: StoredRun, side: str) -> None:
    aborting.put(steps={"status:0": "cancelled", f"{side}fence:0": 7, "no_effect:0": 1})
    ask(aborting, "web1")
    with aborting.emits("hosts_answered"):
        answer(aborting, found(7))
    assert (aborting.step("status:0"), aborting.step("no_effect:0")) == ("cancelled", "1")


@pytest.mark.parametrize("status", ["changed", "failed", "unknown"])
def test_recorded_outcome_of_an_earlier_attempt_is_kept(aborting: StoredRun, status: str) -> None:
    aborting.put(steps={"status:0": status, "attempts:0": 1, "fence:0": 5, "before:0": "first", "outcome:0": "own"})
    ask(aborting, "web1")
    answer(aborting, found(7, before="later"))
    assert [aborting.step(f"{name}:0") for name in ("status", "fence", "before", "outcome")] == [
        status,
        "7",
        "first",
        "own",
    ]


def test_outcome_without_effect_yields_to_a_later_attempt(aborting: StoredRun) -> None:
    aborting.put(steps={"status:0": "unchanged", "attempts:0": 1, "fence:0": 5, "no_effect:0": 1})
    ask(aborting, "web1")
    answer(aborting, found(7))
    assert (aborting.step("status:0"), aborting.step("no_effect:0")) == ("unknown", None)


def test_answer_without_a_query_is_rejected(aborting: StoredRun) -> None:
    ask(aborting, "web1")
    with aborting.unchanged():
        assert not answer(aborting, found(7), question="0:0:all")


def test_steps_in_doubt_accumulate(aborting: StoredRun) -> None:
    ask(aborting, "web1", "web2")
    answer(aborting, doubts=["one", "two"])
    answer(aborting, host="web2", doubts=["three"])
    settle(aborting, "four")
    assert aborting.run("doubts") == "one\ntwo\nthree\nfour"


def test_record_version_is_raised_to_that_seen_by_a_host(aborting: StoredRun) -> None:
    ask(aborting, "web1")
    aborting.store.note_answer(aborting.run_id, "0:1:all", "web1", 500, [], [])
    assert int(aborting.run("version") or 0) == 501


# --- continuation ---------------------------------------------------------------------------------------


def test_run_continues_after_receipt_comparison(aborting: StoredRun) -> None:
    ask(aborting, "web1")
    with aborting.emits("receipts_compared"):
        assert settle(aborting)
    record = aborting.record()
    assert (record.fenced, record.compared) == (1, True)
    assert aborting.run("asking") is None


def test_comparison_is_incomplete_with_receipts_of_lost_attempts_only(aborting: StoredRun) -> None:
    settle(aborting, ending=False)
    assert (aborting.record().fenced, aborting.record().compared) == (1, False)


@pytest.mark.parametrize("moved", [{"epoch": 1}, {"lost": 0}], ids=["another epoch", "another lost attempt"])
def test_comparison_is_rejected_after_the_run_has_advanced(aborting: StoredRun, moved: dict[str, int]) -> None:
    with aborting.unchanged():
        assert not settle(aborting, **moved)  # type: ignore[arg-type]


@pytest.mark.parametrize("repeatable", [True, False])
def test_only_the_last_attempt_needs_fencing(stored: StoredRun, repeatable: bool) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    stored.expire(0, repeatable=repeatable)
    assert stored.record().lost == (0 if repeatable else 1)


def test_attempt_lost_before_the_runs_end_needs_fencing(stored: StoredRun) -> None:
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    stored.expire(0)
    stored.put(state="aborting")
    stored.store.drain(stored.run_id, [(0, False)])
    assert (stored.step("status:0"), stored.record().lost) == ("unknown", 1)


def test_lost_undo_is_fenced_by_its_next_attempt(stored: StoredRun) -> None:
    stored.dispatch("u")
    stored.claim(0, "u")
    stored.end_lease("u0")
    stored.expire(0, "u")
    assert stored.record().lost == 0


# --- clock jumps ----------------------------------------------------------------------------------------

HOUR = 3_600_000


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_times_before_a_clock_jump_are_shifted(stored: StoredRun, by: int) -> None:
    """Times by the clock before the jump, `by` before the current one."""
    stored.begin(0)
    stored.claim(0)
    then = stored.store.now() - by
    stored.put(deadline=then + 60_000, timeout=90_000, claimed=then - 100, **{"claimed@one": then - 100})
    stored.put(
        steps={
            "status:1": "ready",
            "sent:1": then - 500,
            "sent_until:1": then + 5000,
            "status:2": "retrying",
            "not_before:2": then + 7000,
        }
    )
    stored.put(steps={"delay:2": 8000, "delay:3": 10_000})
    stored.redis.zadd(stored.keys.leases, {"0": then + 3000})
    stored.redis.zadd(stored.keys.waits, {"3": then + 9000})

    with stored.emits("clock_jumped"):
        assert stored.store.shift(stored.run_id, 1, by)

    now = then + by
    assert int(stored.step("sent:1") or 0) == pytest.approx(now - 500, abs=50)
    assert int(stored.step("sent_until:1") or 0) == pytest.approx(now + 5000, abs=50)
    assert int(stored.step("not_before:2") or 0) == pytest.approx(now + 7000, abs=50)
    assert int(stored.run("deadline") or 0) == pytest.approx(now + 60_000, abs=50)
    assert int(stored.run("claimed@one") or 0) == pytest.approx(now - 100, abs=50)
    assert stored.leases()["0"] == pytest.approx(now + 3000, abs=50)
    assert stored.waits()["3"] == pytest.approx(now + 9000, abs=50)


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_times_after_a_clock_jump_are_unchanged(stored: StoredRun, by: int) -> None:
    stored.begin(0)
    stored.claim(0)
    before, lease = int(stored.step("sent:0") or 0), stored.leases()["0"]

    assert stored.store.shift(stored.run_id, 1, by)

    assert before <= int(stored.step("sent:0") or 0) <= stored.store.now()
    assert lease <= stored.leases()["0"] <= stored.store.now() + LEASE * 1000


def test_clock_jump_shifts_a_run_once(stored: StoredRun) -> None:
    stored.begin(0)
    assert stored.store.shift(stored.run_id, 2, HOUR)
    with stored.unchanged():
        assert not stored.store.shift(stored.run_id, 2, HOUR)
        assert not stored.store.shift(stored.run_id, 1, -HOUR)


def test_immediately_due_times_are_not_shifted(stored: StoredRun) -> None:
    stored.lay(left=1)
    stored.put(steps={"status:0": "ready", "sent:0": stored.store.now(), "sent_until:0": 0})
    stored.store.shift(stored.run_id, 1, HOUR)
    assert stored.step("sent_until:0") == "0"


def test_clock_jump_is_counted_once_and_sweeps_all_live_runs(stored: StoredRun) -> None:
    store = stored.store
    store.look_at("run", store.now() + HOUR)
    assert store.note_jump(0, -HOUR)
    assert not store.note_jump(0, -HOUR)
    assert store.due(LEASE) == ["run"]
    assert stored.redis.hget(store.keys.clock, "jumped") == str(-HOUR)


def test_restart_after_a_clock_set_back_may_have_lost_writes() -> None:
    """A run that was created before the jump is older than the server, although its time of creation is later."""
    with get(lambda: servers.RedisServer("--appendfsync", "always", own_clock=True)) as server:
        stored = StoredRun(server.url)
        stored.create()
        server.set_clock(-24 * 3600)
        assert stored.store.note_jump(0, -24 * HOUR)
        assert stored.store.shift(stored.run_id, 1, -24 * HOUR)
        server.restart(signal.SIGKILL)

        assert not stored.store.may_have_lost(int(stored.run("created") or 0)), (
            "the time of creation already shows the loss"
        )
        assert stored.store.may_have_lost(int(stored.run("since") or 0))
        stored.close()
