"""Failure matrix of a plan: sandbox runs with pretended steps, in which each step fails in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.language.targets import is_label
from longshore.orchestration.language.templates import is_template
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs.report import Report
from longshore.tasks.simulation.sandbox import Sandbox


@dataclass(frozen=True)
class SimulatedFailure:
    """The report of a simulated run in which `step` fails; if `step` is None, no step fails."""

    step: str | None
    report: Report


def simulate(plan: Plan, params: Mapping[str, Any] | None = None) -> Iterator[SimulatedFailure]:
    """Simulate a run of the plan without a failure, and then, for each step, a run in which this step fails."""
    for step in [None, *plan.steps]:
        targets = {step.target for step in plan.steps.values()} | {plan.target}
        sandbox = Sandbox(hosts=_stand_ins(targets), pretend=True, approve_all=True)
        if step is not None:
            sandbox.fail(step, OperationError("simulated failure"))
        yield SimulatedFailure(step, sandbox.run(plan, params, run_id="simulation"))


def _stand_ins(targets: Iterable[str | None]) -> dict[str, dict[str, str]]:
    """Return a host for each host name in a plan, two for each label, and at least one."""
    hosts: dict[str, dict[str, str]] = {}
    for target in sorted(filter(None, targets)):
        if is_label(target):
            key, _, value = target.partition(":")
            hosts |= {f"{value}-{n}": {key: value} for n in (1, 2)}
        elif target[0] != "_" and not is_template(target):
            hosts[target] = {}
    return hosts or {"sandbox": {}}
