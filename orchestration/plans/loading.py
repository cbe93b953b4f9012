"""Loading of plans from files or by name; problems carry the line of the file."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
import yaml.reader
from pydantic import ValidationError

from longshore.orchestration.errors import PlanError, Problem, UnknownName, UsageError, plain
from longshore.orchestration.operations import all_operations
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.validation import problems
from longshore.orchestration.settings import MAX_PLAN_BYTES, get_settings

#: The deepest nesting of child plans.
_DEEPEST = 8


def validate(plan: Plan) -> None:
    """Validate a plan and its child plans. Raises PlanError with every problem."""
    if found := problems(plan, resolve):
        raise PlanError(found)


def resolve(parent: Plan, given: Any, *, seen: tuple[str, ...] = ()) -> Plan:
    """Load and validate a child plan, inline or by name. Raises PlanError, UnknownName, UsageError."""
    if len(seen) >= _DEEPEST:
        raise UsageError(f"plans are nested more than {_DEEPEST} deep: {' → '.join(seen)}")
    if isinstance(given, Mapping):
        try:
            child = Plan.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(f"{where}: {first['msg']}") from None
        child._base_dir = parent._base_dir
    else:
        beside = Path(parent._base_dir) / str(given)
        child = load(str(beside) if beside.is_file() else str(given), check=False)
    for step in child.steps.values():
        if step.op == RUN.name and "plan" in step.with_:
            resolve(child, step.with_["plan"], seen=(*seen, child.name))
    validate(child)
    return child


_Path = tuple[str | int, ...]
#: The C parser where PyYAML has it: ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SUFFIXES = (".yaml", ".yml", ".json")
#: The most nodes that YAML aliases may add; an alias bomb exceeds any real plan.
_MAX_EXPANDED = 50_000


#: The deepest nesting of a file; plans have about ten levels.
_MAX_DEPTH = 64
_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))


class _NotJsonError(PlanError):
    """JSON with a non-standard constant."""


class _TooDeepError(PlanError):
    """Nesting that is too deep for any parser."""


class _Document:
    """A parsed file, with the line of each part."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.lines: dict[_Path, int] = {}
        self._text = text
        self._nodes = 0
        self._most = _MAX_EXPANDED
        self._loader = yaml.SafeLoader("")
        try:
            self.data = self._from_yaml()
        except _TooDeepError:
            raise
        except PlanError:
            # JSON is parsed as YAML, too, for the line numbers; where the two differ, JSON takes precedence.
            self.data = self._from_json()
            if self.data is None:
                raise
        else:
            self.data = self._from_json() or self.data

    def _from_json(self) -> Any:
        """The text as JSON; None if it is not JSON, or has duplicate keys."""
        if not self._text.lstrip().startswith("{"):
            return None
        try:
            data = json.loads(self._text, object_pairs_hook=_once, parse_constant=_no_constant)
            json.dumps(data, ensure_ascii=False).encode()  # rejects lone surrogates
            return data
        except _NotJsonError as error:
            raise PlanError(error.problems, source=self.source) from None
        except (ValueError, RecursionError):
            return None

    def _from_yaml(self) -> Any:
        try:
            self._measure(_LOADER)
            root = yaml.compose(self._text, Loader=_LOADER)
        except yaml.YAMLError as error:
            self._measure_a_refused_text()
            raise self._broken(error) from None
        except UnicodeError:  # a lone surrogate in text from Python
            raise self._problem("the text is not UTF-8", None) from None
        return None if root is None else self._build(root, ())

    def _measure_a_refused_text(self) -> None:
        """Raise _TooDeepError if the parser's own limit has hidden that the nesting exceeds ours.

        Some versions of the C parser have such a limit, and read one line ahead of their events. Python's parser has
        none but is slow, so it only parses a text with enough brackets in a line.
        """
        if any(line.count("[") + line.count("{") > _MAX_DEPTH for line in self._text.splitlines()):
            with contextlib.suppress(yaml.YAMLError):
                self._measure(yaml.SafeLoader)

    def _measure(self, loader: Any) -> None:
        """Reject too deep nesting before the recursive build."""
        depth = 0
        for event in yaml.parse(self._text, Loader=loader):
            self._most += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else None
                    raise _TooDeepError([Problem("nested too deeply", line=line)], source=self.source)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _broken(self, error: yaml.YAMLError) -> PlanError:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line + 1 if mark is not None else None
        if "nesting depth" in what:
            return _TooDeepError([Problem("nested too deeply", line=line)], source=self.source)
        if isinstance(error, yaml.reader.ReaderError):
            # The position is in bytes or characters, depending on the parser.
            line = self._text.count("\n", 0, self._text.find(chr(error.character))) + 1
            what = f"the character #x{error.character:04x} is not allowed"
        return self._problem(f"invalid YAML: {what}", line)

    def _problem(self, message: str, line: int | None, step: str | None = None) -> PlanError:
        return PlanError([Problem(message, step=step, line=line)], source=self.source)

    def _build(self, node: yaml.Node, path: _Path) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > self._most or len(path) > _MAX_DEPTH:
            raise self._problem("the aliases expand to a file that is too large", line)
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return dict(self._items(node, path))
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._build(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, path)
        raise self._problem(f"the tag {node.tag} is not allowed", line, _step_of(path))

    def _items(self, node: yaml.MappingNode, path: _Path) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:null":
                raise self._problem("a key must be a scalar", line, _step_of(path))
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._problem("merge keys are not supported", line, _step_of(path))
            # A step named 1 or on is text, too.
            name = str(key_node.value)
            if name in seen:
                if path == ("steps",):
                    raise self._problem("duplicate step name", line, name)
                raise self._problem(f"duplicate key {name!r}", line, _step_of(path))
            seen.add(name)
            self.lines[(*path, name)] = line
            yield name, self._build(value_node, (*path, name))

    def _scalar(self, node: yaml.ScalarNode, path: _Path) -> Any:
        if node.tag == "tag:yaml.org,2002:str":
            return node.value
        try:
            value = self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            what = str(getattr(error, "problem", None) or error)
            raise self._problem(what, node.start_mark.line + 1, _step_of(path)) from None
        if isinstance(value, float) and not math.isfinite(value):
            what = f"{node.value} is not a valid JSON number"
            raise self._problem(what, node.start_mark.line + 1, _step_of(path))
        # Dates are the only YAML scalar without a JSON equivalent.
        return value if isinstance(value, str | int | float | bool | type(None)) else str(node.value)

    def line(self, path: _Path) -> int | None:
        """The line of `path`, or of its nearest known parent."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def _step_of(path: _Path) -> str | None:
    return str(path[1]) if len(path) > 1 and path[0] == "steps" else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> None:
    raise _NotJsonError(f"{name} is not a valid JSON number")


def parse(text: str, *, source: str = "plan", base_dir: str = ".", check: bool = True) -> Plan:
    """Parse a plan from YAML or JSON text. Raises PlanError with every problem and its line.

    Relative paths in the plan begin in the folder `base_dir`. `source` is the name of the text in errors. With
    `check=False`, the plan is not validated beyond its types.
    """
    document = _Document(text, source)
    if not isinstance(document.data, dict):
        raise PlanError("the plan is empty" if document.data is None else "the plan is not a mapping", source=source)
    try:
        plan = Plan.model_validate(document.data)
    except ValidationError as error:
        found = [_from_pydantic(item, document) for item in error.errors()]
        found += _besides(document, error) if check else []
        raise PlanError(_unique(found), source=source) from None
    plan._base_dir = base_dir
    found = problems(plan, resolve) if check else []
    for problem in found:
        problem.line = document.line(problem.path)
    if found:
        raise PlanError(found, source=source)
    return plan


def _besides(document: _Document, error: ValidationError) -> list[Problem]:
    """Further problems of a plan, without the values that are already reported."""
    data = deepcopy(document.data)
    for item in error.errors():
        place: Any = data
        # Delete the last part that exists in the file; types and missing keys do not.
        for part in item["loc"]:
            if not isinstance(place, dict) or part not in place:
                break
            inner = place[part]
            if isinstance(inner, dict) and part != item["loc"][-1]:
                place = inner
                continue
            del place[part]
            break
    try:
        found = problems(Plan.model_validate(data), resolve)
    except (ValidationError, PlanError):
        return []
    for problem in found:
        problem.line = document.line(problem.path)
    return found


def _unique(found: list[Problem]) -> list[Problem]:
    """The first problem of each path, as a union reports each of its members."""
    return list({problem.path: problem for problem in reversed(found)}.values())[::-1]


#: Parts of a pydantic location that name types, not parts of the file.
_INSIDE = ("function-", "UndoSpec", "literal[", "[key]")


def _from_pydantic(item: Any, document: _Document) -> Problem:
    loc = item["loc"]
    path: _Path = (*loc[:2], *(part for part in loc[2:] if not str(part).startswith(_INSIDE)))
    step = _step_of(path)
    inside = [str(part) for part in (path[2:] if step else path)]
    if item["type"] == "extra_forbidden":
        message = f"unknown field {inside[-1]!r}" if inside else "unknown field"
    elif item["type"] == "missing":
        message = f"the field {inside[-1]!r} is missing" if inside else "a field is missing"
    elif item["type"] in {"dict_type", "model_type"}:
        message = f"{'.'.join(inside)}: must be a mapping" if inside else "must be a mapping"
    else:
        message = f"{'.'.join(inside)}: {plain(item['msg'])}" if inside else plain(item["msg"])
    return Problem(message, step=step, line=document.line(path), path=path)


def read_text(path: Path) -> str:
    """Read the text of a plan or parameter file. Raises PlanError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot be read: {error.strerror}", source=str(path)) from None
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"the file has {len(data)} bytes; at most {MAX_PLAN_BYTES} are allowed", source=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PlanError([Problem("the text is not UTF-8", line=line)], source=str(path)) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a parameter file: one YAML or JSON mapping. Raises PlanError."""
    data = _Document(read_text(path), str(path)).data
    if not isinstance(data, dict):
        raise PlanError("the file is not a mapping of parameters", source=str(path))
    return data


def load(name: str, *, check: bool = True) -> Plan:
    """Load a plan from a file, or by name from the folders of `LONGSHORE_PLANS` and from packages.

    A package provides a plan with an entry point of the group `longshore.plans`: a Plan, or a function that returns
    one. Raises UnknownName if no such plan exists. With `check`, raises PlanError for an invalid plan.
    """
    path = Path(name)
    if path.is_file() or path.suffix in _SUFFIXES or os.sep in name:
        return _load_file(path, check=check)
    if (file := where_stored(name)) is not None:
        return _load_file(file, check=check)
    for entry in entry_points(group="longshore.plans", name=name):
        offered = entry.load()
        plan = offered if isinstance(offered, Plan) else offered()
        if check:
            validate(plan)
        return plan
    known = ", ".join(stored()) or "none"
    raise UnknownName(
        f"no plan {name!r}: neither a file nor a stored plan",
        remedy=f"give a file, or set LONGSHORE_PLANS (stored: {known})",
    )


def where_stored(name: str) -> Path | None:
    """The file of a stored plan; None for a plan of a package and an unknown one."""
    for folder in filter(None, get_settings().plans.split(os.pathsep)):
        for suffix in _SUFFIXES:
            if (found := Path(folder) / f"{name}{suffix}").is_file():
                return found
    return None


def _load_file(path: Path, *, check: bool) -> Plan:
    return parse(read_text(path), source=str(path), base_dir=str(path.parent), check=check)


def stored() -> list[str]:
    """The names of all stored plans, sorted."""
    names = {entry.name for entry in entry_points(group="longshore.plans")}
    for folder in get_settings().plans.split(os.pathsep):
        if folder and Path(folder).is_dir():
            names |= {path.stem for path in Path(folder).iterdir() if path.suffix in _SUFFIXES}
    return sorted(names)


def schema() -> dict[str, Any]:
    """The JSON Schema of a plan, for editors."""
    made = Plan.model_json_schema(by_alias=True)
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "Longshore plan"
    # Editors complete the known names; an operation of an application is any other text.
    for part in ("Step", "UndoSpec"):
        op = made["$defs"][part]["properties"]["op"]
        del op["type"]
        op["anyOf"] = [{"enum": list(all_operations())}, {"type": "string"}]
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]
