"""The timeline of a run: bars from events, folded rows, phases, durations."""

from __future__ import annotations

import pytest

from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.timeline import LONGEST, bars, duration, timeline
from tests.unit.plans import compiled, of_edges


def event(at: int, name: str, **fields: str) -> Event:
    return Event(f"{at}-0", name, at, fields)


CHAIN = compiled(of_edges({"a": [], "b": ["a"]}))
UNDONE = [
    event(1000, "run_created"),
    event(2000, "run_started"),
    event(2000, "step_started", step="a", attempt="1", owner="run/w@web1/1"),
    event(4000, "step_ended", step="a", status="changed"),
    event(4000, "step_started", step="b", attempt="1"),
    event(5000, "step_retrying", step="b", error="busy"),
    event(6000, "step_started", step="b", attempt="2"),
    event(7000, "step_ended", step="b", status="failed", error="no space"),
    event(7000, "run_aborting"),
    event(8000, "run_undoing"),
    event(8000, "undo_started", step="a", attempt="1"),
    event(11000, "undo_ended", step="a", status="undone"),
    event(12000, "run_ended"),
]


def test_step_and_its_undo_share_a_row() -> None:
    found = timeline(CHAIN, UNDONE, now=99000)

    assert found is not None
    assert (found.begin, found.end, found.span) == (2000, 12000, 10000)
    assert [row.name for row in found.rows] == ["a", "b"]
    assert [(bar.state, bar.undo, bar.left, bar.width) for bar in found.rows[0].bars] == [
        ("changed", False, 0.0, 20.0),
        ("undone", True, 60.0, 30.0),
    ]
    assert [bar.state for bar in found.rows[1].bars] == ["retrying", "failed"]
    assert "no space" in found.rows[1].bars[1].tip
    assert found.undone_from == 60.0


def test_phases_of_a_run_are_consecutive() -> None:
    found = timeline(CHAIN, UNDONE, now=99000)

    assert found is not None
    assert [(phase.state, phase.left, phase.width) for phase in found.phases] == [
        ("running", 0.0, 50.0),
        ("aborting", 50.0, 10.0),
        ("undoing", 60.0, 40.0),
    ]


def test_resumed_run_returns_to_its_phase_before_the_suspension() -> None:
    events = [*UNDONE[:11], event(9000, "run_suspended"), event(10000, "run_resumed"), event(12000, "run_ended")]

    found = timeline(CHAIN, events, now=99000)

    assert found is not None
    assert [phase.state for phase in found.phases] == ["running", "aborting", "undoing", "suspended", "undoing"]


def test_running_attempt_lasts_until_now_and_external_wait_is_shown() -> None:
    found = timeline(CHAIN, UNDONE[:3], now=10000)
    waits = bars([*UNDONE[:3], event(2500, "step_waiting", step="a")])

    assert found is not None
    assert (found.rows[0].bars[0].width, found.rows[0].bars[0].state) == (100.0, "running")
    assert found.phases[-1].left + found.phases[-1].width == 100.0
    assert [(bar.how, bar.end) for bar in waits] == [("waiting", None)]


def test_run_without_an_attempt_has_no_timeline() -> None:
    assert timeline(CHAIN, UNDONE[:2], now=3000) is None


def test_similar_steps_share_one_row_whose_simultaneous_bars_have_lanes_of_their_own() -> None:
    plan = compiled(of_edges({f"web-{n}": [] for n in range(9)}))
    hows = ["failed" if n == 4 else "changed" for n in range(9)]
    events = [
        event(0, "run_started"),
        *(event(1 + n, "step_started", step=f"web-{n}") for n in range(9)),
        *(event(100 + n, "step_ended", step=f"web-{n}", status=how) for n, how in enumerate(hows)),
    ]

    found = timeline(plan, events, now=1000)

    assert found is not None
    (row,) = found.rows
    assert (row.name, row.lanes, len(row.bars), len(row.parts)) == ("web-* (9)", 5, 9, 9)
    assert row.bars[-1].state == "failed"  # the failed bar is drawn above the others
    assert {bar.lane for bar in row.bars} == set(range(5))


def test_units_are_folded_into_the_row_of_their_step_in_the_order_of_their_numbers() -> None:
    events = [event(0, "run_started"), event(0, "step_started", step="a")]
    for n in range(12):
        events += [
            event(n, "item_started", step=f"a[{n}]"),
            event(n + 1, "item_ended", step=f"a[{n}]", status="changed"),
        ]

    found = timeline(CHAIN, events, now=1000)

    assert found is not None
    assert [part.name for part in found.rows[0].parts] == [f"a[{n}]" for n in range(12)]
    assert (found.rows[0].name, found.rows[0].lanes, found.rows[0].step) == ("a (12)", 1, "a")


def test_thousands_of_units_are_drawn_in_part_with_all_failures() -> None:
    many = 3 * LONGEST
    events = [event(0, "run_started")]
    for n in range(many):
        how = "failed" if n == 1001 else "changed"
        events += [event(n, "item_started", step=f"a[{n}]"), event(n + 1, "item_ended", step=f"a[{n}]", status=how)]

    found = timeline(CHAIN, events, now=many)

    assert found is not None
    assert len(found.rows[0].parts) == LONGEST
    assert len(found.rows[0].bars) <= LONGEST + 1
    assert found.rows[0].bars[-1].state == "failed"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.00 s"), (9.99, "9.99 s"), (12.34, "12.3 s"), (59.96, "60.0 s"), (60, "1 min"), (200, "3 min 20 s"),
     (7500, "2 h 5 min"), (86_400 * 3 + 4 * 3600, "3 d 4 h")],
)  # fmt: skip
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text
