"""Known pitfalls of other orchestrators, and the behaviour of Longshore on real workers."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from longshore.orchestration import Plan, PlanError, validate
from tests.integration import own_operations
from tests.integration.processes import Installation, lines, statuses
from tests.integration.processes import report_of as run


def test_pitfall_1_failure_stops_the_run_at_once(shop: Installation) -> None:
    """A running sibling is cancelled, the next level does not run, and the report has every step."""
    plan = Plan("fast")
    plan.step("boom", "noop.execute", fail=True, sleep="200ms")
    plan.step("long", "command.exec.execute", argv=["sleep", "50"], changes=False)
    plan.step("after", "noop.execute").after("long")
    began = time.monotonic()

    report = run(shop, plan)

    assert time.monotonic() - began < 20
    assert statuses(report) == {"boom": "failed", "long": "cancelled", "after": "not_run"}


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


def test_pitfall_2_failed_host_or_exit_code_fails_the_step(shop: Installation) -> None:
    plan = Plan("levels", on_error="continue")
    plan.step("hosts", "own.hosts", answers={"a": "changed", "b": "broken"})
    plan.step("all_hosts", "own.hosts", answers={"a": "broken", "b": "broken"})
    plan.step("command", "command.exec.execute", argv=["false"])
    plan.step("again", "command.exec.execute", argv=["false"]).retry(1)
    plan.step("expected", "command.exec.execute", argv=["false"], ok_codes=[0, 1])

    report = run(shop, plan)

    assert statuses(report) == {
        "hosts": "failed", "all_hosts": "failed", "command": "failed", "again": "failed", "expected": "changed",
    }  # fmt: skip
    assert report.step("hosts").error == "1 of 2 hosts failed; the first: b: broken"
    assert [(h.host, h.status, h.changed) for h in report.step("hosts").hosts] == [
        ("a", "changed", True), ("b", "failed", False),
    ]  # fmt: skip
    assert report.step("command").attempts == 1
    assert report.step("again").attempts == 2


def test_pitfall_3_guard_does_not_override_a_failed_dependency(shop: Installation) -> None:
    """Neither the guarded step runs, nor a step that depends on a skipped one."""
    plan = Plan("taint", on_error="continue")
    failed = plan.step("failed", "noop.execute", fail=True)
    plan.step("plain_when", "noop.execute").after(failed).when("true")
    skipped = plan.step("skipped", "noop.execute").after(failed).when(failed.status == "changed")
    plan.step("grandchild", "noop.execute").after(skipped)
    plan.step("unrelated", "noop.execute")

    report = run(shop, plan)

    assert [(step.name, step.status, step.reason) for step in report.steps[1:]] == [
        ("plain_when", "skipped", "dependency failed"),
        ("skipped", "skipped", "when: guard returned false"),
        ("grandchild", "skipped", "dependency failed"),
        ("unrelated", "changed", None),
    ]


def test_pitfall_4_recovery_step_that_can_never_run_is_a_plan_error() -> None:
    plan = Plan("never")
    plan.step("a", "noop.execute")
    plan.step("recover", "noop.execute").after("a").only_if_failed()

    with pytest.raises(PlanError, match=r"only_if: failed can never hold.*on_error: continue"):
        validate(plan)

    plan.steps["a"] = plan.steps["a"].model_copy(update={"on_error": "continue"})
    validate(plan)


def test_pitfall_5_all_guards_of_a_step_must_hold(shop: Installation) -> None:
    plan = Plan("and", on_error="continue")
    a = plan.step("a", "noop.execute")
    b = plan.step("b", "noop.execute", changed=False)
    plan.step("both", "noop.execute").after(a, b).only_if_changed().only_if_all_changed().when("true").when("true")
    plan.step("late", "noop.execute").after(a).when("true").when("false", reason="the second one").only_if_changed()

    report = run(shop, plan)

    assert report.step("both").reason == "only-if-all-changed: not all dependencies changed"
    assert report.step("late").reason == "the second one"


def test_pitfall_6_only_an_always_step_cleans_up_after_a_failure(shop: Installation) -> None:
    plan = Plan("cleanup", on_error="continue")
    plan.step("exec", "noop.execute", fail=True)
    plan.step("plain", "noop.execute").after("exec")
    plan.step("cleanup", "noop.execute").after("exec").always()

    assert statuses(run(shop, plan)) == {"exec": "failed", "plain": "skipped", "cleanup": "changed"}


def test_pitfall_7_failed_dependency_precedes_only_if_changed(shop: Installation) -> None:
    plan = Plan("order", on_error="continue")
    plan.step("half", "own.hosts", answers={"a": "changed", "b": "broken"})
    plan.step("next", "noop.execute").after("half").only_if_changed()
    plan.step("either", "noop.execute").after("half").only_if("changed", "failed")

    report = run(shop, plan)

    assert report.step("half").changed, "the report lost the change before the failure"
    assert report.step("next").reason == "dependency failed"
    assert report.step("either").status == "changed"


def test_pitfall_8_differing_file_is_replaced_without_a_conflict(shop: Installation, tmp_path: Path) -> None:
    for n in range(2):
        plan = Plan("file")
        plan.step("file", "file.deploy.execute", path=str(tmp_path / "f"), content=f"{n}\n")
        assert run(shop, plan).step("file").status == "changed"
    assert (tmp_path / "f").read_text() == "1\n"


def test_pitfall_9_failed_step_is_not_repeated(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("once")
    plan.step("act", "command.shell.execute", command=f"echo done >> {tmp_path}/acts; exit 3")

    report = run(shop, plan)
    time.sleep(2.5)  # more than two leases

    assert report.step("act").status == "failed"
    assert lines(tmp_path / "acts") == ["done"]


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


@pytest.mark.parametrize(
    ("what", "status"), [("nothing", "changed"), ("false", "unchanged"), ("list", "changed"), ("model", "changed")]
)
def test_pitfall_11_function_may_return_nothing(shop: Installation, what: str, status: str) -> None:
    plan = Plan("returns")
    plan.step("f", "own.returns", what=what).undo("none")

    step = run(shop, plan).step("f")

    assert (step.status, step.error) == (status, None)
    assert step.data == {"list": {"result": [1, 2]}, "model": {"customer": "ann", "amount": 1}}.get(what, {})


@pytest.mark.parametrize(("what", "error"), [("raise", "ZeroDivisionError: by a mistake"), ("object", "JSON")])
def test_pitfall_11_failed_function_fails_only_its_step(shop: Installation, what: str, error: str) -> None:
    plan = Plan("returns", on_error="continue")
    plan.step("f", "own.returns", what=what)
    plan.step("g", "noop.execute")

    report = run(shop, plan)

    assert error in (report.step("f").error or "")
    assert report.step("g").status == "changed"


def test_pitfall_12_results_come_from_the_record_by_unique_step_names(shop: Installation, tmp_path: Path) -> None:
    plan = Plan("names")
    for n in range(4):
        bill = {"customer": "ann", "amount": n}
        plan.step(f"c{n}", "own.charge", bill=bill, ledger=str(tmp_path / f"{n}"))
    plan.step("sum", "own.sum", steps=["c0", "c1", "c2", "c3"]).after("c0", "c1", "c2", "c3")
    with pytest.raises(PlanError, match="a step of this name"):
        plan.step("sum", "noop.execute")

    assert run(shop, plan).step("sum").decode(own_operations.Count).number == 6


def test_pitfall_13_step_with_target_any_reports_one_host(shop: Installation) -> None:
    plan = Plan("any")
    plan.step("a", "noop.execute")
    assert [host.status for host in run(shop, plan).step("a").hosts] == ["changed"]


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
