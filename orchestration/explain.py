"""What a plan would do, told beforehand: order, retries with their worst case, undo, and what stands."""

from __future__ import annotations

from longshore.orchestration.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.durations import format_duration
from longshore.orchestration.operations import Retry
from longshore.orchestration.plan import UndoSpec
from longshore.orchestration.settings import get_settings


def explain(plan: CompiledPlan) -> str:
    """Several lines of text for people."""
    lines = [f"Plan {plan.plan.name}: {len(plan)} steps, {len(plan.levels)} levels"]
    if plan.plan.description:
        lines.append(plan.plan.description)
    for level, members in enumerate(plan.levels):
        lines += ["", f"Level {level}: {_canvas(plan, level)}"]
        for i in members:
            lines += _step(plan, plan.steps[i])
    lines += ["", "Undo, if a step fails:", *_undo(plan)]
    return "\n".join(lines)


def _canvas(plan: CompiledPlan, level: int) -> str:
    members = plan.levels[level]
    return "one step" if len(members) == 1 else f"{len(members)} steps in parallel, one chord"


def _step(plan: CompiledPlan, step: CompiledStep) -> list[str]:
    after = f" after {', '.join(plan.steps[i].name for i in step.needs)}" if step.needs else ""
    timeout = step.step.timeout or get_settings().step_timeout
    facts = [
        f"queue {step.queue}",
        f"at most {format_duration(timeout)} an attempt",
        _retry(plan.retry_policy(step.index)),
    ]
    if step.always:
        facts.append("always runs, however the run ends")
    elif not plan.stops(step.index):
        facts.append("the run goes on if it fails")
    return [f"  {step.name}: {step.operation.name}{after}", f"      {'; '.join(facts)}"]


def _retry(policy: Retry) -> str:
    if policy.attempts == 1:
        return "tried once"
    return f"up to {policy.attempts} tries, waiting at most {format_duration(round(policy.worst_case(), 3))} in all"


def _undo(plan: CompiledPlan) -> list[str]:
    if plan.plan.on_failure == "keep":
        return ["  nothing is taken back: on_failure is keep"]
    lines = []
    for members in reversed(plan.levels):
        lines += [f"  {plan.steps[i].name}: {_undo_of(plan.steps[i])}" for i in members]
    return lines


def _undo_of(step: CompiledStep) -> str:
    if step.always:
        return "never undone (always)"
    if step.read_only:
        return "nothing to take back, it only looks"
    if step.step.undo == "none":
        return "nothing to take back, the plan says"
    if isinstance(step.step.undo, UndoSpec):
        return f"{step.step.undo.op} on queue {step.undo_queue}"
    if not step.has_undo:
        return "WARNING: it has no undo; what it changed would stand (give it an undo, or undo: none)"
    return f"{step.operation.undo} undo by {step.operation.name} on queue {step.undo_queue}"
