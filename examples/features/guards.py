"""Guards: expressions over parameters and earlier steps, each with a reason. A step runs if all its guards hold."""

from longshore.orchestration import Client, E, Plan

plan = Plan("guards", params={"environment": str})
disk = plan.step("disk", "noop.execute", changed=False, data={"free_gb": 3})
config = plan.step("config", "noop.execute")
clean = plan.step("clean", "noop.execute").after(disk)
clean.when(disk.data.free_gb < 10, reason="there is room enough")
restart = plan.step("restart", "noop.execute").after(disk, config)
restart.only_if_changed().when(E.params.environment == "production", reason="only in production")

for environment in ("production", "staging"):
    report = Client().start(plan, {"environment": environment}).wait(timeout=60)
    for step in report.steps:
        print(environment, step.name, step.status, step.reason or "")
