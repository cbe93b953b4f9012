"""Jumps of Redis's clock while runs are in progress and a worker is dead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Plan
from tests import servers
from tests.conftest import get
from tests.faults.conftest import Form
from tests.faults.effects import effect_counts
from tests.integration.processes import Installation, wait_for

pytestmark = pytest.mark.timeout(600)

HOUR = 3600.0
PATIENCE = 60.0


@pytest.fixture
def own_redis() -> Iterator[servers.RedisServer]:
    with get(lambda: servers.RedisServer("--appendfsync", "always", own_clock=True)) as server:
        yield server


def slow(folder: Path) -> Plan:
    plan = Plan("slow", timeout="30m")
    first = plan.step("first", "effect.set", folder=str(folder), seconds=1.0)
    act = plan.step("act", "effect.set", folder=str(folder), seconds=1.0).after(first)
    plan.step("last", "effect.set", folder=str(folder)).after(act)
    return plan


def test_runs_continue_when_the_clock_is_set_and_a_worker_dies(
    place: Installation, own_redis: servers.RedisServer, tmp_path: Path, form: Form, figures: Callable[[str, Any], None]
) -> None:
    """While steps run, a worker is killed, and Redis's clock is set forward or back by 1 to 48 hours."""
    # given
    for name in ("one", "two"):
        place.worker(name, "--concurrency", "2").start(wait=False)
    for worker in place.workers:
        worker.wait_until_ready()
    folder = tmp_path / "effects"
    folder.mkdir()
    slowest = 0.0

    at = 0.0
    for number, jump in enumerate(form.of([-HOUR, 2 * HOUR], [-HOUR, HOUR, -24 * HOUR, 48 * HOUR, -24 * HOUR, HOUR])):
        # when a worker is killed during a step, and the clock is set
        runs = [place.client().start(slow(folder), run_id=f"run{number}-{n}") for n in range(3)]
        wait_for(
            "the first effect of each run",
            lambda: all(effect_counts(folder, run.id)["did", "first"] for run in runs),  # noqa: B023
        )
        at += jump
        place.workers[number % 2].kill()
        own_redis.set_clock(at)
        began = time.monotonic()
        place.workers[number % 2].start(wait=False)

        # then all runs succeed, and each step was executed once
        for run in runs:
            assert run.wait(PATIENCE).state == "succeeded"
            assert effect_counts(folder, run.id) == {("did", part): 1 for part in ("first", "act", "last")}
        slowest = max(slowest, time.monotonic() - began)
    figures("jumps of the clock", number + 1)
    figures("longest time from jump to end of a run", f"{slowest:.1f} s")
