"""The plans of the measures, and their runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from longshore.orchestration import Client, Plan
from longshore.orchestration.client.run import Run

#: Seconds within which each measured run ends.
PATIENCE = 600.0


def grid(levels: int, width: int) -> Plan:
    """No-ops in levels. Each step depends on all steps of the previous level."""
    plan = Plan(f"grid-{levels}x{width}")
    above: list[str] = []
    for level in range(levels):
        row = [f"s{level}-{n}" for n in range(width)]
        for name in row:
            plan.step(name, "noop.execute").after(*above)
        above = row
    return plan


def keyed(tenant: str) -> Plan:
    """A plan with a concurrency key of limit 2, which waits for an approval."""
    plan = Plan("keyed", concurrency={"key": f"tn-{tenant}", "limit": 2})
    plan.approval("wait")
    return plan


def ended(runs: Sequence[Run]) -> None:
    """Wait for the end of runs. Raises RuntimeError for a run that does not succeed."""
    for run in runs:
        report = run.wait(PATIENCE)
        if report.state != "succeeded":
            raise RuntimeError(f"run {run.id} ended {report.state}: {report.summary}")


def execute(client: Client, plan: Plan) -> float:
    """The seconds from the start of a run to its report."""
    began = time.perf_counter()
    ended([client.start(plan)])
    return time.perf_counter() - began


def sagas(client: Client, count: int, length: int) -> float:
    """The seconds of concurrent runs of a chain of `length` no-ops each."""
    began = time.perf_counter()
    ended([client.start(grid(length, 1)) for _ in range(count)])
    return time.perf_counter() - began
