"""Guards of the scripts that compare the hosts' receipts with a record, and that count the attempts to be fenced."""

from __future__ import annotations

from dataclasses import replace

from longshore.orchestration.store.records import UnrecordedAttempt
from tests.store.guards.marks import scenario
from tests.store.guards.situations import abort, expired
from tests.store.stored_run import StoredRun

QUESTION = "0:1:all"


def aborting(stored: StoredRun) -> None:
    """An aborting run, one attempt of which was lost."""
    stored.lay("aborting", left=0, lost=1)


def ask(stored: StoredRun, epoch: int = 0) -> bool:
    return stored.store.ask(stored.run_id, epoch, QUESTION, ["web1"])


def answer(stored: StoredRun, *found: UnrecordedAttempt, question: str = QUESTION, version: int = 0) -> bool:
    return stored.store.note_answer(stored.run_id, question, "web1", version, [], found)


def found(fence: int, status: str = "unknown") -> UnrecordedAttempt:
    return UnrecordedAttempt(0, fence, status, "{}", "", "")


# --- ask ---------------------------------------------------------------------------------------


@scenario
def an_older_decision_asks_no_host_about_a_reopened_run(stored: StoredRun) -> None:
    aborting(stored)
    stored.put(epoch=1)
    with stored.unchanged():
        assert not ask(stored)


@scenario
def a_question_is_recorded_once(stored: StoredRun) -> None:
    aborting(stored)
    assert ask(stored)
    answer(stored)
    with stored.unchanged():
        assert not ask(stored)


# --- answer ------------------------------------------------------------------------------------


@scenario
def an_answer_to_an_earlier_question_does_not_count(stored: StoredRun) -> None:
    aborting(stored)
    ask(stored)
    with stored.unchanged():
        assert not answer(stored, found(7), question="0:0:all")


@scenario
def the_receipt_of_a_recorded_attempt_changes_no_step(stored: StoredRun) -> None:
    """Neither an attempt at the step, nor one at its compensation."""
    aborting(stored)
    stored.put(steps={"status:0": "cancelled", "fence:0": 7, "ufence:0": 9, "no_effect:0": 1})
    ask(stored)
    with stored.emits("hosts_answered"):
        answer(stored, found(7), found(9))
    assert (stored.step("status:0"), stored.step("no_effect:0")) == ("cancelled", "1")


@scenario
def an_unrecorded_attempt_replaces_no_changed_or_failed_or_unknown_outcome(stored: StoredRun) -> None:
    aborting(stored)
    ask(stored)
    for status in ("changed", "failed", "unknown"):
        stored.put(steps={"status:0": status, "outcome:0": "own", "fence:0": 5})
        answer(stored, found(7))
        assert [stored.step(f"{name}:0") for name in ("status", "outcome", "fence")] == [status, "own", "7"]


@scenario
def an_unrecorded_attempt_removes_the_note_that_its_step_had_no_effect(stored: StoredRun) -> None:
    aborting(stored)
    stored.put(steps={"status:0": "unchanged", "fence:0": 5, "no_effect:0": 1, "reason:0": "nothing to do"})
    ask(stored)
    answer(stored, found(7))
    assert [stored.step(f"{name}:0") for name in ("status", "no_effect", "reason")] == ["unknown", None, None]


@scenario
def the_version_of_the_record_rises_to_the_highest_one_that_a_host_has_seen(stored: StoredRun) -> None:
    aborting(stored)
    ask(stored)
    answer(stored, version=500)
    assert int(stored.run("version") or 0) > 500


# --- settle ------------------------------------------------------------------------------------


@scenario
def an_older_decision_ends_no_question_of_a_reopened_run(stored: StoredRun) -> None:
    aborting(stored)
    seen = stored.record()
    stored.put(epoch=1)
    with stored.unchanged():
        assert not stored.store.settle(stored.run_id, seen, [], ending=True)


@scenario
def a_question_does_not_end_if_another_attempt_was_lost_meanwhile(stored: StoredRun) -> None:
    aborting(stored)
    seen = replace(stored.record(), lost=0)
    with stored.unchanged():
        assert not stored.store.settle(stored.run_id, seen, [], ending=True)


@scenario
def a_question_about_lost_attempts_does_not_compare_all_receipts(stored: StoredRun) -> None:
    aborting(stored)
    assert stored.store.settle(stored.run_id, stored.record(), [], ending=False)
    assert (stored.record().fenced, stored.record().compared) == (1, False)


# --- expire and drain: attempts that nothing else fences ---------------------------------------


@scenario
def a_lost_attempt_at_a_compensation_closes_no_step(stored: StoredRun) -> None:
    stored.dispatch("u")
    stored.claim(0, "u")
    stored.end_lease("u0")
    assert stored.expire(0, "u", repeatable=False) == "unknown"
    assert stored.record().lost == 0


@scenario
def a_drained_step_with_a_lost_attempt_is_closed(stored: StoredRun) -> None:
    expired(stored)
    abort(stored)
    stored.store.drain(stored.run_id, [(0, False)])
    assert (stored.step("status:0"), stored.record().lost) == ("unknown", 1)
