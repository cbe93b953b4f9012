"""Python expressions compile to Jinja2 text with the same meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration import E, Plan, validate
from longshore.orchestration.language import templates
from longshore.orchestration.language.expressions import Expression, as_text

Text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), Text)


@given(VALUES, VALUES)
def test_expression_comparison_matches_python(value: Any, other: Any) -> None:
    scope = {"params": {"v": value}}
    assert templates.truth(as_text(E.params.v == other), scope) == (value == other)
    assert templates.truth(as_text(E.params.v != other), scope) == (value != other)


@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3))
def test_expression_operators_keep_their_precedence(a: int, b: int, c: int) -> None:
    scope = {"params": {"a": a, "b": b, "c": c}}
    p = E.params
    one = (p.a < p.b) & ~(p.b <= p.c) | (p.a > c) & (p.c >= b)
    assert templates.truth(as_text(one), scope) == ((a < b and not b <= c) or (a > c >= b))


def test_expression_yields_the_value_or_its_text() -> None:
    plan = Plan("p", params={"tag": str})
    a = plan.step("check-health", "noop.execute")
    plan.step(
        "b", "noop.execute", data={"whole": a.data, "deep": [a.data["a b"][0]], "text": f"<{E.params.tag}>"}
    ).after(a)

    assert plan.steps["b"].with_["data"] == {
        "whole": '{{ steps["check-health"].data }}',
        "deep": ['{{ steps["check-health"].data["a b"][0] }}'],
        "text": "<{{ params.tag }}>",
    }
    validate(plan)


def test_expression_has_no_truth_value_or_iteration() -> None:
    with pytest.raises(TypeError, match=r"use &, \| and ~"):
        bool(E.item == 1)
    with pytest.raises(TypeError, match="use foreach"):
        list(Expression("item"))
    with pytest.raises(AttributeError, match="begin with params"):
        _ = E.nothing


def test_is_in_operator() -> None:
    assert templates.truth(as_text(E.item.is_in(["a", "b"])), {"item": "a"})
