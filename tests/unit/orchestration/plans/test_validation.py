"""Semantic validation of well-formed plans."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given

from longshore.orchestration import Plan
from longshore.orchestration.plans.handles import StepHandle
from longshore.orchestration.plans.loading import resolve
from longshore.orchestration.plans.validation import problems
from tests.unit.plans import diamond, graphs, of_edges


def one_step(op: str = "noop.execute", **params: Any) -> Plan:
    plan = Plan("p", params={"tag": str, "many": list})
    plan.step("first", op, **params)
    return plan


def problems_of(plan: Plan) -> list[str]:
    return [str(problem) for problem in problems(plan, resolve)]


def test_valid_plan_has_no_problems() -> None:
    assert problems_of(diamond()) == []


@pytest.mark.parametrize("text", ["{{ ( }}", "{{ ] }}", "{{ 'a }}", "{{ {( }}"])
def test_broken_template_of_a_foreach_is_a_problem_of_its_step(text: str) -> None:
    plan = Plan("p")
    plan.step("each", "noop.execute").foreach(text)

    assert any("step 'each': broken template" in line for line in problems_of(plan))


def test_cycle_is_reported_with_its_path() -> None:
    plan = of_edges({"start": [], "a": ["start", "c"], "b": ["a"], "c": ["b"], "end": ["c"]})

    (problem,) = problems(plan, resolve)

    text, _, path = problem.message.partition(": ")
    names = path.split(" → ")
    assert text == "the steps form a cycle"
    assert names[0] == names[-1] == problem.step
    assert sorted(names[1:]) == ["a", "b", "c"]
    # each step depends on the next
    assert all(after in plan.steps[name].after for name, after in pairwise(names))


def test_self_dependency_is_a_cycle() -> None:
    assert problems_of(of_edges({"a": ["a"]})) == ["step 'a': the steps form a cycle: a → a"]


@given(graphs())
def test_back_edge_makes_a_cycle(edges: dict[str, list[str]]) -> None:
    assert problems_of(of_edges(edges)) == []
    for name, after in edges.items():
        for dependency in after:
            back = {other: [*needs, name] if other == dependency else needs for other, needs in edges.items()}
            assert "the steps form a cycle" in problems_of(of_edges(back))[0]


def test_missing_dependency_suggests_the_nearest_name() -> None:
    plan = of_edges({"build": [], "test": ["biuld"], "ship": ["elsewhere"]})

    assert problems_of(plan) == [
        "step 'test': depends on 'biuld', which is not in the plan; did you mean 'build'?",
        "step 'ship': depends on 'elsewhere', which is not in the plan",
    ]


def test_empty_plan_is_refused() -> None:
    assert problems_of(Plan("p")) == ["the plan has no steps"]


def test_plan_is_limited_to_ten_thousand_steps() -> None:
    most = of_edges({f"s{n}": [] for n in range(10_000)})
    too_many = of_edges({f"s{n}": [] for n in range(10_001)})

    assert problems_of(most) == []
    assert problems_of(too_many) == ["the plan has 10001 steps; at most 10000 are allowed: split the plan"]


@pytest.mark.parametrize(
    ("op", "near"),
    [
        ("noop.execut", "did you mean noop.execute"),
        ("docker.strat.execute", "docker.start.execute"),
        ("compose.up", "did you mean compose.up.execute"),
        ("zzz", "load custom operations with LONGSHORE_IMPORTS"),
    ],
)
def test_unknown_operation_suggests_the_nearest_names(op: str, near: str) -> None:
    (problem,) = problems_of(one_step(op))

    assert problem.startswith(f"step 'first': unknown operation {op!r}")
    assert near in problem


@pytest.mark.parametrize(
    ("op", "params", "says"),
    [
        ("noop.execute", {"slep": 1}, "noop.execute has no parameter 'slep'; it has sleep, fail, changed, data"),
        ("noop.execute", {"sleep": "soon"}, "sleep: 'soon' is not a duration"),
        ("noop.execute", {"changed": "perhaps"}, "changed: "),
        ("noop.execute", {"data": []}, "data: "),
        ("command.exec.execute", {}, "command.exec.execute needs the parameter 'argv'"),
        ("command.exec.execute", {"argv": "ls -l"}, "argv: "),
        ("command.exec.execute", {"argv": ["ls", 1]}, "argv.1: "),
        ("command.exec.execute", {"argv": []}, "argv: "),
        ("command.exec.execute", {"argv": ["ls"], "ok_codes": [256]}, "ok_codes.0: "),
        ("command.shell.execute", {"command": ""}, "command: "),
        ("file.deploy.execute", {"path": "relative", "content": ""}, "path: "),
        ("file.deploy.execute", {"path": "/x"}, "give one of content, source and object"),
        ("file.deploy.execute", {"path": "/x", "content": "", "source": "y"}, "give one of content, source and object"),
        ("file.deploy.execute", {"path": "/x", "content": "", "mode": "rw"}, "mode: "),
        ("file.deploy.execute", {"path": "/x", "content": "", "mode": 644}, "mode: "),
        # a template elsewhere does not prevent the other checks
        ("command.exec.execute", {"argv": ["{{ params.tag }}"], "cwd": 7}, "cwd: "),
        ("command.exec.execute", {"argv": ["{{ params.tag }}"], "cdw": "/"}, "has no parameter 'cdw'"),
        ("command.exec.execute", {"cwd": "{{ params.tag }}"}, "needs the parameter 'argv'"),
        (
            "file.deploy.execute",
            {"path": "/{{ params.tag }}", "content": "", "mode": "rw"},
            "mode: ",
        ),
        (
            "command.exec.execute",
            {"argv": ["{{ params.tag }}"], "ok_codes": []},
            "ok_codes: ",
        ),
    ],
)
def test_invalid_parameter_is_named(op: str, params: dict[str, Any], says: str) -> None:
    (problem,) = problems_of(one_step(op, **params))

    assert problem.startswith("step 'first': ")
    assert says in problem


def test_templated_value_is_validated_at_rendering() -> None:
    assert problems_of(one_step("command.exec.execute", argv="{{ params.many }}", timeout="{{ params.tag }}")) == []


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ item }}", "the template uses the unknown name 'item'; allowed are host, params, run, steps"),
        ("{{ data.id }}", "the template uses the unknown name 'data'"),
        ("{{ params.nope }}", "the plan has no parameter 'nope'"),
        ("{{ params['nope'] }}", "the plan has no parameter 'nope'"),
        ("{{ steps.gone.data }}", "the template reads step 'gone', which is not in the plan"),
        ("{{ steps.first.data }}", "the template reads step 'first', which does not run before this step"),
        ("{{ 1 + }}", "broken template '{{ 1 + }}'"),
        ("{% if params.tag %}", "broken template"),
    ],
)
def test_template_with_an_unknown_reference_is_reported(template: str, says: str) -> None:
    plan = one_step(data={"deep": [{"in": template}]})

    (problem,) = problems_of(plan)

    assert problem.startswith("step 'first': ")
    assert says in problem


def test_template_may_reference_upstream_steps_only() -> None:
    plan = diamond()
    plan.steps["ship"].with_["data"] = {"ok": "{{ steps.build.data.id }} {{ steps['lint'].status }}"}
    plan.steps["lint"].with_["data"] = {"beside": "{{ steps.test.status }}", "below": "{{ steps['tell'].status }}"}

    assert problems_of(plan) == [
        "step 'lint': data: the template reads step 'tell', which does not run before this step",
        "step 'lint': data: the template reads step 'test', which does not run before this step: "
        "add 'test' to its after",
    ]


def test_undo_is_validated_and_may_reference_its_step() -> None:
    plan = diamond()
    argv = ["{{ data.id }}", "{{ before.x }}", "{{ steps.ship.status }}", "{{ steps.build.data }}"]
    StepHandle(plan, "ship").undo("command.exec.execute", argv=argv)
    assert problems_of(plan) == []

    plan.step("last", "noop.execute").after("tell").undo("noop.execut")
    plan.step("least", "noop.execute").undo("noop.execute", slep=1)
    plan.step("late", "noop.execute").undo("noop.execute", data={"a": "{{ steps.ship.data }}"})

    assert [problem.partition("; ")[0].partition(": did")[0] for problem in problems_of(plan)] == [
        "step 'last': unknown operation 'noop.execut'",
        "step 'least': noop.execute has no parameter 'slep'",
        "step 'late': undo: data: the template reads step 'ship', which does not run before this step: "
        "add 'ship' to its after",
    ]


def test_undo_of_an_always_step_is_refused() -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute").always().undo("noop.execute")
    plan.step("b", "noop.execute").always().undo("none")

    assert problems_of(plan) == ["step 'a': an always step is never undone: remove undo"]


def test_problems_are_in_plan_order_with_paths() -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute", slep=1, data="x")
    plan.step("b", "command.exec.execute", argv=["{{ nope }}"])

    found = problems(plan, resolve)

    assert [(problem.step, problem.path) for problem in found] == [
        ("a", ("steps", "a", "with", "data")),
        ("a", ("steps", "a", "with", "slep")),
        ("b", ("steps", "b", "with", "argv")),
    ]


def test_inline_template_may_use_its_variables() -> None:
    plan = one_step("file.deploy.execute", path="/x", content="port {{ port }}\n", template=True, vars={"port": 80})

    assert problems_of(plan) == []


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf")], ids=["object", "nan", "inf"])
def test_non_json_value_is_refused(value: object) -> None:
    assert problems_of(one_step(data={"x": [value]})) != []
