"""Steps on several hosts, on the bench: canaries, skips, guards a host, and what is taken back where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from longshore.orchestration import Plan, PlanError, validate
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.states import RunState, StepState
from longshore.orchestration.testing import Sandbox, simulate
from longshore.tasks.attempts.base import ClaimedStep

FLEET = {f"web{n}": {"role": "web"} for n in range(1, 5)} | {"db1": {"role": "db"}}


def on_web(**fields: object) -> Plan:
    plan = Plan("p")
    plan.step("work", "noop.execute", data={"host": "{{ host.name }}"}).target("role:web")
    for name, value in fields.items():
        getattr(plan_step(plan), name)(value)
    return plan


def plan_step(plan: Plan):  # type: ignore[no-untyped-def]
    from longshore.orchestration.plans.model import StepHandle

    return StepHandle(plan, "work")


def test_a_step_has_a_part_on_each_host_and_is_taken_back_on_each() -> None:
    plan = on_web()
    plan.step("fail", "noop.execute", fail=True).after("work")

    report = Sandbox(hosts=FLEET).run(plan)

    work = report.step("work")
    assert [(host.host, host.status, host.data) for host in work.hosts] == [
        (name, StepState.CHANGED, {"host": name}) for name in ("web1", "web2", "web3", "web4")
    ]
    assert all(item.undo and item.undo.status == "undone" for item in work.items)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_canary_that_fails_leaves_the_rest_alone(failing: int) -> None:
    sandbox = Sandbox(hosts=FLEET)
    sandbox.fail(f"work[{failing}]")

    report = sandbox.run(on_web(canary=2, tolerate=2))

    assert report.state is RunState.UNDONE
    statuses = [item.status for item in report.step("work").items]
    assert statuses[failing] is StepState.FAILED
    assert statuses[2:] == [StepState.NOT_RUN] * 2
    assert not {"work[2]", "work[3]"} & {*sandbox.done, *sandbox.undone}


def test_what_fails_after_the_canaries_is_tolerated() -> None:
    sandbox = Sandbox(hosts=FLEET)
    sandbox.fail("work[3]")
    assert sandbox.run(on_web(canary=2, tolerate=1)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_canaries_keep_to_what_may_be_at_once(at_once: int) -> None:
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


def test_a_canary_that_vanishes_is_one_that_fails() -> None:
    sandbox = Sandbox(hosts=FLEET)
    sandbox.vanish("work[0]", times=9)
    report = sandbox.run(on_web(canary=1))
    assert [str(item.status) for item in report.step("work").items] == ["unknown", "not_run", "not_run", "not_run"]


def test_hosts_that_skip_it_are_no_canaries() -> None:
    sandbox = Sandbox(hosts=FLEET)
    plan = on_web(canary=1, when="host.name != 'web1'")
    sandbox.fail("work[1]")
    report = sandbox.run(plan)
    assert [str(item.status) for item in report.step("work").items] == ["skipped", "failed", "not_run", "not_run"]


def test_a_step_that_each_host_skips_is_skipped_and_the_next_one_runs() -> None:
    plan = on_web(when="host.labels.role == 'db'")
    plan.step("next", "noop.execute").after("work")
    report = Sandbox(hosts=FLEET).run(plan)
    assert report.state is RunState.SUCCEEDED
    assert report.step("work").status is StepState.SKIPPED
    assert report.step("work").reason == "all items were skipped; the first: when: guard returned false"
    assert report.step("next").status is StepState.CHANGED


def test_items_times_hosts_have_guards_of_their_own() -> None:
    plan = on_web(foreach=["web1", "web2"], when="item == host.name")
    report = Sandbox(hosts=FLEET).run(plan)
    done = [(item.item, item.host) for item in report.step("work").items if item.status is StepState.CHANGED]
    assert done == [("web1", "web1"), ("web2", "web2")]


def test_an_always_step_on_several_hosts_goes_on_where_an_abort_stopped_it() -> None:
    plan = Plan("p")
    plan.step("clean", "noop.execute").target("role:web").always().canary(1)
    plan.step("fail", "noop.execute", fail=True)
    report = Sandbox(hosts=FLEET).run(plan)
    assert report.state is RunState.UNDONE
    assert report.step("clean").status is StepState.CHANGED
    assert len(report.step("clean").hosts) == 4


def test_a_condition_on_facts_for_any_worker_asks_for_some_host() -> None:
    plan = Plan("p")
    plan.step("some", "noop.execute").when_fact(label="role:db")
    plan.step("none", "noop.execute").when_fact(label="role:cache")
    report = Sandbox(hosts=FLEET).run(plan)
    assert (report.step("some").status, report.step("none").reason) == (
        StepState.CHANGED,
        "when-fact: no host is like that",
    )


def test_a_rehearsal_has_hosts_of_each_label() -> None:
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
def test_what_is_done_to_a_host_is_tried_again_in_the_queue_of_that_host(
    operation: str, forward: bool, queue: str | None
) -> None:
    plan = Plan("p")
    plan.step("work", operation, **({"path": "/x", "content": "x"} if operation.startswith("file") else {}))
    attempt: Any = SimpleNamespace(step=CompiledPlan(plan).steps[0], host="web1")
    assert ClaimedStep.queue_again(attempt, forward=forward) == queue


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("canary: 1", "canary is for a step with a foreach or several hosts"),
        ("canary: 0, target: _all", "canary: "),
        ("on_no_host: skip", "on_no_host is for a step with a target"),
        ("when: host.name == 'x'", "give it a target"),
        ("target: '{{ host.name }}'", "target: the template names 'host'"),
        ("target: _all, foreach: '{{ host.facts.disks }}'", "foreach: the template names 'host'"),
        ("target: _all, when_fact: {colour: red}", "unknown field 'colour'"),
        ("target: _all, when_fact: {min_memory: much}", "when_fact.min_memory"),
    ],
)
def test_a_mistake_is_told_in_one_line(step: str, why: str) -> None:
    from longshore.orchestration import parse

    with pytest.raises(PlanError) as caught:
        validate(parse(f"name: p\nsteps:\n  a: {{op: noop.execute, {step}}}\n"))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_approval_is_asked_for_once_and_not_on_each_host() -> None:
    plan = Plan("p", target="_all")
    sure = plan.approval("sure")
    assert Sandbox(hosts=FLEET, approve_all=True).run(plan).step("sure").items == []
    sure.target("_all")
    with pytest.raises(PlanError, match="is done once, not on each host"):
        validate(plan)
