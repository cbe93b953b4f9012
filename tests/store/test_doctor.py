"""Findings of doctor about runs that make no progress."""

from __future__ import annotations

import pytest

from longshore.orchestration.installation import checks
from tests.store.stored_run import StoredRun


@pytest.mark.parametrize(
    ("field", "status", "stuck"),
    [
        ("status:0", "running", False),
        ("status:0", "waiting", False),
        ("status:0", "succeeded", True),
        ("ustatus:0", "undoing", False),
        ("ustatus:0", "undone", True),
        ("attempts:0", "running", True),
    ],
)
def test_run_is_stuck_only_without_an_active_step(stored: StoredRun, field: str, status: str, stuck: bool) -> None:
    stored.redis.hset(stored.keys.run, "state", "running")
    stored.redis.hset(stored.keys.steps, field, status)
    stored.redis.zadd(stored.store.keys.live, {stored.run_id: 0})
    stored.redis.xadd(stored.keys.events, {"event": "run_created", "at": "1"}, id="1-1")
    assert [stored.run_id in finding.what for finding in checks._runs(stored.store)] == [True] * stuck
