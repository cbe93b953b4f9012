"""Several and lost control workers, and full queues: no process delays all runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from longshore.orchestration import Plan, Run
from longshore.orchestration.states import RunState
from tests import servers
from tests.integration.conftest import QUICK, MakeInstallation
from tests.integration.processes import Installation, names, wait_for

pytestmark = pytest.mark.integration

#: Long enough for a busy machine.
LEASE = 6.0


def longest_pause(run: Run) -> float:
    """The longest time between two events of a run, in seconds."""
    at = [event.at for event in run.events()]
    return max(after - before for before, after in pairwise(at)) / 1000


def test_lost_control_workers_delay_no_run_beyond_a_lease(redis_server: servers.RedisServer, tmp_path: Path) -> None:
    place = Installation(redis_server.url, tmp_path, options=QUICK | {"lease": f"{LEASE:g}s"})
    control = [place.worker(f"control{n}", "--concurrency", "1", "-Q", "control") for n in range(3)]
    plan = Plan("long")
    before: list[str] = []
    for level in range(12):
        row = [f"s{level}-{n}" for n in range(2)]
        for name in row:
            plan.step(name, "noop.execute", sleep=0.05).after(*before)
        before = row
    try:
        for worker in [*control, place.worker("steps", "--concurrency", "2", "-Q", "noop.undo,noop")]:
            worker.start()
        runs = [place.run(plan) for _ in range(6)]
        for n, worker in enumerate(control[:2]):
            wait_for(
                "three runs to advance",
                lambda n=n: all(run.report().step(f"s{2 + 2 * n}-0").attempts for run in runs[:3]),
            )
            worker.kill()

        assert {run.wait(timeout=90).state for run in runs} == {RunState.SUCCEEDED}
        assert max(map(longest_pause, runs)) < LEASE
    finally:
        place.close()


def test_full_queue_does_not_delay_undo_and_always_steps(install: MakeInstallation) -> None:
    place = install()
    place.worker("control", "--concurrency", "1", "-Q", "control").start()
    place.worker("steps", "--concurrency", "1", "-Q", "noop.undo,noop").start()
    plan = Plan("fails")
    steps = [plan.step(f"a{n}", "noop.execute").undo("noop.execute") for n in range(3)]
    plan.step("hold", "noop.execute", sleep=1.5, fail=True).after(*steps)
    plan.step("last", "noop.execute").after("hold").always()
    run = place.run(plan)
    wait_for("the step to start", lambda: "hold" in names(run, "step_started"))
    crowd = Plan("crowd")
    crowd.step("many", "noop.execute", sleep=0.1).foreach(list(range(100)))
    others = place.run(crowd)

    report = run.wait(timeout=60)

    assert report.state is RunState.UNDONE
    assert {step.undo.status for step in report.steps if step.undo and step.name != "hold"} == {"undone"}
    assert report.step("last").changed
    ended = [item for item in others.report().step("many").items if item.attempts]
    assert len(ended) < 50, "the queue was no longer full"
    others.cancel("enough")


def test_child_runs_complete_with_one_worker_process_and_one_admitted_run(install: MakeInstallation) -> None:
    place = install(options={"max_runs": "1"})
    place.worker("only", "--concurrency", "1").start()
    grandchild = Plan("grandchild")
    grandchild.step("work", "noop.execute")
    child = Plan("child")
    child.run_plan("inner", grandchild)
    plan = Plan("parent")
    for n in range(3):
        plan.run_plan(f"part{n}", child)

    report = place.run(plan).wait(timeout=60)

    assert report.state is RunState.SUCCEEDED
