"""A Jinja2 environment with a budget that limits the steps of a template and the size of its values.

Every client that may start a run can submit templates, and workers render them in the process that renews leases. The
sandbox of Jinja2 protects Python's internals, but does not stop `'a' * 10**9` or nested loops from blocking the
worker. Here every loop, call, filter, test, operator and output is charged for the size of its operands before
execution.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

#: Budget of one template, or of several with a shared budget: about half a second.
STEPS = 300_000
#: The largest text in characters, and list in items.
LARGEST = 4 * 1024 * 1024
#: The largest integer, in bits.
_BITS = 4096
#: The widest padding in columns, and rounding in digits.
_WIDEST = 10_000
#: Characters charged as one step.
_CHARACTERS = 64
#: Most characters inside the tags of one template, and of all templates of a plan.
LONGEST_CODE, LONGEST_CODE_OF_PLAN = 16 * 1024, 512 * 1024
#: Steps charged for compiling one character.
_COMPILING = 4

#: The allowed Jinja2 filters. Each is charged for its operands; those that can enlarge a value are bounded below.
_FILTERS = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
    "filesizeformat", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "tojson", "trim", "truncate", "unique",
    "upper", "urlencode", "wordcount", "wordwrap",
)  # fmt: skip
_GLOBALS = ("range", "dict", "namespace")
#: Allowed methods, by the type of the object.
_TEXT = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
    "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
    "upper", "zfill",
})  # fmt: skip
_MAPPING = frozenset({"get", "items", "keys", "values"})
_SEQUENCE = frozenset({"count", "index", "start", "stop", "step"})
_PADDING = frozenset({"center", "ljust", "rjust", "zfill"})


class TooCostly(Exception):
    """A template exceeds the budget of steps or the size of values."""


class Budget:
    """The remaining steps of a template."""

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooCostly(f"the template takes more than {STEPS} steps: compute less in the template")

    def charge(self, *values: Any) -> None:
        """Charge for the size of values, counting shared contents at each occurrence."""
        stack: list[Any] = list(values)
        steps = 0
        while stack:
            value = stack.pop()
            steps += 1
            if isinstance(value, str):
                steps += len(value) // _CHARACTERS
            elif isinstance(value, Mapping):
                steps += len(value)
                stack.extend(value.values())
            elif isinstance(value, list | tuple | set | frozenset):
                stack.extend(value)
            elif isinstance(value, range):
                steps += len(value)
            elif isinstance(value, int):
                steps += value.bit_length() // _BITS
            if steps > self.left:
                break
        self.spend(steps)


_budget: ContextVar[Budget | None] = ContextVar("longshore_template_budget", default=None)


@contextlib.contextmanager
def spending(budget: Budget | None = None) -> Iterator[Budget]:
    """Share one budget among the renderings inside: the given one, else the current, else a new one."""
    shared = budget or _budget.get() or Budget()
    token = _budget.set(shared)
    try:
        yield shared
    finally:
        _budget.reset(token)


def _now() -> Budget:
    return _budget.get() or Budget()


def charge(*values: Any) -> None:
    """Charge the current rendering for the size of values."""
    _now().charge(*values)


def too_large(what: str) -> NoReturn:
    raise TooCostly(f"{what} is too large: a template may create at most {LARGEST} characters or items")


def _bounded(size: float, what: str) -> None:
    if size > LARGEST:
        too_large(what)


# --- limits on growing values ---------------------------------------------------------------------


def _check_operator(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "*":
        if numbers and left.bit_length() + right.bit_length() > _BITS:
            too_large("the product")
        for one, times in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(times, int):
                _bounded(len(one) * times, "the repetition")
                _now().charge(one if times <= 0 else [one, len(one) * times * _CHARACTERS])
                _now().spend(max(0, _weight(one) * times))
    elif operator == "**":
        if numbers and abs(left) > 1 and right > 0 and left.bit_length() * right > _BITS:
            too_large("the power")
    elif operator == "%" and isinstance(left, str):
        _check_printf(left, right)


def _weight(value: Any) -> int:
    """Steps charged for one repetition of a value."""
    if isinstance(value, str):
        return len(value) // _CHARACTERS
    return len(value) if isinstance(value, list | tuple) else 1


#: A width or precision, also by argument.
_WIDTHS = re.compile(r"\d+|\*")


def _check_printf(template: str, values: Any) -> None:
    given = list(values.values()) if isinstance(values, Mapping) else values if isinstance(values, tuple) else [values]
    widths = [_WIDEST + 1 if width == "*" else int(width[:9]) for width in _WIDTHS.findall(template)]
    if any(width > _WIDEST for width in widths):
        too_large("a width in the format")
    longest = max((_text_size(value) for value in given), default=0)
    _bounded(len(template) + sum(widths) + template.count("%") * longest, "the formatted text")


def _text_size(value: Any) -> int:
    """Estimated upper bound of the characters of a value as text."""
    if isinstance(value, str):
        return len(value)
    before = _now().left
    _now().charge(value)
    return (before - _now().left) * _CHARACTERS


def _check_replace(text: str, old: str, new: str) -> None:
    found = text.count(old) if old else len(text) + 1
    _bounded(len(text) + found * len(new), "the replaced text")
    _now().spend(found * len(new) // _CHARACTERS)


def _check_join(separator: str, parts: list[Any]) -> None:
    size = len(separator) * len(parts) + sum(len(part) if isinstance(part, str) else _text_size(part) for part in parts)
    _bounded(size, "the joined text")
    _now().spend(size // _CHARACTERS)


def _check_width(*numbers: Any) -> None:
    for number in numbers:
        if isinstance(number, int | float) and abs(number) > _WIDEST:
            too_large(f"a width of {number}")


def _as_int(value: Any) -> int:
    return int(value) if isinstance(value, int | float | str) and len(str(value)[:20]) < 20 else 0


#: Checks of filter arguments, by filter name.
def _check_filter(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    more = [*args, *kwargs.values()]
    if name in {"center", "indent", "round", "tojson", "wordwrap", "batch", "slice", "truncate", "int"}:
        _check_width(*more)
        if name == "indent" and isinstance(value, str) and more:
            width = max((len(one) if isinstance(one, str) else int(one) for one in more), default=0)
            _bounded(len(value) + (value.count("\n") + 1) * width, "the indented text")
        if name == "tojson" and more:
            wide = _CHARACTERS + max((_as_int(one) for one in more), default=0)
            _bounded(_text_size(value) // _CHARACTERS * wide, "the JSON")
    elif name == "replace" and len(more) >= 2:
        _check_replace(str(value), str(more[0]), str(more[1]))
    elif name == "format":
        _check_printf(str(value), kwargs or args)
    elif name == "sum" and any(isinstance(one, list | tuple | str) for one in more):
        raise TooCostly("sum adds numbers: use a loop, or + for two lists")
    elif name == "join" and isinstance(value, list | tuple):
        _check_join(str(more[0]) if more else "", list(value))


def _metered(name: str, function: Callable[..., Any], *, returns: bool) -> Callable[..., Any]:
    """Wrap a filter or test to charge for operands and result."""
    passes = int(getattr(function, "jinja_pass_arg", None) is not None)

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        first, given = args[:passes], list(args[passes:])
        budget = _now()
        budget.spend(1)
        if given and name in {"join", "sum"}:
            given[0] = _listed(given[0])
        budget.charge(*given, *kwargs.values())
        if returns and given:
            _check_filter(name, given[0], tuple(given[1:]), kwargs)
        if given:
            given[0] = _counted(given[0])
        return _paid(function(*first, *given, **kwargs)) if returns else function(*first, *given, **kwargs)

    return metered


def _listed(value: Any) -> Any:
    """Materialise an iterator that is read more than once."""
    return list(_counted(value)) if isinstance(value, Iterator) else value


def _counted(value: Any) -> Any:
    """Charge one step for each item of an iterator."""
    return _each(value) if isinstance(value, Iterator) else value


def _each(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        _now().spend(1)
        yield value


def _paid(value: Any) -> Any:
    _now().charge(value)
    return _counted(value)


class _Formatter(SandboxedFormatter):
    """`str.format` with bounded widths."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        if any(int(width[:9]) > _WIDEST for width in re.findall(r"\d+", format_spec)):
            too_large("a width in the format")
        _now().charge(value)
        _now().spend(1 + _WIDEST // _CHARACTERS if format_spec else 1)
        return super().format_field(value, format_spec)


# --- the environment ------------------------------------------------------------------------------


@jinja2.pass_environment
def _output(_environment: Any, value: Any) -> Any:
    """Charge for template output."""
    _now().charge(value)
    return value


def _spend(steps: int) -> bool:
    _now().spend(steps)
    return True


def _charged(value: Any) -> Any:
    _now().charge(value)
    return value


def _joined(parts: list[Any]) -> str:
    _check_join("", parts)
    return "".join(map(str, parts))


class _Missing(jinja2.ChainableUndefined, jinja2.StrictUndefined):
    """A missing value, with missing fields: `default` covers a missing parent. Any other use of the value fails."""


class Environment(ImmutableSandboxedEnvironment):
    """The template environment of plans. Keys take precedence over methods: `params.items` is the parameter."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            undefined=_Missing,
            keep_trailing_newline=True,
            autoescape=False,
            finalize=_output,
            # The optimizer would evaluate constants at compile time, outside of the budget.
            optimized=False,
        )
        self.filters = {name: _metered(name, self.filters[name], returns=True) for name in _FILTERS}
        self.filters |= {"_spend": _spend, "_charged": _charged, "_joined": _joined}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _metered(name, test, returns=False) for name, test in tests.items()}
        self.globals = {name: self.globals[name] for name in _GLOBALS}

    # --- rendering --------------------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        _now().spend(1)
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _now().spend(1)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _TEXT
        if isinstance(obj, Mapping):
            return attr in _MAPPING
        if isinstance(obj, list | tuple | range):
            return attr in _SEQUENCE
        if obj is None or isinstance(obj, type | int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        if not isinstance(text, str) or getattr(value, "__name__", "") != "format":
            return super().wrap_str_format(value)

        def formatted(*args: Any, **kwargs: Any) -> str:
            return str(_Formatter(self).vformat(str(text), args, kwargs))

        return formatted

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _now()
        budget.spend(1)
        budget.charge(left, right)
        _check_operator(operator, left, right)
        return _paid(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja2 has it
        budget = _now()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str | list | tuple | dict):
            budget.charge(text)
        args = tuple(_counted(arg) for arg in args)
        budget.spend(1)
        budget.charge(*args, *kwargs.values())
        if isinstance(text, str):
            args = __self._checked(text, getattr(__obj, "__name__", ""), args)
        return _paid(super().call(__context, __obj, *args, **kwargs))

    @staticmethod
    def _checked(text: str, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if method in _PADDING:
            _check_width(*args)
        elif method == "replace" and len(args) >= 2:
            _check_replace(text, str(args[0]), str(args[1]))
        elif method == "join" and args:
            parts = list(args[0])
            _check_join(text, parts)
            return (parts,)
        return args

    # --- compilation ------------------------------------------------------------------------------

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Generate code from a tree with metered loops (hook of Jinja2)."""
        return super()._generate(self._with_meters(source), *args, **kwargs)

    def _with_meters(self, tree: nodes.Template) -> nodes.Template:
        bodies: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in bodies:
            spent = nodes.Filter(nodes.Const(_cost(node)), "_spend", [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(spent))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(nodes.Filter(nodes.Const(_cost(node)), "_spend", [], [], None, None), node.test)
        for compare in list(tree.find_all(nodes.Compare)):
            compare.expr = _with_filter(compare.expr, "_charged")
            for operand in compare.ops:
                operand.expr = _with_filter(operand.expr, "_charged")
        for item in list(tree.find_all(nodes.Getitem)):
            if isinstance(item.arg, nodes.Slice):
                item.node = _with_filter(item.node, "_charged")
        _replace(tree)
        return tree.set_environment(self).set_lineno(1)  # type: ignore[return-value]


def _with_filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _replace(tree: nodes.Node) -> None:
    """Replace `a ~ b`, which joins in C, by a filter that checks the sizes first."""
    stack: list[nodes.Node] = [tree]
    while stack:
        node = stack.pop()
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, field, _with_filter(nodes.List(value.nodes), "_joined"))
            elif isinstance(value, list):
                value[:] = [
                    _with_filter(nodes.List(one.nodes), "_joined") if isinstance(one, nodes.Concat) else one
                    for one in value
                ]
        stack.extend(node.iter_child_nodes())


def _cost(node: nodes.Node) -> int:
    """Steps of one iteration of a loop body."""
    found = sum(1 + len(getattr(one, "data", "")) // _CHARACTERS for one in node.find_all(nodes.Node))
    return max(1, found // 4)


#: Tags of a template, each up to its end or the end of the text.
_TAGS = re.compile(r"\{\{.*?(?:\}\}|\Z)|\{%.*?(?:%\}|\Z)", re.S)


def code_size(text: str) -> int:
    """Characters inside the tags of a template, which dominate compile time."""
    return sum(found.end() - found.start() for found in _TAGS.finditer(text))


def pay_for_compiling(text: str) -> None:
    """Charge for the compilation. Raises TooCostly for a template that is too long."""
    if (size := code_size(text)) > LONGEST_CODE:
        raise TooCostly(f"the template has {size} characters inside its tags; at most {LONGEST_CODE} are allowed")
    _now().spend(1 + len(text) // _CHARACTERS + _COMPILING * size)
