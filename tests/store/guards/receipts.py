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
def a_reopened_run_asks_no_question_of_an_older_decision(stored: StoredRun) -> None:
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
def an_attempt_that_the_record_knows_changes_nothing(stored: StoredRun) -> None:
    """Neither an attempt at the step, nor one at its compensation."""
    aborting(stored)
    stored.put(steps={"status:0": "cancelled", "fence:0": 7, "ufence:0": 9, "no_effect:0": 1})
    ask(stored)
    with stored.emits("hosts_answered"):
        answer(stored, found(7), found(9))
    assert (stored.step("status:0"), stored.step("no_effect:0")) == ("cancelled", "1")


@scenario
def the_recorded_outcome_of_an_earlier_attempt_stands(stored: StoredRun) -> None:
    aborting(stored)
    stored.put(steps={"status:0": "changed", "outcome:0": "own", "fence:0": 5})
    ask(stored)
    answer(stored, found(7))
    assert [stored.step(f"{name}:0") for name in ("status", "outcome", "fence")] == ["changed", "own", "7"]


@scenario
def an_unrecorded_attempt_removes_the_proof_that_a_step_had_no_effect(stored: StoredRun) -> None:
    aborting(stored)
    stored.put(steps={"status:0": "unchanged", "fence:0": 5, "no_effect:0": 1, "reason:0": "nothing to do"})
    ask(stored)
    answer(stored, found(7))
    assert [stored.step(f"{name}:0") for name in ("status", "no_effect", "reason")] == ["unknown", None, None]


@scenario
def the_record_takes_over_a_higher_version_that_a_host_has_seen(stored: StoredRun) -> None:
    aborting(stored)
    ask(stored)
    answer(stored, version=500)
    assert int(stored.run("version") or 0) > 500


# --- settle ------------------------------------------------------------------------------------


@scenario
def a_question_of_a_reopened_run_is_not_ended_by_an_older_decision(stored: StoredRun) -> None:
    aborting(stored)
    seen = stored.record()
    stored.put(epoch=1)
    with stored.unchanged():
        assert not stored.store.settle(stored.run_id, seen, [], ending=True)


@scenario
def an_attempt_that_was_lost_meanwhile_does_not_count_as_fenced(stored: StoredRun) -> None:
    aborting(stored)
    seen = replace(stored.record(), lost=0)
    with stored.unchanged():
        assert not stored.store.settle(stored.run_id, seen, [], ending=True)


@scenario
def the_receipts_of_lost_attempts_alone_are_not_a_full_comparison(stored: StoredRun) -> None:
    aborting(stored)
    assert stored.store.settle(stored.run_id, stored.record(), [], ending=False)
    assert (stored.record().fenced, stored.record().compared) == (1, False)


# --- expire and drain: attempts that nothing else fences ---------------------------------------


@scenario
def a_lost_compensation_is_fenced_by_the_next_one(stored: StoredRun) -> None:
    stored.dispatch("u")
    stored.claim(0, "u")
    stored.end_lease("u0")
    assert stored.expire(0, "u", repeatable=False) == "unknown"
    assert stored.record().lost == 0


@scenario
def an_attempt_that_was_lost_before_the_abort_is_fenced(stored: StoredRun) -> None:
    expired(stored)
    abort(stored)
    stored.store.drain(stored.run_id, [(0, False)])
    assert (stored.step("status:0"), stored.record().lost) == ("unknown", 1)
