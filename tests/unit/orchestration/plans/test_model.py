"""The plan model: YAML, JSON and Python build equal plans and round-trip without loss."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from pydantic import ValidationError

from longshore.orchestration import Plan, PlanError, Retry, parse, validate
from tests.unit.plans import diamond, of_edges, plans

YAML = """\
name: release-shop
description: A release
labels: {team: shop}
params:
  tag: {type: string, pattern: 'v\\d+'}
  replicas: integer
on_error: continue
timeout: 30m
retry: {attempts: 2, initial: 500ms}
steps:
  pull:
    op: docker.pull.execute
    with: {image: "shop:{{ params.tag }}"}
    retry: {attempts: 6, initial: 1s, maximum: 30s}
  migrate:
    op: command.exec.execute
    with: {argv: [migrate, up]}
    undo: {op: command.exec.execute, with: {argv: [migrate, down, "{{ data.stdout }}"]}}
    after: pull
    timeout: 10m
  warm:
    op: command.shell.execute
    with: {command: warm}
    undo: none
    on_error: stop
    after: [migrate, pull]
  tell:
    op: noop.execute
    always: true
    description: Say so
    after: [warm]
"""


def in_python() -> Plan:
    plan = Plan(
        "release-shop",
        description="A release",
        labels={"team": "shop"},
        params={"tag": {"type": "string", "pattern": r"v\d+"}, "replicas": int},
        on_error="continue",
        timeout=1800,
        retry=Retry(attempts=2, initial=0.5),
    )
    pull = plan.step("pull", "docker.pull.execute", image="shop:{{ params.tag }}").retry(5, initial=1, maximum="30s")
    migrate = plan.step("migrate", "command.exec.execute", argv=["migrate", "up"]).after(pull).timeout("10m")
    migrate.undo("command.exec.execute", argv=["migrate", "down", "{{ data.stdout }}"])
    warm = (
        plan.step("warm", "command.shell.execute", command="warm").after(migrate, "pull").on_error("stop").undo("none")
    )
    plan.step("tell", "noop.execute").after(warm).always().describe("Say so")
    return plan


# The shape of a plan is checked before its operations.
def as_written(text: str) -> Plan:
    return Plan.model_validate(yaml.safe_load(text))


def test_yaml_json_and_python_build_equal_plans() -> None:
    from_yaml = as_written(YAML)
    from_json = Plan.model_validate(json.loads(json.dumps(yaml.safe_load(YAML))))

    assert from_yaml == from_json == in_python()
    assert from_yaml.to_dict() == in_python().to_dict()
    assert from_yaml.digest({}, {}) == from_json.digest({}, {}) == in_python().digest({}, {})


def test_export_omits_defaults() -> None:
    plan = Plan("small")
    plan.step("one", "noop.execute")

    assert plan.to_dict() == {"name": "small", "steps": {"one": {"op": "noop.execute"}}}


def test_export_is_json_in_human_forms() -> None:
    written = in_python().to_dict()

    assert json.loads(json.dumps(written)) == written
    assert written["timeout"] == "30m"
    assert written["steps"]["pull"]["retry"] == {"attempts": 6, "initial": "1s", "maximum": "30s", "jitter": True}
    assert written["steps"]["migrate"]["with"] == {"argv": ["migrate", "up"]}
    assert written["steps"]["warm"]["undo"] == "none"
    assert written["params"] == {"tag": {"type": "string", "pattern": r"v\d+"}, "replicas": {"type": "integer"}}


@given(plans())
def test_plan_round_trips_through_yaml_json_and_dicts(plan: Plan) -> None:
    validate(plan)

    again = [parse(plan.to_yaml()), parse(plan.to_json()), Plan.model_validate(plan.to_dict())]

    for other in again:
        assert other == plan
        assert list(other.steps) == list(plan.steps)
        assert other.to_dict() == plan.to_dict()
        assert other.digest({"a": 1}, {"f": "x"}) == plan.digest({"a": 1}, {"f": "x"})


@pytest.mark.parametrize(
    "text", ["\x07", "\x7f", "\x9f", "a\x85b", "\u2028", "\ufeff", "\ufffe", "a\tb", "1.10", "on", "null", "~", "1:30"]
)
def test_text_round_trips_through_yaml(text: str) -> None:
    plan = Plan("p", description=text)
    plan.step("one", "noop.execute", data={"text": text})

    assert parse(plan.to_yaml()) == plan


@pytest.mark.parametrize("value", ["\x7f", "\x85", "\ufffe", 1e16, 1e-7, 5e-324])
def test_value_round_trips_through_json(value: Any) -> None:
    plan = Plan("p")
    plan.step("one", "noop.execute", data={"value": value})

    assert parse(plan.to_json()) == plan


def test_json_of_other_programs_is_read() -> None:
    plan = Plan("p", description="fine 👍")
    plan.step("one", "noop.execute")

    assert parse(json.dumps(plan.to_dict())) == plan


def test_quoted_key_is_always_text() -> None:
    plan = Plan("p")
    plan.step("one", "noop.execute", data={"<<": 1, "=": 2, "null": 3, "": 4, "~": 5, "on": 6, "1.0": 7})

    assert parse(plan.to_yaml()) == plan


def test_sequential_plan_is_a_chain() -> None:
    text = "name: p\nsequential: true\nsteps: {a: {op: noop.execute}, b: {op: noop.execute}, c: {op: noop.execute}}"
    built = Plan("p", sequential=True)
    for name in "abc":
        built.step(name, "noop.execute")

    plan = parse(text)

    assert {name: step.after for name, step in plan.steps.items()} == {"a": [], "b": ["a"], "c": ["b"]}
    assert plan == built == parse(plan.to_yaml())


def test_sequential_keeps_explicit_dependencies() -> None:
    plan = Plan.model_validate(
        {
            "name": "p",
            "sequential": True,
            "steps": {n: {"op": "noop.execute", "after": a} for n, a in (("a", []), ("b", []), ("c", ["a"]))},
        }
    )

    assert plan.steps["c"].after == ["a", "b"]
    assert Plan.model_validate(plan.to_dict()) == plan


def test_python_chain_orders_steps() -> None:
    plan = Plan("p")
    a, b, c = (plan.step(name, "noop.execute") for name in "abc")

    plan.chain(c, a, b)

    assert {name: step.after for name, step in plan.steps.items()} == {"a": ["c"], "b": ["a"], "c": []}


def test_repeated_dependency_is_stored_once() -> None:
    plan = Plan("p")
    a = plan.step("a", "noop.execute")

    plan.step("b", "noop.execute").after(a).after("a", a)

    assert plan.steps["b"].after == ["a"]


def test_python_retries_are_yaml_attempts_minus_one() -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute").retry(3, initial="500ms", maximum=4, jitter=False)
    plan.step("b", "noop.execute").retry(0)

    assert plan.steps["a"].retry == Retry(attempts=4, initial=0.5, maximum=4.0, jitter=False)
    assert plan.steps["b"].retry is not None
    assert plan.steps["b"].retry.attempts == 1


def test_step_names_are_unique() -> None:
    plan = Plan("p")
    plan.step("a", "noop.execute")

    with pytest.raises(PlanError, match="step 'a': the plan has a step of this name"):
        plan.step("a", "noop.execute")


@pytest.mark.parametrize("name", ["a", "A", "7", "check-health", "v1.2_3", "x" * 64])
def test_valid_step_names_are_accepted(name: str) -> None:
    validate(of_edges({name: []}))


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "é", "x" * 65, "a\n", "a:b", "{a}", "a\0"])
def test_invalid_step_names_are_refused(name: str) -> None:
    for plan in (of_edges({name: []}), Plan(name, steps={"a": {"op": "noop.execute"}})):
        with pytest.raises(PlanError, match="must match") as caught:
            validate(plan)
        assert "\n" not in str(caught.value)


def test_digest_is_independent_of_notation() -> None:
    # given: equal plans with other orders of keys and other spellings
    one = {"name": "p", "timeout": "1m", "steps": {"a": {"op": "noop.execute", "with": {"sleep": 1, "changed": True}}}}
    two = {"steps": {"a": {"with": {"changed": True, "sleep": 1}, "op": "noop.execute"}}, "timeout": 60, "name": "p"}

    assert Plan.model_validate(one).digest({"x": 1, "y": 2}, {}) == Plan.model_validate(two).digest(
        {"y": 2, "x": 1}, {}
    )


def test_digest_differs_for_every_relevant_change() -> None:
    def changed(**changes: Any) -> Plan:
        return Plan.model_validate(diamond().to_dict() | changes)

    def with_step(**changes: Any) -> Plan:
        written = diamond().to_dict()
        written["steps"]["lint"] |= changes
        return Plan.model_validate(written)

    variants = [
        diamond(),
        changed(name="other"),
        changed(on_error="continue"),
        changed(on_failure="keep"),
        changed(timeout="1m"),
        changed(retry={"attempts": 4}),
        changed(params={"x": "string"}),
        changed(params={"x": {"type": "string", "default": None}}),
        with_step(op="command.shell.execute"),
        with_step(**{"with": {"sleep": 1}}),
        with_step(after=[]),
        with_step(always=True),
        with_step(undo="none"),
        with_step(timeout="1m"),
        with_step(retry={"attempts": 2}),
        with_step(on_error="stop"),
    ]
    digests = [plan.digest({}, {}) for plan in variants]
    digests += [diamond().digest({"x": 1}, {}), diamond().digest({"x": "1"}, {}), diamond().digest({}, {"f": "eA=="})]

    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def test_equal_digests_imply_equal_step_order() -> None:
    one, two = of_edges({"a": [], "b": []}), of_edges({"b": [], "a": []})

    assert one.digest({}, {}) != two.digest({}, {})


def test_file_location_is_not_part_of_a_plan() -> None:
    here, there = diamond(), diamond()
    there._base_dir = "/somewhere/else"

    assert here == there
    assert here.digest({}, {}) == there.digest({}, {})
    assert here != "diamond"


@pytest.mark.parametrize(
    "broken",
    [
        {"name": "p", "bogus": 1},
        {"name": "p", "steps": {"a": {"op": "x", "bogus": 1}}},
        {"name": "p", "steps": {"a": {"op": "x", "undo": "nope"}}},
        {"name": "p", "steps": {"a": {"op": "x", "undo": {"op": "y", "bogus": 1}}}},
        {"name": "p", "steps": {"a": {"op": "x", "retry": {"attempts": 0}}}},
        {"name": "p", "steps": {"a": {"op": "x", "retry": {"attempts": 101}}}},
        {"name": "p", "steps": {"a": {"op": "x", "timeout": "soon"}}},
        {"name": "p", "on_error": "explode"},
        {"name": "p", "on_failure": "explode"},
        {"steps": {}},
        {"name": "p", "steps": {"a": {}}},
    ],
    ids=str,
)
def test_malformed_plan_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate(broken)


def test_check_reports_all_problems_at_once() -> None:
    plan = Plan("p")
    plan.step("a", "noop.execut")
    plan.step("b", "noop.execute", slep=1)
    plan.step("c", "command.exec.execute")

    with pytest.raises(PlanError) as caught:
        validate(plan)

    assert [problem.step for problem in caught.value.problems] == ["a", "b", "c"]
    assert [part.split(":")[0] for part in str(caught.value).split("; step ")] == ["step 'a'", "'b'", "'c'"]
    assert caught.value.exit_code == 2
