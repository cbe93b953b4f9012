"""Analysis of a plan before its first run: problems, levels, explanation, and the failure matrix."""

from longshore.orchestration import Plan, PlanError, validate
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.explain import explain
from longshore.orchestration.runs.diagram import text
from longshore.orchestration.testing import simulate

broken = Plan("broken")
broken.step("a", "noop.execute", sleeep=1).after("b")
broken.step("b", "no.such.operation").after("a")
try:
    validate(broken)
except PlanError as error:
    print(*error.problems, sep="\n")

plan = Plan("introspection")
pull = plan.step("pull", "noop.execute").retry(2, initial="1s")
stop = plan.step("stop", "docker.stop.execute", container="shop").after(pull)
plan.step("migrate", "command.exec.execute", argv=["migrate", "up"]).after(stop).undo("none")
plan.step("start", "docker.start.execute", container="shop").after("migrate").always()
compiled = CompiledPlan(plan)
print([[compiled.steps[i].name for i in level] for level in compiled.levels])
print(text(compiled))
print(explain(compiled))
for each in simulate(plan):
    print(each.step or "nothing fails", each.report.state, each.report.exit_code)
