"""The conditions of a search of runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from longshore.orchestration.errors import UsageError
from longshore.orchestration.runs.search import Filter, time_or_age


def test_time_without_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)

    assert time_or_age("2026-01-31T12:00") == noon
    assert time_or_age("2026-01-31T14:00+02:00") == noon
    assert time_or_age("2026-01-31") == noon - timedelta(hours=12)
    assert Filter.read(since=" 2026-01-31T12:00 ").since == noon.timestamp() * 1000


def test_age_counts_from_now() -> None:
    assert abs(datetime.now(UTC) - timedelta(hours=2) - time_or_age("2h")) < timedelta(seconds=5)
    assert Filter.read().since == 0


@pytest.mark.parametrize("text", ["yesterday", "99999999999d"])
def test_invalid_time_of_a_search_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a date, time or duration"):
        time_or_age(text)
