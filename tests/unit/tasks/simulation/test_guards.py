"""Every guard in the sandbox: its decision, and the reason of a skip."""

from __future__ import annotations

import pytest

from longshore.orchestration import HostResult, Plan, Result, operation
from longshore.orchestration.testing import Sandbox

pytestmark = pytest.mark.usefixtures("own_registry")


def guarded_plan(guard: str, **before: dict[str, object]) -> Plan:
    """A plan of dependencies, `noop.execute` by default, and a step with the guard."""
    plan = Plan("guarded", on_error="continue")
    steps = []
    for name, fields in before.items():
        given = dict(fields)
        steps.append(plan.step(name, str(given.pop("op", "noop.execute")), **given))
    plan.step("guarded", "noop.execute").after(*steps).only_if(guard)
    return plan


CHANGED: dict[str, object] = {}
UNCHANGED: dict[str, object] = {"changed": False}
FAILED: dict[str, object] = {"fail": True}


def answers(**hosts: str) -> dict[str, object]:
    return {"op": "unit.hosts", "answers": hosts}


#: Guard, dependencies, and the reason of the skip ("" if the step runs), both cases for each row of the table.
ROWS = [
    ("changed", {"a": CHANGED, "b": UNCHANGED}, ""),
    ("changed", {"a": UNCHANGED, "b": UNCHANGED}, "no dependencies changed"),
    ("changed", {}, "no dependencies changed"),
    ("all_changed", {"a": CHANGED, "b": CHANGED}, ""),
    ("all_changed", {"a": CHANGED, "b": UNCHANGED}, "only-if-all-changed: not all dependencies changed"),
    ("all_changed", {}, "only-if-all-changed: not all dependencies changed"),
    ("failed", {"a": FAILED, "b": CHANGED}, ""),
    ("failed", {"a": CHANGED}, "only-if-failed: no dependency failed"),
    ("failed", {}, "only-if-failed: no dependency failed"),
    ("any_host_failed", {"a": answers(x="broken", y="changed")}, ""),
    ("any_host_failed", {"a": answers(x="skipped", y="changed")}, "only-if-any-host-failed: no host failed"),
    ("any_host_failed", {}, "only-if-any-host-failed: no host failed"),
    ("all_hosts_failed", {"a": answers(x="broken", y="broken")}, ""),
    ("all_hosts_failed", {"a": answers(x="broken", y="changed")}, "only-if-all-hosts-failed: not all hosts failed"),
    ("all_hosts_failed", {"a": answers(x="broken", y="skipped")}, "only-if-all-hosts-failed: not all hosts failed"),
    ("all_hosts_failed", {}, "only-if-all-hosts-failed: not all hosts failed"),
    ("any_host_changed", {"a": answers(x="changed", y="unchanged")}, ""),
    ("any_host_changed", {"a": answers(x="unchanged", y="skipped")}, "only-if-any-host-changed: no host changed"),
    ("any_host_changed", {}, "only-if-any-host-changed: no host changed"),
    ("all_hosts_changed", {"a": answers(x="changed", y="changed")}, ""),
    (
        "all_hosts_changed",
        {"a": answers(x="changed", y="unchanged")},
        "only-if-all-hosts-changed: not all hosts changed",
    ),
    ("all_hosts_changed", {}, "only-if-all-hosts-changed: not all hosts changed"),
    ("any_host_skipped", {"a": answers(x="skipped", y="changed")}, ""),
    ("any_host_skipped", {"a": answers(x="changed", y="unchanged")}, "only-if-any-host-skipped: no host skipped"),
    ("any_host_skipped", {}, "only-if-any-host-skipped: no host skipped"),
]


@pytest.fixture(autouse=True)
def hosts(own_registry: None) -> None:
    """An operation with one answer for each host: changed, unchanged, skipped, or an error."""

    def answer(item: tuple[str, str]) -> HostResult:
        host, status = item
        if status == "skipped":
            return HostResult(host, status="skipped")
        if status in {"changed", "unchanged"}:
            return HostResult(host, changed=status == "changed")
        return HostResult(host, error=status)

    @operation("unit.hosts", read_only=True)
    def hosts(answers: dict[str, str]) -> Result:
        return Result.from_hosts(answers.items(), answer)


@pytest.mark.parametrize(("guard", "before", "reason"), ROWS)
def test_guard_table(guard: str, before: dict[str, dict[str, object]], reason: str) -> None:
    step = Sandbox().run(guarded_plan(guard, **before)).step("guarded")

    assert (step.status, step.reason or "") == (("skipped", reason) if reason else ("changed", ""))


@pytest.mark.parametrize(
    ("guard", "runs"),
    [("any_host_failed", False), ("all_hosts_failed", False), ("any_host_changed", True), ("all_hosts_changed", True)],
)
def test_dependency_without_hosts_is_ignored_by_any_and_fails_all(guard: str, runs: bool) -> None:
    """Step `none` is skipped and has no host; step `a` ran on one host."""
    plan = Plan("guarded", on_error="continue")
    plan.step("none", "noop.execute").when("false")
    plan.step("a", "noop.execute", fail=not runs)
    plan.step("any", "noop.execute").after("none", "a").only_if(guard)
    plan.step("alone", "noop.execute").after("none").only_if(guard)

    report = Sandbox().run(plan)

    assert report.step("none").hosts == []
    ran = report.step("any").status == "changed"
    # A failed dependency's host counts for `any`; a dependency without hosts makes `all` false.
    assert ran == guard.startswith("any")
    assert report.step("alone").status == "skipped"


def test_guards_are_evaluated_on_given_hosts() -> None:
    sandbox = Sandbox(hosts=["web1", "web2", "web3"])
    plan = Plan("fleet", on_error="continue")
    both = plan.step("all", "noop.execute").target("_all").tolerate(1)
    plan.step("repair", "noop.execute").after(both).only_if_any_host_failed()
    sandbox.fail("all[1]")

    report = sandbox.run(plan)

    assert [host.status for host in report.step("all").hosts] == ["changed", "failed", "changed"]
    assert report.step("repair").status == "changed"
    assert report.exit_code == 0, "the tolerated failure counts as a failure"


def test_when_reads_parameters_and_earlier_steps() -> None:
    plan = Plan("when", params={"tag": str})
    a = plan.step("a", "noop.execute", data={"size": 3, "name": "1.10"})
    plan.step("yes", "noop.execute").after(a).when((a.data.size > 2) & a.changed).when("params.tag == 'x'")
    plan.step("no", "noop.execute").after(a).when(a.data.size > 3)
    plan.step("own", "noop.execute").after(a).when(a.data.name != "1.10", reason="it is the old one")

    report = Sandbox().run(plan, {"tag": "x"})

    assert report.step("yes").status == "changed"
    assert report.step("no").reason == "when: guard returned false"
    assert report.step("own").reason == "it is the old one"


def test_when_on_missing_data_fails_the_step() -> None:
    plan = Plan("when", on_error="continue")
    a = plan.step("a", "noop.execute")
    plan.step("b", "noop.execute").after(a).when(a.data.nothing == 1)
    plan.step("c", "noop.execute").after(a)

    report = Sandbox().run(plan)

    assert report.step("b").status == "failed"
    assert "nothing" in (report.step("b").error or "")
    assert (report.step("c").status, report.state) == ("changed", "partial")


def test_guard_does_not_override_a_failed_dependency() -> None:
    """Neither the guarded step runs, nor a step that depends on a skipped one."""
    plan = Plan("taint", on_error="continue")
    failed = plan.step("failed", "noop.execute", fail=True)
    plan.step("plain_when", "noop.execute").after(failed).when("true")
    skipped = plan.step("skipped", "noop.execute").after(failed).when(failed.status == "changed")
    plan.step("grandchild", "noop.execute").after(skipped)
    plan.step("unrelated", "noop.execute")

    report = Sandbox().run(plan)

    assert [(step.name, step.status, step.reason) for step in report.steps[1:]] == [
        ("plain_when", "skipped", "dependency failed"),
        ("skipped", "skipped", "when: guard returned false"),
        ("grandchild", "skipped", "dependency failed"),
        ("unrelated", "changed", None),
    ]


def test_all_guards_of_a_step_must_hold() -> None:
    plan = Plan("and", on_error="continue")
    a = plan.step("a", "noop.execute")
    b = plan.step("b", "noop.execute", changed=False)
    plan.step("both", "noop.execute").after(a, b).only_if_changed().only_if_all_changed().when("true").when("true")
    plan.step("late", "noop.execute").after(a).when("true").when("false", reason="the second one").only_if_changed()

    report = Sandbox().run(plan)

    assert report.step("both").reason == "only-if-all-changed: not all dependencies changed"
    assert report.step("late").reason == "the second one"


def test_only_an_always_step_cleans_up_after_a_failure() -> None:
    plan = Plan("cleanup", on_error="continue")
    plan.step("exec", "noop.execute", fail=True)
    plan.step("plain", "noop.execute").after("exec")
    plan.step("cleanup", "noop.execute").after("exec").always()

    report = Sandbox().run(plan)

    assert [step.status for step in report.steps] == ["failed", "skipped", "changed"]


def test_failed_dependency_precedes_only_if_changed() -> None:
    plan = Plan("order", on_error="continue")
    plan.step("half", "unit.hosts", answers={"a": "changed", "b": "broken"})
    plan.step("next", "noop.execute").after("half").only_if_changed()
    plan.step("either", "noop.execute").after("half").only_if("changed", "failed")

    report = Sandbox().run(plan)

    assert report.step("half").changed, "the report lost the change before the failure"
    assert report.step("next").reason == "dependency failed"
    assert report.step("either").status == "changed"
