"""Jinja2 templates in parameters: analysis, validation and rendering.

A value of exactly one `{{ expression }}` renders to the object itself. Any other text with templates renders to text
and is never parsed back into a type: `"1.10"` stays text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes

from longshore.orchestration.language.template_engine import Environment, TooCostly, charge, pay_for_compiling, spending

#: The function that references a secret (`longshore.orchestration.language.secrets`).
SECRET = "secret"  # noqa: S105 - a name
#: Root names of templates.
ROOTS = frozenset({"params", "steps", "run", "host"})


_ENVIRONMENT = Environment()


class TemplateProblem(Exception):
    """A template that does not parse or render, or uses an undefined name. `why` omits the template's text."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why or message


@dataclass(frozen=True)
class References:
    """The parameters, steps and other names that the templates of a value use."""

    params: frozenset[str] = frozenset()
    steps: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    #: Arguments of `secret()`; None for one that is not a literal.
    secrets: frozenset[str | None] = frozenset()

    def __or__(self, other: References) -> References:
        return References(
            self.params | other.params,
            self.steps | other.steps,
            self.unknown | other.unknown,
            self.secrets | other.secrets,
        )


def is_template(text: str) -> bool:
    """Whether the text contains Jinja2 tags."""
    return "{{" in text or "{%" in text or "{#" in text


def has_template(value: Any) -> bool:
    """Whether a value contains a template."""
    return any(is_template(text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def references(value: Any, roots: frozenset[str] = ROOTS) -> References:
    """The references of all templates inside a value; names outside of `roots` are unknown.

    Raises TemplateProblem for a broken template.
    """
    found = References()
    for text in _texts(value):
        if is_template(text):
            found |= _references(text)
    return References(found.params, found.steps, found.unknown - roots, found.secrets)


def _parse(text: str) -> nodes.Template:
    """Parse a template. Raises TemplateProblem, also for a tree too deep for recursive functions."""
    try:
        pay_for_compiling(text)
        tree = _ENVIRONMENT.parse(text)
        if _depth(tree) > _DEEPEST:
            raise TooCostly("nested too deeply")
    except jinja2.TemplateSyntaxError as error:
        raise TemplateProblem(f"broken template {_shown(text)}: {error.message}", str(error.message)) from None
    except (RecursionError, MemoryError):
        raise TemplateProblem(f"broken template {_shown(text)}: nested too deeply") from None
    except (TooCostly, ValueError, OverflowError) as error:  # ValueError: a number of ten thousand digits
        raise TemplateProblem(f"broken template {_shown(text)}: {error}", str(error)) from None
    return tree


#: The deepest template tree; each level takes several stack frames.
_DEEPEST = 60
#: The longest template text in an error, in characters.
_LONGEST_SHOWN = 200


def _depth(tree: nodes.Node) -> int:
    deepest, stack = 0, [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        deepest = max(deepest, depth)
        stack += [(child, depth + 1) for child in node.iter_child_nodes()]
    return deepest


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


@lru_cache(maxsize=4096)
def _references(text: str) -> References:
    tree = _parse(text)
    named: dict[str, set[str]] = {"params": set(), "steps": set()}
    for attribute in tree.find_all(nodes.Getattr):
        if isinstance(attribute.node, nodes.Name) and attribute.node.name in named:
            named[attribute.node.name].add(attribute.attr)
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.node, nodes.Name) and item.node.name in named and isinstance(item.arg, nodes.Const):
            named[item.node.name].add(str(item.arg.value))
    try:
        names = jinja2.meta.find_undeclared_variables(tree)
    except jinja2.TemplateError as error:  # an unknown filter or test
        raise TemplateProblem(f"broken template {_shown(text)}: {error.message}", str(error.message)) from None
    secrets: set[str | None] = set()
    # A mark changed by a filter, an item access or a function is no longer valid.
    around = tree.find_all((nodes.Filter, nodes.Getitem, nodes.Getattr, nodes.Test, nodes.Compare, nodes.Call))
    changed = {inner for outer in around for inner in outer.find_all(nodes.Call)}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == SECRET:
            said = call.args[0].value if len(call.args) == 1 and isinstance(call.args[0], nodes.Const) else None
            secrets.add(str(said) if said is not None and call not in changed else None)
            names.discard(SECRET)
    return References(frozenset(named["params"]), frozenset(named["steps"]), frozenset(names), frozenset(secrets))


def reads_outcome(text: str) -> bool:
    """Whether an expression reads the outcome of a step: its `.status` or `.error`."""
    tree = _parse(text)
    names = {item.attr for item in tree.find_all(nodes.Getattr) if _is_step(item.node)}
    for item in tree.find_all(nodes.Getitem):
        if _is_step(item.node) and isinstance(item.arg, nodes.Const):
            names.add(str(item.arg.value))
    return bool(names & {"status", "error"})


@lru_cache(maxsize=4096)
def reaches_inside(text: str) -> str:
    """The first Python internal that a template accesses, such as `__class__`; '' for none.

    The sandbox rejects such names at rendering; this check rejects the plan on arrival.
    """
    if not is_template(text):
        return ""
    try:
        tree = _parse(text)
    except TemplateProblem:
        return ""  # reported by validation
    words = [node.attr for node in tree.find_all(nodes.Getattr)]
    words += [node.name for node in tree.find_all(nodes.Name)]
    words += [str(node.value) for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return next((word for word in words if word.startswith("__") and word.endswith("__") and len(word) > 4), "")


def paths(value: Any) -> list[tuple[str, ...]]:
    """The full paths of the values that templates read, such as `("steps", "pull", "data", "image")`."""
    found: list[tuple[str, ...]] = []
    for text in _texts(value):
        if is_template(text):
            found += [path for node in _parse(text).find_all((nodes.Getattr, nodes.Getitem)) if (path := _path(node))]
    # A prefix of another path is not a value of its own.
    parts = {path[:end] for path in found for end in range(1, len(path))}
    return list(dict.fromkeys(path for path in found if path not in parts))


def _path(node: nodes.Node) -> tuple[str, ...]:
    """The parts of `steps.a.data['b']`; empty if a part is not a literal."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr):
        before, word = _path(node.node), node.attr
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        before, word = _path(node.node), node.arg.value
    else:
        return ()
    return (*before, word) if before else ()


def _is_step(node: nodes.Node) -> bool:
    """Whether a node is `steps.x` or `steps['x']`."""
    return (
        isinstance(node, nodes.Getattr | nodes.Getitem)
        and isinstance(node.node, nodes.Name)
        and (node.node.name == "steps")
    )


def braced(expression: str) -> str:
    """Put an expression in braces, unless it is a template."""
    return expression if is_template(expression) else f"{{{{ {expression} }}}}"


def is_lone(text: str) -> bool:
    """Whether a value is a single expression, which renders to an object, not text."""
    return _lone_expression(text) is not None


def looks_for_failure_of(expression: str) -> str | None:
    """The step x of a condition of exactly `steps.x.status == 'failed'`; None for any other condition."""
    output = _parse(expression).body
    if len(output) != 1 or not isinstance(output[0], nodes.Output) or len(output[0].nodes) != 1:
        return None
    compared = output[0].nodes[0]
    if not isinstance(compared, nodes.Compare) or len(compared.ops) != 1 or compared.ops[0].op != "eq":
        return None
    path, word = _path(compared.expr), compared.ops[0].expr
    fails = isinstance(word, nodes.Const) and word.value in {"failed", "unknown"}
    return path[1] if fails and len(path) == 3 and path[0] == "steps" and path[2] == "status" else None


def truth(expression: str, scope: Mapping[str, Any]) -> bool:
    """Whether a condition holds. Raises TemplateProblem for an undefined value."""
    value = _render_text(braced(expression), scope)
    return bool(value)


def render(value: Any, scope: Mapping[str, Any]) -> Any:
    """Render every template inside a value. Raises TemplateProblem for an undefined value."""
    if isinstance(value, str):
        return _render_text(value, scope) if is_template(value) else value
    if isinstance(value, Mapping):
        return {str(render(key, scope)): render(item, scope) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [render(item, scope) for item in value]
    return value


def _render_text(text: str, scope: Mapping[str, Any]) -> Any:
    with spending():
        try:
            return _as_data(_compiled(text)(**scope), text)
        except TemplateProblem:
            raise
        except jinja2.UndefinedError as error:
            raise TemplateProblem(f"{_shown(text)}: {error.message}") from None
        except RecursionError:
            raise TemplateProblem(f"{_shown(text)}: the template recurses too deeply") from None
        except Exception as error:  # noqa: BLE001 - a filter may raise anything
            raise TemplateProblem(f"{_shown(text)}: {error}") from None


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Callable[..., Any]:
    """Compile a template, or its single expression, to a function of the scope."""
    _parse(text)
    lone = _lone_expression(text)
    if lone is None:
        return _ENVIRONMENT.from_string(text).render
    return _ENVIRONMENT.compile_expression(lone, undefined_to_none=False)


def _as_data(value: Any, text: str) -> Any:
    """Convert a result to JSON types, or raise TemplateProblem. Repeated contents are charged at each occurrence."""
    charge(value)
    return _data(value, text)


def _data(value: Any, text: str) -> Any:
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises UndefinedError, which names the missing value
    if value is None or isinstance(value, bool | int | str):
        return str(value) if isinstance(value, StrEnum) else value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): _data(item, text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item, text) for item in value]
    raise TemplateProblem(f"{_shown(text)}: the result is not data, but a {type(value).__name__}")


@lru_cache(maxsize=4096)
def _lone_expression(text: str) -> str | None:
    """The text of the expression, if the whole value is one `{{ … }}`; else None."""
    stripped = text.strip(" ")  # a newline is text, as in a YAML block
    if not (stripped.startswith("{{") and stripped.endswith("}}")):
        return None
    try:
        tokens = list(_ENVIRONMENT.lex(stripped))
    except (jinja2.TemplateSyntaxError, ValueError, OverflowError) as error:
        raise TemplateProblem(f"broken template {_shown(text)}: {error}", str(error)) from None
    begins = [kind for _, kind, _ in tokens if kind in {"variable_begin", "block_begin", "comment_begin"}]
    if begins != ["variable_begin"] or tokens[0][1] != "variable_begin" or tokens[-1][1] != "variable_end":
        return None
    return "".join(part for _, _, part in tokens[1:-1])
