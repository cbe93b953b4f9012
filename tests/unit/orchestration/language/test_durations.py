"""Durations: parsing and formatting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration.language.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("2d", 172_800.0),
        ("1.5h", 5400.0),
        ("10 m", 600.0),
        (" 30s ", 30.0),
        ("15", 15.0),
        (5, 5.0),
        (0.25, 0.25),
        (0, 0.0),
    ],
)
def test_duration_is_parsed_from_text(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        *("", "soon", "-5s", "-1", -1, "5 parsecs", "1h30m", "s", "1,5s", None, True, False, [], {}),
        *("inf", "nan", float("inf"), float("nan"), "9" * 400 + "s", "9" * 400 + "h"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_invalid_duration_is_refused_and_quoted(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(written)

    assert "\n" not in str(caught.value)
    assert repr(written)[:20] in str(caught.value) or "inf" in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(90, "90s"), (600, "10m"), (0.25, "250ms"), (7200, "2h"), (0, "0s"), (0.0005, "0.0005"), (86_400, "24h")],
)
def test_duration_is_formatted_in_its_shortest_form(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@given(st.integers(0, 400 * 86_400_000))
def test_millisecond_duration_round_trips(ms: int) -> None:
    assert round(parse_duration(format_duration(ms / 1000)) * 1000) == ms


@given(st.floats(0, 1e9))
def test_duration_round_trips_to_a_microsecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-8, abs=1e-5)
