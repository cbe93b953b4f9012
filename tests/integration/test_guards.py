"""Every guard on real workers: its decision, and the reason of a skip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longshore.orchestration import E, Plan, Report, UnknownName
from longshore.orchestration.testing import Sandbox
from tests.integration import own_operations  # noqa: F401 - known here, as in an application
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, wait_for

HOSTS = "own.hosts"


@pytest.fixture(scope="module")
def two_hosts(module_installation: MakeInstallation) -> Iterator[Installation]:
    """An installation with workers on web1 and web2."""
    made = module_installation(options={"imports": "tests.integration.own_operations"})
    for host in ("web1", "web2"):
        made.worker(host, "-c", "2", LONGSHORE_HOST=host, PYTHONPATH=made.pythonpath).start()
    wait_for("both hosts to register", lambda: {host.name for host in made.client().hosts()} == {"web1", "web2"})
    return made


def run(installation: Installation, plan: Plan) -> Report:
    return installation.run(plan).wait(timeout=60)


def guarded_plan(guard: str, *, on_error: str = "continue", **before: dict[str, object]) -> Plan:
    """A plan of dependencies, `noop.execute` by default, and a step with the guard."""
    plan = Plan("guarded", on_error=on_error)
    steps = []
    for name, given in before.items():
        steps.append(plan.step(name, str(given.pop("op", "noop.execute")), **given))
    plan.step("guarded", "noop.execute").after(*steps).only_if(guard)
    return plan


CHANGED: dict[str, object] = {}
UNCHANGED: dict[str, object] = {"changed": False}
FAILED: dict[str, object] = {"fail": True}


def answers(**hosts: str) -> dict[str, object]:
    return {"op": HOSTS, "answers": hosts}


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


@pytest.mark.parametrize(("guard", "before", "reason"), ROWS)
def test_guard_table(two_hosts: Installation, guard: str, before: dict[str, dict[str, object]], reason: str) -> None:
    report = run(two_hosts, guarded_plan(guard, **{name: dict(given) for name, given in before.items()}))

    step = report.step("guarded")
    assert (step.status, step.reason or "") == (("skipped", reason) if reason else ("changed", ""))


@pytest.mark.parametrize(
    ("guard", "runs"),
    [("any_host_failed", False), ("all_hosts_failed", False), ("any_host_changed", True), ("all_hosts_changed", True)],
)
def test_dependency_without_hosts_is_ignored_by_any_and_fails_all(
    two_hosts: Installation, guard: str, runs: bool
) -> None:
    """Step `none` is skipped and has no host; step `a` ran on one host."""
    plan = Plan("guarded", on_error="continue")
    plan.step("none", "noop.execute").when("false")
    plan.step("a", "noop.execute", fail=not runs)
    plan.step("any", "noop.execute").after("none", "a").only_if(guard)
    plan.step("alone", "noop.execute").after("none").only_if(guard)

    report = run(two_hosts, plan)

    assert report.step("none").hosts == []
    ran = report.step("any").status == "changed"
    # A failed dependency's host counts for `any`; a dependency without hosts makes `all` false.
    assert ran == guard.startswith("any")
    assert report.step("alone").status == "skipped"


def test_host_guards_evaluate_real_hosts(two_hosts: Installation) -> None:
    plan = Plan("fleet", on_error="continue")
    both = plan.step(
        "both",
        "command.shell.execute",
        command="test $HERE != web2",
        env={"HERE": E.host.name},
    )
    both.target("_all").undo("none")
    plan.step("some", "noop.execute").after(both).only_if_any_host_failed()
    plan.step("every", "noop.execute").after(both).only_if_all_hosts_failed()
    plan.step("changed", "noop.execute").after(both).only_if_any_host_changed().only_if_any_host_failed()

    report = run(two_hosts, plan)

    assert [(host.host, host.status) for host in report.step("both").hosts] == [("web1", "changed"), ("web2", "failed")]
    assert report.step("both").error == "1 of 2 failed; the first: /bin/sh exited with code 1"
    assert {name: report.step(name).status for name in ("some", "every", "changed")} == {
        "some": "changed",
        "every": "skipped",
        "changed": "changed",
    }
    assert report.exit_code == 3


def test_step_runs_and_is_undone_on_its_target_host(two_hosts: Installation) -> None:
    plan = Plan("there", target="web2")
    plan.step("here", "noop.execute")
    plan.step("boom", "noop.execute", fail=True).target("web1").after("here")

    report = run(two_hosts, plan)

    assert [host.host for host in report.step("here").hosts] == ["web2"]
    assert [host.host for host in report.step("boom").hosts] == ["web1"]
    assert report.state == "undone"


def test_dry_run_predicts_on_the_target_hosts(two_hosts: Installation) -> None:
    plan = Plan("dry", params={"where": str})
    plan.step("all", "noop.execute").target("_all")
    plan.step("one", "noop.execute").target(E.params.where).after("all")
    plan.step("guarded", "noop.execute").after("one").when("steps.one.changed")

    found = two_hosts.client().dry_run(plan, {"where": "web2"})

    asked = [(answer["step"], answer["host"]) for answer in found[:3]]
    assert asked == [("all", "web1"), ("all", "web2"), ("one", "web2")]
    assert found[3]["action"].endswith("depends on when steps.one.changed")
    (lost,) = [one for one in two_hosts.client().dry_run(plan, {"where": "web9"}) if one["impossible"]]
    assert (lost["step"], lost["impossible"]) == (
        "one",
        "no worker has registered on host 'web9' (there are: web1, web2)",
    )


def test_unknown_host_is_an_immediate_error(two_hosts: Installation) -> None:
    plan = Plan("nowhere")
    plan.step("a", "noop.execute").target("web9")

    with pytest.raises(UnknownName, match="step a: target: no worker has registered on host 'web9'"):
        run(two_hosts, plan)


def test_when_reads_parameters_and_earlier_steps(two_hosts: Installation) -> None:
    plan = Plan("when", params={"tag": str})
    a = plan.step("a", "noop.execute", data={"size": 3, "name": "1.10"})
    plan.step("yes", "noop.execute").after(a).when((a.data.size > 2) & a.changed).when("params.tag == 'x'")
    plan.step("no", "noop.execute").after(a).when(a.data.size > 3)
    plan.step("own", "noop.execute").after(a).when(a.data.name != "1.10", reason="it is the old one")

    report = two_hosts.run(plan, tag="x").wait(timeout=60)

    assert report.step("yes").status == "changed"
    assert report.step("no").reason == "when: guard returned false"
    assert report.step("own").reason == "it is the old one"


def test_when_on_missing_data_fails_the_step(two_hosts: Installation) -> None:
    plan = Plan("when", on_error="continue")
    a = plan.step("a", "noop.execute")
    plan.step("b", "noop.execute").after(a).when(a.data.nothing == 1)
    plan.step("c", "noop.execute").after(a)

    report = run(two_hosts, plan)

    assert report.step("b").status == "failed"
    assert "nothing" in (report.step("b").error or "")
    assert (report.step("c").status, report.state) == ("changed", "partial")


def test_sandbox_decides_guards_like_workers() -> None:
    """The guard table again, in the sandbox."""
    for guard, before, reason in ROWS:
        report = Sandbox().run(guarded_plan(guard, **{name: dict(given) for name, given in before.items()}))
        step = report.step("guarded")
        assert (step.status, step.reason or "") == (("skipped", reason) if reason else ("changed", "")), guard


def test_sandbox_evaluates_guards_on_given_hosts() -> None:
    sandbox = Sandbox(hosts=["web1", "web2", "web3"])
    plan = Plan("fleet", on_error="continue")
    both = plan.step("all", "noop.execute").target("_all").tolerate(1)
    plan.step("repair", "noop.execute").after(both).only_if_any_host_failed()
    sandbox.fail("all[1]")

    report = sandbox.run(plan)

    assert [host.status for host in report.step("all").hosts] == ["changed", "failed", "changed"]
    assert report.step("repair").status == "changed"
    assert report.exit_code == 0, "the tolerated failure counts as a failure"
