"""The JSON Schema of plans, as editors use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from pydantic import BaseModel

from longshore.orchestration import Param, Plan, Retry, Step, When, parse
from longshore.orchestration.language.schedule import Scheduled
from longshore.orchestration.language.targets import HostFilter
from longshore.orchestration.plans.loading import schema
from longshore.orchestration.plans.model import Concurrency
from longshore.orchestration.plans.steps import Inside, UndoSpec
from tests.unit.plans import plans

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
SCHEMA = schema()
#: Keywords of JSON Schema without an effect on validation.
TELLING = {"title", "description", "default", "examples", "$schema", "$defs", "$id"}
CHECKING = {"type", "enum", "const", "anyOf", "$ref", "properties", "required", "additionalProperties", "items"}
CHECKING |= {"minimum", "maximum", "minItems", "pattern", "patternProperties", "propertyNames", "oneOf", "minLength"}


def accepts(rule: Any, value: Any, root: dict[str, Any]) -> bool:
    """Report whether the schema accepts the value; covers the part of JSON Schema that pydantic emits."""
    if isinstance(rule, bool):
        return rule
    if "$ref" in rule:
        return accepts(root["$defs"][rule["$ref"].rpartition("/")[2]], value, root)
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(
        isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds
    ):
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    if "const" in rule and value != rule["const"]:
        return False
    for word in ("anyOf", "oneOf"):
        if word in rule and not any(accepts(option, value, root) for option in rule[word]):
            return False
    if isinstance(value, list) and not all(accepts(rule.get("items", True), item, root) for item in value):
        return False
    if isinstance(value, int | float) and not (
        rule.get("minimum", float("-inf")) <= value <= rule.get("maximum", float("inf"))
    ):
        return False
    if isinstance(value, dict):
        known = rule.get("properties", {})
        others = rule.get("additionalProperties", True)
        return all(name in value for name in rule.get("required", [])) and all(
            accepts(known.get(name, others), item, root) for name, item in value.items()
        )
    return True


def rules(rule: Any, where: str = "plan") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule of a schema, with its path."""
    if not isinstance(rule, dict):
        return
    yield where, rule
    for word in ("properties", "$defs"):
        for name, inner in rule.get(word, {}).items():
            yield from rules(inner, f"{where}.{name}")
    for word in ("items", "additionalProperties"):
        yield from rules(rule.get(word), f"{where}.{word}")
    for option in [*rule.get("anyOf", []), *rule.get("oneOf", [])]:
        yield from rules(option, where)


def test_schema_declares_its_draft() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for where, rule in rules(SCHEMA):
        assert set(rule) <= TELLING | CHECKING, where
        kinds = rule.get("type", [])
        assert set([kinds] if isinstance(kinds, str) else kinds) <= TYPES.keys(), where
        if "$ref" in rule:
            assert rule["$ref"].removeprefix("#/$defs/") in SCHEMA["$defs"], where


def test_schema_covers_all_fields_and_allows_no_others() -> None:
    parts = {where: rule for where, rule in rules(SCHEMA) if "properties" in rule}
    models: dict[str, type[BaseModel]] = {"plan": Plan}
    models |= {
        f"plan.{model.__name__}": model
        for model in (Step, UndoSpec, When, Param, Retry, Concurrency, Inside, HostFilter, Scheduled)
    }

    assert parts.keys() == models.keys()
    for where, model in models.items():
        fields = {field.alias or own for own, field in model.model_fields.items()}
        assert parts[where]["properties"].keys() == fields
        assert parts[where]["additionalProperties"] is False


def test_schema_describes_every_field() -> None:
    undescribed = [
        f"{where}.{name}"
        for where, rule in rules(SCHEMA)
        for name, field in rule.get("properties", {}).items()
        if not field.get("description")
    ]

    assert undescribed == []


@settings(max_examples=25)
@given(plans())
def test_schema_accepts_every_exported_plan(plan: Plan) -> None:
    assert accepts(SCHEMA, plan.to_dict(), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "name: p\ntimeout: 5\nsteps: {a: {op: noop.execute, timeout: 1ms, undo: none, retry: {initial: 1}}}",
        "name: p\nsteps: {a: {op: noop.execute, undo: {op: noop.execute, with: {sleep: 1}}}}",
        "name: p\nparams: {x: {type: integer, default: null, min: 0.5}}\nsteps: {a: {op: noop.execute}}",
        "name: p\nsteps: {a: {op: noop.execute}, b: {op: noop.execute, after: a}}",
        "name: p\nparams: {tag: string}\nsteps: {a: {op: noop.execute}}",
    ],
)
def test_schema_accepts_human_forms(text: str) -> None:
    assert parse(text)
    assert accepts(SCHEMA, yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"name": 5},
        {"name": "p", "bogus": 1},
        {"name": "p", "on_error": "explode"},
        {"name": "p", "steps": []},
        {"name": "p", "steps": {"a": {}}},
        {"name": "p", "steps": {"a": {"op": "x", "after": [1]}}},
        {"name": "p", "steps": {"a": {"op": "x", "undo": "nope"}}},
        {"name": "p", "steps": {"a": {"op": "x", "retry": {"attempts": 0}}}},
        {"name": "p", "params": {"x": {"type": "text"}}},
    ],
    ids=str,
)
def test_schema_refuses_invalid_plans(written: Any) -> None:
    assert not accepts(SCHEMA, written, SCHEMA)
