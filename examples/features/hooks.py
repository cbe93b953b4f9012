"""Hooks, which the waiting client calls in the order of the events of the run."""

from longshore.orchestration import Client, Hooks, Plan

hooks = Hooks(
    before_plan=lambda summary: print(f"{summary.plan}: {summary.total_steps} steps"),
    before_level=lambda level, steps, _parallel: print(f"level {level}: {', '.join(steps)}"),
    before_step=lambda name: print(f"  {name} begins"),
    on_retry=lambda name, attempt, error: print(f"  {name} attempt {attempt}: {error}"),
    on_skip=lambda name, reason: print(f"  {name} skipped: {reason}"),
    after_step=lambda step: print(f"  {step.name} {step.status}"),
    on_undo=lambda step: print(f"  {step.name} {step.undo.status}"),
    after_plan=lambda report: print(f"{report.state}: {report.summary}"),
)

plan = Plan("hooks")
plan.step("first", "noop.execute")
plan.step("second", "noop.execute", fail="no").after("first").retry(1)
plan.step("third", "noop.execute").after("second")

Client().start(plan).wait(timeout=60, hooks=hooks)
