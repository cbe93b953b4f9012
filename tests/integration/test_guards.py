"""Guards and targets on real workers of two hosts. Tests of the sandbox have every guard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longshore.orchestration import E, Plan, Report, UnknownName
from tests.integration import own_operations  # noqa: F401 - known here, as in an application
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, wait_for


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


@pytest.mark.parametrize(
    ("guard", "answers", "reason"),
    # Tests of the sandbox have all rows of the table.
    [
        ("any_host_failed", {"x": "broken", "y": "changed"}, ""),
        ("all_hosts_changed", {"x": "changed", "y": "unchanged"}, "only-if-all-hosts-changed: not all hosts changed"),
    ],
)
def test_guard_decides_on_the_result_of_a_worker(
    two_hosts: Installation, guard: str, answers: dict[str, str], reason: str
) -> None:
    plan = Plan("guarded", on_error="continue")
    before = plan.step("before", "own.hosts", answers=answers)
    plan.step("guarded", "noop.execute").after(before).only_if(guard)

    step = run(two_hosts, plan).step("guarded")

    assert (step.status, step.reason or "") == (("skipped", reason) if reason else ("changed", ""))


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
