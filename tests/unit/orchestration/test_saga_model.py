"""Model checking of a run's state machine: every order of events keeps the invariants, and each guard is needed."""

from __future__ import annotations

import os

import pytest

from tests.unit.orchestration.saga_model import Checker, Faults, small_plan, small_plan_without_undo

PLAN = small_plan()
WITHOUT_UNDO = small_plan_without_undo()
LONG = os.environ.get("LONGSHORE_FAULTS") == "long"

#: Pairs of all kinds of faults, and three faults together.
TRIED = {
    "nothing": Faults(),
    "a crash and a zombie": Faults(crash=1, zombie=1),
    "a zombie and a failure": Faults(zombie=1, failure=1),
    "a loss and a double": Faults(loss=1, double=1),
    "a crash, a loss and a failure": Faults(crash=1, loss=1, failure=1),
    "two zombies": Faults(zombie=2),
    "a decision that comes late and a failure": Faults(stale=1, failure=1),
    "a decision that comes late and a zombie": Faults(stale=1, zombie=1),
    "a zombie and a cancel": Faults(zombie=1, cancel=1),
    "a failed undo and a cancel": Faults(undo_failure=1, cancel=1),
    "a failed undo, a crash and a failure": Faults(undo_failure=1, crash=1, failure=1),
    "a failed undo, a zombie and a failure": Faults(undo_failure=1, zombie=1, failure=1),
}
TRIED_LONG = {
    "a crash, a zombie and a failure": Faults(crash=1, zombie=1, failure=1),
    "a crash, a zombie, a loss and a failure": Faults(crash=1, zombie=1, loss=1, failure=1),
    "a crash, a zombie, a double and a failure": Faults(crash=1, zombie=1, double=1, failure=1),
    "a late decision, a crash, a zombie and a failure": Faults(stale=1, crash=1, zombie=1, failure=1),
    "two crashes, a zombie and a cancel": Faults(crash=2, zombie=1, cancel=1),
}


@pytest.mark.parametrize("faults", TRIED.values(), ids=TRIED.keys())
def test_no_event_order_breaks_an_invariant(faults: Faults) -> None:
    assert Checker(PLAN, faults).explore(2_000_000) > 10


@pytest.mark.parametrize(
    "faults", [Faults(zombie=2), Faults(zombie=1, cancel=1), Faults(zombie=1, failure=1), Faults(zombie=1, stale=1)]
)
def test_lost_attempt_never_acts_after_its_run(faults: Faults) -> None:
    assert Checker(WITHOUT_UNDO, faults).explore(2_000_000) > 10


def test_lost_attempt_acts_after_its_run_without_closed_receipts() -> None:
    with pytest.raises(AssertionError, match="after the end"):
        Checker(WITHOUT_UNDO, Faults(zombie=1), frozenset({"close"})).explore(2_000_000)


def test_undo_below_a_failed_undo_needs_the_option_of_the_plan() -> None:
    with pytest.raises(AssertionError, match="undone under one whose compensation had failed"):
        Checker(small_plan(on_undo_failure="continue"), Faults(undo_failure=1, cancel=1)).explore(2_000_000)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not LONG, reason="long test: make faults")
@pytest.mark.parametrize("faults", TRIED_LONG.values(), ids=TRIED_LONG.keys())
def test_no_longer_event_order_breaks_an_invariant(faults: Faults) -> None:
    states = Checker(PLAN, faults).explore(20_000_000)
    print(f"{states} states: {faults}")


@pytest.mark.parametrize(
    ("guard", "faults", "rule"),
    [
        ("sweeper", Faults(loss=1), "never end"),
        ("fence", Faults(zombie=1), "not the present attempt's"),
        # Each of the two guards prevents a forward attempt from acting after its undo.
        ("receipt and close", Faults(zombie=1, failure=1), "stands|after the end"),
        ("claim state", Faults(failure=1), "not running"),
        ("claim status", Faults(double=1), None),
        ("cas", Faults(failure=1, stale=1), None),
    ],
)
def test_removing_a_guard_breaks_an_invariant(guard: str, faults: Faults, rule: str | None) -> None:
    with pytest.raises(AssertionError, match=rule):
        Checker(PLAN, faults, frozenset(guard.split(" and "))).explore(2_000_000)
