"""How each run of a plan would end in which one step fails: on the bench, every step pretended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.plan import Plan
from longshore.orchestration.report import Report
from longshore.tasks.bench import Bench


@dataclass(frozen=True)
class Rehearsed:
    """How a run would end in which that step fails; None is the run in which all goes well."""

    step: str | None
    report: Report


def rehearse(plan: Plan, params: Mapping[str, Any] | None = None) -> Iterator[Rehearsed]:
    """The run in which all goes well, then one for each step, in which that step fails."""
    for step in [None, *plan.steps]:
        targets = {step.target for step in plan.steps.values()} | {plan.target}
        hosts = sorted(name for name in targets if name and name[0] != "_" and "{" not in name)
        bench = Bench(hosts=hosts or ("bench",), pretend=True, approve_all=True)
        if step is not None:
            bench.fail(step, OperationError("fails, in this rehearsal"))
        yield Rehearsed(step, bench.run(plan, params, run_id="rehearsal"))
