"""Steps on several hosts in the sandbox: canaries, skips, guards per host, and undo."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from longshore.orchestration import Plan, PlanError, validate
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.states import RunState, StepState
from longshore.orchestration.testing import Sandbox, simulate
from longshore.tasks.attempts.delivery import Delivery

FLEET = {f"web{n}": {"role": "web"} for n in range(1, 5)} | {"db1": {"role": "db"}}


def on_web(**fields: object) -> Plan:
    plan = Plan("p")
    plan.step("work", "noop.execute", data={"host": "{{ host.name }}"}).target("role:web")
    for name, value in fields.items():
        getattr(plan_step(plan), name)(value)
    return plan


def plan_step(plan: Plan):  # type: ignore[no-untyped-def]
    from longshore.orchestration.plans.handles import StepHandle

    return StepHandle(plan, "work")


def test_step_runs_and_is_undone_on_each_host() -> None:
    plan = on_web()
    plan.step("fail", "noop.execute", fail=True).after("work")

    report = Sandbox(hosts=FLEET).run(plan)

    work = report.step("work")
    assert [(host.host, host.status, host.data) for host in work.hosts] == [
        (name, StepState.CHANGED, {"host": name}) for name in ("web1", "web2", "web3", "web4")
    ]
    assert all(item.undo and item.undo.status == "undone" for item in work.items)


@pytest.mark.parametrize("failing", [0, 1])
def test_failed_canary_stops_the_rollout(failing: int) -> None:
    sandbox = Sandbox(hosts=FLEET)
    sandbox.fail(f"work[{failing}]")

    report = sandbox.run(on_web(canary=2, tolerate=2))

    assert report.state is RunState.UNDONE
    statuses = [item.status for item in report.step("work").items]
    assert statuses[failing] is StepState.FAILED
    assert statuses[2:] == [StepState.NOT_RUN] * 2
    assert not {"work[2]", "work[3]"} & {*sandbox.done, *sandbox.undone}


def test_failures_after_the_canaries_are_tolerated() -> None:
    sandbox = Sandbox(hosts=FLEET)
    sandbox.fail("work[3]")
    assert sandbox.run(on_web(canary=2, tolerate=1)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_canaries_respect_max_parallel(at_once: int) -> None:
    sandbox = Sandbox(hosts=FLEET)
    report = sandbox.run(on_web(canary=3, max_parallel=at_once), run_id="r")
    assert report.state is RunState.SUCCEEDED
    begun = most = 0
    ended = []
    for event in sandbox.events("r"):
        if event.name == "item_started":
            begun += 1
            most = max(most, begun)
            assert event.step != "work[3]" or len(ended) == 3
        elif event.name == "item_ended":
            begun -= 1
            ended.append(event.step)
    assert most <= at_once


def test_lost_canary_counts_as_failed() -> None:
    sandbox = Sandbox(hosts=FLEET)
    sandbox.vanish("work[0]", times=9)
    report = sandbox.run(on_web(canary=1))
    assert [str(item.status) for item in report.step("work").items] == ["unknown", "not_run", "not_run", "not_run"]


def test_skipped_hosts_are_not_canaries() -> None:
    sandbox = Sandbox(hosts=FLEET)
    plan = on_web(canary=1, when="host.name != 'web1'")
    sandbox.fail("work[1]")
    report = sandbox.run(plan)
    assert [str(item.status) for item in report.step("work").items] == ["skipped", "failed", "not_run", "not_run"]


def test_step_skipped_on_all_hosts_lets_the_next_run() -> None:
    plan = on_web(when="host.labels.role == 'db'")
    plan.step("next", "noop.execute").after("work")
    report = Sandbox(hosts=FLEET).run(plan)
    assert report.state is RunState.SUCCEEDED
    assert report.step("work").status is StepState.SKIPPED
    assert report.step("work").reason == "all items were skipped; the first: when: guard returned false"
    assert report.step("next").status is StepState.CHANGED


def test_each_item_on_each_host_has_its_own_guard() -> None:
    plan = on_web(foreach=["web1", "web2"], when="item == host.name")
    report = Sandbox(hosts=FLEET).run(plan)
    done = [(item.item, item.host) for item in report.step("work").items if item.status is StepState.CHANGED]
    assert done == [("web1", "web1"), ("web2", "web2")]


def test_aborted_always_step_continues_on_its_remaining_hosts() -> None:
    plan = Plan("p")
    plan.step("clean", "noop.execute").target("role:web").always().canary(1)
    plan.step("fail", "noop.execute", fail=True)
    report = Sandbox(hosts=FLEET).run(plan)
    assert report.state is RunState.UNDONE
    assert report.step("clean").status is StepState.CHANGED
    assert len(report.step("clean").hosts) == 4


def test_fact_condition_without_a_target_needs_any_matching_host() -> None:
    plan = Plan("p")
    plan.step("some", "noop.execute").when_fact(label="role:db")
    plan.step("none", "noop.execute").when_fact(label="role:cache")
    report = Sandbox(hosts=FLEET).run(plan)
    assert (report.step("some").status, report.step("none").reason) == (
        StepState.CHANGED,
        "when-fact: no host is like that",
    )


def test_simulation_has_hosts_for_each_label() -> None:
    assert [str(each.report.state) for each in simulate(on_web(canary=1))] == ["succeeded", "undone"]


@pytest.mark.parametrize(
    ("operation", "forward", "queue"),
    [
        ("file.deploy.execute", True, "file@web1"),
        ("file.deploy.execute", False, "file@web1.undo"),
        ("noop.execute", True, None),
        ("noop.execute", False, None),
    ],
)
def test_retry_uses_the_queue_of_its_host(operation: str, forward: bool, queue: str | None) -> None:
    plan = Plan("p")
    plan.step("work", operation, **({"path": "/x", "content": "x"} if operation.startswith("file") else {}))
    delivery: Any = SimpleNamespace(step=CompiledPlan(plan).steps[0], host="web1", side="" if forward else "u")
    assert Delivery.retry_queue.fget(delivery) == queue  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("canary: 1", "canary requires a foreach or several hosts"),
        ("canary: 0, target: _all", "canary: "),
        ("on_no_host: skip", "on_no_host requires a target"),
        ("when: host.name == 'x'", "set target"),
        ("target: '{{ host.name }}'", "target: the template uses the unknown name 'host'"),
        ("target: _all, foreach: '{{ host.facts.disks }}'", "foreach: the template uses the unknown name 'host'"),
        ("target: _all, when_fact: {colour: red}", "unknown field 'colour'"),
        ("target: _all, when_fact: {min_memory: much}", "when_fact.min_memory"),
    ],
)
def test_plan_error_is_one_line(step: str, why: str) -> None:
    from longshore.orchestration import parse

    with pytest.raises(PlanError) as caught:
        validate(parse(f"name: p\nsteps:\n  a: {{op: noop.execute, {step}}}\n"))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_approval_is_requested_once_for_all_hosts() -> None:
    plan = Plan("p", target="_all")
    sure = plan.approval("sure")
    assert Sandbox(hosts=FLEET, approve_all=True).run(plan).step("sure").items == []
    sure.target("_all")
    with pytest.raises(PlanError, match="runs once, not on each host: target a single host"):
        validate(plan)
