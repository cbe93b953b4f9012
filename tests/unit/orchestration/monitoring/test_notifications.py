"""The events that cause a notice."""

from __future__ import annotations

import pytest

from longshore.orchestration.monitoring.notifications import Notice, kind_of
from longshore.orchestration.runs.events import Event


@pytest.mark.parametrize(
    ("name", "fields", "kind"),
    [
        ("run_ended", {"state": "undo_failed"}, "undo_failed"),
        ("run_ended", {"state": "failed", "cause": "failure"}, "failed"),
        ("run_ended", {"state": "undone", "cause": "cancel"}, None),
        ("step_waiting", {"for": "an approval"}, "approval_wanted"),
        ("item_waiting", {"for": "an approval: is the backup there?"}, "approval_wanted"),
        ("step_waiting", {"for": "the end of a run"}, None),
        ("run_suspended", {"for": "unknown"}, "approval_wanted"),
        ("run_suspended", {"for": "breaker"}, "breaker_open"),
        ("run_suspended", {"for": "regressed"}, None),
        ("breaker_opened", {"service": "job web1/backup"}, "breaker_open"),
    ],
)
def test_kind_of_notice(name: str, fields: dict[str, str], kind: str | None) -> None:
    assert kind_of(Event("1-0", name, 0, fields)) == kind


@pytest.mark.parametrize(("state", "title"), [("suspended", "waits for a service"), ("undone", "no longer started")])
def test_title_of_a_breaker_names_waiting_runs(state: str, title: str) -> None:
    assert title in Notice("r/1-0", "breaker_open", "r", "backup", state, "", "it is down", "ann", "").title
