"""A plan's inputs: types, defaults, bounds, and values from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from longshore.orchestration import Param, ParamsError, Plan
from longshore.orchestration.language.params import resolve
from tests.unit.plans import params

FITS: dict[str, Any] = {
    "string": "text",
    "integer": 3,
    "number": 1.5,
    "boolean": True,
    "list": [1],
    "object": {"a": 1},
}


@pytest.mark.parametrize("kind", FITS)
def test_value_matches_its_own_type_only(kind: str) -> None:
    param = Param.model_validate({"type": kind})

    fitting = {name for name, value in FITS.items() if param.problem(value) is None}

    assert fitting == {kind} | ({"integer"} if kind == "number" else set())


def test_boolean_is_not_a_number() -> None:
    assert "must be of type integer, not True" in str(Param(type="integer").problem(True))
    assert Param(type="number").problem(False) is not None


def test_null_matches_no_type() -> None:
    assert all(Param.model_validate({"type": kind}).problem(None) for kind in FITS)


@pytest.mark.parametrize(
    ("declared", "good", "bad", "says"),
    [
        ({"enum": ["blue", "green"]}, ["blue"], ["red", "Blue"], "must be one of blue, green"),
        ({"type": "integer", "enum": [1, 2]}, [2], [3], "must be one of 1, 2"),
        ({"pattern": r"v\d+"}, ["v1"], ["1", "v1x", "xv1", "v1\n"], r"must match v\d+"),
        ({"min": 2, "max": 3}, ["ab", "abc"], ["a", "abcd"], "length of at"),
        ({"type": "list", "min": 1}, [[0]], [[]], "length of at least 1"),
        ({"type": "object", "max": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}], "length of at most 1"),
        ({"type": "number", "min": 0.5, "max": 1}, [0.5, 1], [0.4, 1.1], "value of at"),
        ({"type": "integer", "min": -1}, [-1, 5], [-2], "value of at least -1"),
    ],
)
def test_out_of_range_value_is_refused_with_its_bound(
    declared: dict[str, Any], good: list[Any], bad: list[Any], says: str
) -> None:
    param = Param.model_validate(declared)

    assert [param.problem(value) for value in good] == [None] * len(good)
    assert all(says in str(param.problem(value)) for value in bad)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_non_finite_number_is_refused(text: str) -> None:
    param = Param(type="number")

    assert param.problem(param.parse(text)) is not None


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "1.10", "1.10"),
        ("string", "true", "true"),
        ("string", "", ""),
        ("integer", "7", 7),
        ("integer", "7.5", 7.5),
        ("integer", "007", "007"),
        ("integer", "seven", "seven"),
        ("number", "1.5", 1.5),
        ("number", "1e3", 1000.0),
        ("boolean", "yes", True),
        ("boolean", "ON", True),
        ("boolean", "1", True),
        ("boolean", "off", False),
        ("boolean", "No", False),
        ("boolean", "0", False),
        ("boolean", "maybe", "maybe"),
        ("list", '["a", 1]', ["a", 1]),
        ("list", "a,b", "a,b"),
        ("object", '{"a": null}', {"a": None}),
        ("list", "[" * 100_000, "[" * 100_000),
    ],
    ids=lambda part: repr(part)[:20],
)
def test_command_line_text_is_converted_to_the_type(kind: str, text: str, value: Any) -> None:
    parsed = Param.model_validate({"type": kind}).parse(text)

    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("short", "kind"),
    [(str, "string"), (int, "integer"), (float, "number"), (bool, "boolean"), (list, "list"), (dict, "object")],
)
def test_python_types_and_names_declare_parameters(short: type, kind: str) -> None:
    assert Plan("p", params={"x": short}).params["x"].type == kind
    assert Plan("p", params={"x": kind}).params["x"].type == kind


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"type": "text"}, "type"),
        ({"pattern": "["}, "is not a valid regular expression"),
        ({"type": "integer", "default": "three"}, "default must be of type integer"),
        ({"enum": ["a"], "default": "b"}, "default must be one of a"),
        ({"minimum": 3}, "minimum"),
        (3, "Param"),
    ],
)
def test_contradictory_declaration_is_refused(declared: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Param.model_validate(declared)


def test_given_values_override_defaults() -> None:
    declared = {"a": Param(default="x"), "b": Param(default="y")}

    assert resolve(declared, {"b": "z"}) == {"a": "x", "b": "z"}


def test_null_default_differs_from_no_default() -> None:
    null, none = Param(type="string", default=None), Param(type="string")

    assert resolve({"x": null}, {}) == {"x": None}
    with pytest.raises(ParamsError, match="parameter 'x' is missing"):
        resolve({"x": none}, {})
    assert null.model_dump() == {"type": "string", "default": None}
    assert none.model_dump() == {"type": "string"}


@given(params())
def test_declaration_round_trips(declared: dict[str, Any]) -> None:
    param = Param.model_validate(declared)

    again = Param.model_validate(json.loads(json.dumps(param.model_dump(mode="json"))))

    assert again.model_dump() == param.model_dump()
    assert ("default" in again.model_fields_set) == ("default" in declared)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "parameter 'tag' is missing: give it with -p tag=…"),
        ({"tag": 3}, "parameter 'tag' must be of type string, not 3"),
        ({"tag": "a", "tga": "b"}, "unknown parameter 'tga': use one of: tag"),
        ({"tag": None}, "parameter 'tag' must be of type string, not None"),
    ],
)
def test_invalid_value_error_names_the_parameter(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        resolve({"tag": Param()}, given)

    assert str(caught.value) == says
    assert caught.value.exit_code == 2
