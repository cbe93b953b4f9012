"""Plans that are validated once for all their starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longshore.orchestration.errors import PlanDenied, PlanError
from longshore.orchestration.operations import base
from longshore.orchestration.plans import checked as module
from longshore.orchestration.plans.checked import checked
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.settings import Settings


def plan() -> Plan:
    made = Plan("once")
    made.step("one", "noop.execute")
    return made


def test_equal_plans_are_compiled_once() -> None:
    assert checked(plan()) is checked(plan())


def test_changed_plan_is_validated_again() -> None:
    made = plan()
    first = checked(made)
    made.step("two", "noop.execute").after("one")
    assert [step.name for step in checked(made).compiled.steps] == ["one", "two"]
    assert [step.name for step in first.compiled.steps] == ["one"], "the change of the plan changed a started run"
    made.steps["two"].after.append("three")
    with pytest.raises(PlanError, match="three"):
        checked(made)


def test_plan_is_validated_for_the_policy_of_each_client() -> None:
    made = Plan("secret")
    made.step("up", "docker.run.execute", image="db:1", name="db", env={"DB_PASSWORD": "plain"})
    assert checked(made, Settings(clear_secrets="allow"))
    with pytest.raises(PlanDenied):
        checked(made, Settings(clear_secrets="refuse"))


def test_removed_operation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    checked(plan())
    monkeypatch.delitem(base._REGISTRY, "noop.execute")
    with pytest.raises(PlanError, match=r"noop\.execute"):
        checked(plan())


def test_child_plan_in_a_file_is_validated_each_time(tmp_path: Path) -> None:
    child = tmp_path / "child.json"
    child.write_text(plan().to_json())
    made = Plan("parent")
    made.run_plan("child", str(child))
    checked(made)
    child.write_text(json.dumps({"name": "child", "steps": {"a": {"op": "noop.execute", "after": ["missing"]}}}))
    with pytest.raises(PlanError, match="missing"):
        checked(made)


def test_number_of_cached_plans_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    for number in range(10):
        made = Plan(f"plan-{number}")
        made.step("one", "noop.execute")
        checked(made)
    assert len(module._checked) == 3
