"""Explanation of a plan before its run: order, retries, worst-case times and undo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longshore.orchestration.language import printable, templates
from longshore.orchestration.language.durations import format_duration, parse_duration
from longshore.orchestration.language.quantities import quantity
from longshore.orchestration.language.targets import ANY
from longshore.orchestration.operations import Retry, Waits
from longshore.orchestration.operations.approval import ApprovalParams
from longshore.orchestration.operations.celery_task import CELERY, TaskParams
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.settings import get_settings


def explain(plan: CompiledPlan) -> str:
    """Explain a plan as multi-line text."""
    lines = [f"Plan {plan.plan.name}: {quantity(len(plan), 'step')}, {quantity(len(plan.levels), 'level')}"]
    if plan.plan.description:
        lines.append(" ".join(plan.plan.description.split()))
    if plan.plan.timeout is not None:
        lines.append(f"Timeout of the run: {format_duration(plan.plan.timeout)}")
    for level, members in enumerate(plan.levels):
        lines += ["", f"Level {level}: {_canvas(plan, level)}"]
        for i in members:
            lines += _step(plan, plan.steps[i])
    path, longest = critical_path(plan)
    lines += ["", f"Critical path, at most {_about(longest)}: {' → '.join(path)}"]
    lines += ["", "Undo, if a step fails:", *_undo(plan)]
    if elsewhere := [step.name for step in plan.steps if _acts_elsewhere(step)]:
        lines += [
            "",
            f"Effects in other services: {', '.join(elsewhere)}",
            "  no fence reaches a called service: a request of a superseded attempt may reach it after the end of the"
            " run; let the service reject an old fence or a known idempotency key",
        ]
    return "\n".join(map(printable.line, lines))


def worst_case(plan: CompiledPlan, index: int) -> float:
    """Seconds that a step may take if every attempt times out, including delays.

    A step with items counts once, as their number is unknown.
    """
    policy = plan.retry_policy(index)
    return policy.attempts * _timeout(plan.steps[index]) + policy.worst_case()


def critical_path(plan: CompiledPlan) -> tuple[list[str], float]:
    """The slowest step of each level, and the sum of their worst cases; each level waits for the one before."""
    longest = [max(members, key=lambda i: worst_case(plan, i)) for members in plan.levels]
    return [plan.steps[i].name for i in longest], sum(worst_case(plan, i) for i in longest)


def _acts_elsewhere(step: CompiledStep) -> bool:
    """Whether a superseded attempt can still act, because no receipt on a host fences it."""
    return not step.read_only and step.operation.elsewhere


def _about(seconds: float) -> str:
    """Format a duration, rounded up to minutes if it is long."""
    minutes = math.ceil(seconds / 60)
    if minutes < 100:
        return format_duration(round(seconds, 3))
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if minutes else f"{hours}h"


def _timeout(step: CompiledStep) -> float:
    if step.waits is Waits.PERSON and step.step.timeout is None:
        given = step.step.with_.get("timeout", ApprovalParams().timeout)
        return ApprovalParams().timeout if templates.has_template(given) else parse_duration(given)
    if step.waits is Waits.TIME:
        given = step.step.with_.get("delay", 0)
        return 0.0 if templates.has_template(given) else parse_duration(given)
    if step.waits is Waits.RUN and step.step.timeout is None:
        return 0.0  # bounded by the child plan
    return step.step.timeout or get_settings().step_timeout


def _canvas(plan: CompiledPlan, level: int) -> str:
    members = plan.levels[level]
    if len(members) > 1:
        return f"{len(members)} steps in parallel, one chord"
    return "one step, its items and hosts in one chord" if plan.steps[members[0]].fans_out else "one step"


def _step(plan: CompiledPlan, step: CompiledStep) -> list[str]:
    after = f" after {', '.join(plan.steps[i].name for i in step.needs)}" if step.needs else ""
    queue = _queue(step.operation.name, step.step.with_, step.queue)
    facts = [
        queue + (f" on {step.target}" if step.target != "_any" else ""),
        f"at most {format_duration(_timeout(step))} an attempt" if _timeout(step) else "as long as its own run takes",
        _retry(plan.retry_policy(step.index), every=plan.retries_every_error(step.index)),
    ]
    facts += guards_of(step)
    if step.step.foreach is not None:
        items = step.step.foreach
        facts.append(f"for each of {items if isinstance(items, str) else f'{len(items)} items'}")
    if step.step.max_parallel is not None:
        facts.append(f"{step.step.max_parallel} at once")
    if step.step.canary is not None:
        facts.append(f"{step.step.canary} first; if one of those fails, the others do not run")
    if step.step.tolerate is not None:
        facts.append(f"{step.step.tolerate} may fail")
    if step.inside:
        facts.append(f"inside container {step.inside}")
    if step.always:
        facts.append("always runs, however the run ends")
    elif not plan.stops(step.index):
        facts.append("the run continues if the step fails")
    if step.step.irreversible:
        facts.append("the point of no return: once the step has succeeded, nothing is undone")
    return [f"  {step.name}: {step.operation.name}{after}", f"      {'; '.join(facts)}"]


def _queue(operation: str, params: Mapping[str, Any], queue: str) -> str:
    """The queue of a step or its undo; of a Celery task, the queue from which the application's workers take it."""
    if operation == CELERY.name:
        return f"the application's queue {params.get('queue', TaskParams.model_fields['queue'].default)}"
    return f"queue {queue}"


def guards_of(step: CompiledStep) -> list[str]:
    """The guards of a step in words."""
    words = [f"only if {str(condition).replace('_', ' ')}" for condition in step.step.only_if]
    words += [f"when {guard.if_}" for guard in step.step.when]
    if step.step.when_fact is not None:
        facts = ", ".join(f"{name} {value}" for name, value in step.step.when_fact.model_dump().items())
        words.append(f"{'where some host has' if step.target == ANY else 'on hosts with'} {facts}")
    return words


def _retry(policy: Retry, *, every: bool) -> str:
    if policy.attempts == 1:
        return "tried once"
    errors = "any error that is not permanent" if every else "a temporary error"
    longest = format_duration(round(policy.worst_case(), 3))
    return f"up to {policy.attempts} tries after {errors}, waiting at most {longest} in all"


def _undo(plan: CompiledPlan) -> list[str]:
    if plan.plan.on_failure == "keep":
        return ["  nothing is undone: on_failure is keep"]
    lines = []
    for members in reversed(plan.levels):
        lines += [f"  {plan.steps[i].name}: {_undo_of(plan.steps[i])}" for i in members]
    if plan.plan.on_undo_failure == "continue":
        lines.append("  if an undo fails, the other undos run all the same: on_undo_failure is continue")
    return lines


def _undo_of(step: CompiledStep) -> str:
    if step.always:
        return "never undone (always)"
    if step.read_only:
        return "nothing to undo, the step is read-only"
    if step.step.undo == "none":
        return "nothing to undo, the plan sets undo: none"
    if isinstance(step.step.undo, UndoSpec):
        undo = step.step.undo
        return f"{undo.op} on {_queue(undo.op, undo.with_, step.undo_queue)}"
    if not step.has_undo:
        return "WARNING: the step has no undo, and its changes would remain: declare undo, or undo: none"
    if step.operation.function is not None:
        return f"its own undo on queue {step.undo_queue}"
    text = f"{step.operation.undo} undo by {step.operation.name} on queue {step.undo_queue}"
    if "no_way_back" in step.operation.params.model_fields:
        accepted = step.step.with_.get("no_way_back") == "accept"
        text += (
            "; WARNING: accepts that what runs may not be brought back (no_way_back: accept)"
            if accepted
            else ("; refuses before its first change if what runs could not be brought back")
        )
    return text
