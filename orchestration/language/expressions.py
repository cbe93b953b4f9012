"""Template expressions written in Python: `pull.data.image`, `(pull.status == "failed") & ~check.changed`.

Expressions are text, so that a plan built with them remains plain data.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

#: Root names of templates, available as attributes of `E`.
_ROOTS = ("params", "steps", "run", "host", "item")


class Expression:
    """A Jinja2 expression, built with attributes, items, comparisons, `&`, `|` and `~`.

    As a step parameter, an expression yields the value itself; inside an f-string, its text. For type checkers, a value
    that is known only in the run has any type.
    """

    def __init__(self, text: str, *, simple: bool = True) -> None:
        self._text = text
        #: Whether the text needs no parentheses beside an operator.
        self._simple = simple

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Expression(f"{self._operand()}.{name}")

    def __getitem__(self, key: str | int) -> Any:
        return Expression(f"{self._operand()}[{_literal(key)}]")

    def __str__(self) -> str:
        return f"{{{{ {self._text} }}}}"

    def __repr__(self) -> str:
        return f"Expression({self._text!r})"

    def __bool__(self) -> NoReturn:
        raise TypeError("an expression has no value before the run: use &, | and ~ instead of and, or, not")

    def __iter__(self) -> NoReturn:
        raise TypeError("an expression has no value before the run: use foreach")

    def _operand(self) -> str:
        return self._text if self._simple else f"({self._text})"

    def _with(self, operator: str, other: Any) -> Expression:
        return Expression(f"{self._operand()} {operator} {operand(other)}", simple=False)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return self._with("==", other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return self._with("!=", other)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Any) -> Expression:
        return self._with("<", other)

    def __le__(self, other: Any) -> Expression:
        return self._with("<=", other)

    def __gt__(self, other: Any) -> Expression:
        return self._with(">", other)

    def __ge__(self, other: Any) -> Expression:
        return self._with(">=", other)

    def __and__(self, other: Any) -> Expression:
        return self._with("and", other)

    def __or__(self, other: Any) -> Expression:
        return self._with("or", other)

    def __invert__(self) -> Expression:
        return Expression(f"not {self._operand()}", simple=False)

    def is_in(self, values: Any) -> Expression:
        return self._with("in", values)


def template(text: str) -> Any:
    """Return the template `text`, with the type `Any`, so that type checkers accept it for each parameter."""
    return text


def operand(value: Any) -> str:
    """A value as operand text."""
    return value._operand() if isinstance(value, Expression) else _literal(value)


def _literal(value: Any) -> str:
    """A literal: JSON text, except for the three constants."""
    words = {None: "none", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def as_text(expression: Expression | str) -> str:
    """The expression without braces, as in `when`."""
    return expression._text if isinstance(expression, Expression) else expression


def as_data(value: Any) -> Any:
    """Convert each expression inside a value to a template."""
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, dict):
        return {key: as_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(item) for item in value]
    return value


class _Roots:
    """Builds expressions for templates and `when`, such as `E.params.tag` or `E.steps["check-health"].data`."""

    def __getattr__(self, name: str) -> Expression:
        if name not in _ROOTS:
            raise AttributeError(f"{name!r}: expressions begin with {', '.join(_ROOTS)}")
        return Expression(name)


E = _Roots()
"""Builds expressions for templates and `when`, such as `E.params.tag` or `E.steps["check-health"].data`."""


def of_step(name: str) -> Expression:
    """The outcome of a step: `.status`, `.changed`, `.data`, `.hosts`, `.items`, `.error`."""
    return Expression(f"steps.{name}" if name.isidentifier() else f"steps[{json.dumps(name)}]")
