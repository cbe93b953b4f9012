"""HealthCheck: when a container without a health check counts as healthy."""

from __future__ import annotations

from dataclasses import dataclass

from longshore.tasks.operations.docker.levels import HealthCheck


@dataclass
class Observed:
    id: str = "c"
    running: bool = True
    restarting: bool = False
    health: str | None = None
    exit_code: int | None = 0
    started_at: str | None = "10:00:00"


def test_container_observed_between_two_restarts_is_reported_as_restarted() -> None:
    check = HealthCheck(settle=60)
    assert check.problem(Observed()) == "has run for 0 s"
    assert check.problem(Observed(started_at="10:00:01")) == "has run for 0 s since its last restart"
    assert check.problem(Observed(id="other")) == "has run for 0 s"
    assert "keeps restarting" in check.problem(Observed(restarting=True))


def test_container_is_healthy_after_the_settling_time() -> None:
    assert HealthCheck(settle=0).problem(Observed()) == ""
