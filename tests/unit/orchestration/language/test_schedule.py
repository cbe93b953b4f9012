"""Planned times of schedules, across changes of daylight saving time, and missed times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration.jobs import Job
from longshore.orchestration.jobs.schedule import planned, run_id_of, upcoming
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.language.schedule import chosen
from longshore.orchestration.schedules.due_times import Mark


def job(schedule: str, timezone: str = "UTC") -> Job:
    return Job("nightly", "backup:1", host="web1", schedule=schedule, timezone=timezone)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def as_dates(found: list[int]) -> list[str]:
    return [f"{datetime.fromtimestamp(at / 1000, UTC):%d %H:%M}" for at in found]


def test_planned_times_lie_in_a_half_open_interval() -> None:
    found = planned(job("0 * * * *"), ms("2026-05-01T10:00:00+00:00"), ms("2026-05-01T12:00:00+00:00"))
    assert as_dates(found) == ["01 11:00", "01 12:00"]


@pytest.mark.parametrize(
    ("schedule", "day", "times"),
    [
        # One night skips the hour from two to three; the other night repeats it.
        ("30 2 * * *", "2026-03-29", ["29 01:00"]),
        ("30 2 * * *", "2026-10-25", ["25 00:30"]),
        ("0 3 * * *", "2026-03-29", ["29 01:00"]),
        ("*/30 2 * * *", "2026-10-25", ["25 00:00", "25 00:30", "25 01:00", "25 01:30"]),
    ],
)
def test_dst_change_neither_skips_nor_repeats_a_run(schedule: str, day: str, times: list[str]) -> None:
    begin = ms(f"{day}T00:00:00+00:00") - 1
    assert as_dates(planned(job(schedule, "Europe/Berlin"), begin, begin + 20 * 3600 * 1000)) == times


def test_catch_up_is_limited_to_a_hundred() -> None:
    begin, end = ms("2026-05-01T00:00:00+00:00"), ms("2026-05-08T00:00:00+00:00")
    found = planned(job("* * * * *"), begin, end)
    assert len(found) == 100
    assert found[-1] == end


@given(st.integers(0, 4 * 10**12), st.integers(0, 10**8), st.integers(0, 10**8))
def test_adjacent_intervals_equal_the_whole(begin: int, first: int, second: int) -> None:
    every = job("*/7 * * * *", "America/New_York")
    parts = planned(every, begin, begin + first) + planned(every, begin + first, begin + first + second)
    assert parts[-100:] == planned(every, begin, begin + first + second)


def test_catch_up_policy_selects_missed_runs() -> None:
    now = ms("2026-05-01T12:00:10+00:00")
    missed = [ms("2026-05-01T10:00:00+00:00"), ms("2026-05-01T11:00:00+00:00")]
    due = [*missed, ms("2026-05-01T12:00:00+00:00")]

    assert chosen("skip", missed, now) == []
    assert chosen("skip", due, now) == due[-1:]
    assert chosen("once", missed, now) == missed[-1:]
    assert chosen("once", due, now) == due[-1:]
    assert chosen("all", due, now) == due
    for policy in ("skip", "once", "all"):
        assert chosen(policy, [], now) == []  # type: ignore[arg-type]


def test_planned_time_determines_the_run_id() -> None:
    at = ms("2026-05-01T12:00:00+02:00")
    assert run_id_of(job("@hourly"), at) == "nightly@web1.20260501T100000Z"
    longest = Job("n" * 64, "backup:1", host="h" * 64)
    assert RUN_ID.fullmatch(run_id_of(longest, at))


def test_next_planned_time() -> None:
    now = ms("2026-05-01T12:00:00+00:00")
    found = upcoming(job("0 3 * * *", "Europe/Berlin"), now)
    assert found is not None
    assert found.isoformat() == "2026-05-02T03:00:00+02:00"
    assert upcoming(job(""), now) is None


def test_schedule_mark_round_trips() -> None:
    mark = Mark(17, "*/5 * * * * Europe/Berlin")
    assert Mark.read(mark.text()) == mark
