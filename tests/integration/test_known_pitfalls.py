"""Known pitfalls of other orchestrators, on real workers. Tests of the sandbox have those of guards and results."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from longshore.orchestration import Plan, PlanError, validate
from tests.integration.processes import Installation, statuses
from tests.integration.processes import report_of as run


def test_pitfall_1_failure_cancels_unclaimed_siblings(shop: Installation) -> None:
    plan = Plan("queue")
    plan.step("boom", "noop.execute", fail=True)
    for n in range(12):
        plan.step(f"s{n}", "noop.execute", sleep="2s")

    report = run(shop, plan)

    found = [str(step.status) for step in report.steps[1:]]
    assert set(found) == {"cancelled"}
    assert sum(step.attempts == 0 for step in report.steps) >= 8, "too many steps were claimed"
    assert report.summary.startswith("13 steps, 1 failed, 12 cancelled")


def test_pitfall_2_exit_code_fails_the_step(shop: Installation) -> None:
    plan = Plan("levels", on_error="continue")
    plan.step("command", "command.exec.execute", argv=["false"])
    plan.step("again", "command.exec.execute", argv=["false"]).retry(1)
    plan.step("expected", "command.exec.execute", argv=["false"], ok_codes=[0, 1])

    report = run(shop, plan)

    assert statuses(report) == {"command": "failed", "again": "failed", "expected": "changed"}
    assert report.step("command").attempts == 1
    assert report.step("again").attempts == 2


def test_pitfall_4_recovery_step_that_can_never_run_is_a_plan_error() -> None:
    plan = Plan("never")
    plan.step("a", "noop.execute")
    plan.step("recover", "noop.execute").after("a").only_if_failed()

    with pytest.raises(PlanError, match=r"only_if: failed can never hold.*on_error: continue"):
        validate(plan)

    plan.steps["a"] = plan.steps["a"].model_copy(update={"on_error": "continue"})
    validate(plan)


def test_pitfall_10_cancel_between_levels_stops_the_run(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("cancel")
    for n in range(20):
        plan.step(f"s{n}", "noop.execute", sleep="200ms").after(*([f"s{n - 1}"] if n else []))
    started = shop.run(plan)
    time.sleep(1.0)
    started.cancel("enough")

    report = started.wait(timeout=60)

    assert report.cause == "cancel"
    assert report.step("s19").status == "not_run"
    assert report.state == "undone"


def test_pitfall_14_empty_command_is_a_plan_error() -> None:
    plan = Plan("empty")
    plan.step("a", "command.shell.execute", command="")
    with pytest.raises(PlanError, match=r"step 'a'.*command"):
        validate(plan)


def test_whole_run_logs_nothing_below_warning(
    shop: Installation, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    plan = Plan("silent", on_error="continue")
    plan.step("a", "noop.execute", fail=True).retry(1)
    plan.step("b", "noop.execute").after("a").only_if_failed()

    run(shop, plan)

    assert [record for record in caplog.records if record.name.startswith("longshore")] == []
    assert capsys.readouterr() == ("", "")
    worker = shop.workers[0].log.read_text()
    assert not [
        line
        for line in worker.splitlines()
        if "longshore." in line and ("DEBUG" in line or "INFO" in line) and "Task " not in line and "  . " not in line
    ]
