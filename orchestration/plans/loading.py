"""Plans from files and by name, with the line of everything that is wrong in them."""

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
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.validation import problems
from longshore.orchestration.settings import MAX_PLAN_BYTES, get_settings

#: Plans in plans in plans.
_DEEPEST = 8


def validate(plan: Plan) -> None:
    """Raise PlanError with every problem of the plan, and of the plans that its steps run."""
    if found := problems(plan, resolve):
        raise PlanError(found)


def resolve(parent: Plan, given: Any, *, seen: tuple[str, ...] = ()) -> Plan:
    """The plan that a step names, or writes out, checked. Raises PlanError, UnknownName, UsageError."""
    if len(seen) >= _DEEPEST:
        raise UsageError(f"plans lie in each other more than {_DEEPEST} deep: {' → '.join(seen)}")
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
#: Nodes by which following the aliases may make a file larger; a bomb of aliases grows far beyond any real plan.
_MAX_EXPANDED = 50_000


#: Levels of a file; a plan has about ten.
_MAX_DEPTH = 64
_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))


class _NotJsonError(PlanError):
    """JSON, but for what its readers make of it beyond the standard."""


class _TooDeepError(PlanError):
    """No reader of anything should go on with it."""


class _Document:
    """A parsed file and where each part of it stands."""

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
            # JSON is read as YAML for the sake of the lines; where the two differ, JSON counts.
            self.data = self._from_json()
            if self.data is None:
                raise
        else:
            self.data = self._from_json() or self.data

    def _from_json(self) -> Any:
        """The text as JSON; None if it is not JSON, or names something twice."""
        if not self._text.lstrip().startswith("{"):
            return None
        try:
            data = json.loads(self._text, object_pairs_hook=_once, parse_constant=_no_constant)
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is no text
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
        except UnicodeError:  # half a surrogate pair, of a text that was built in Python
            raise self._problem("this is not UTF-8 text", None) from None
        return None if root is None else self._build(root, ())

    def _measure_a_refused_text(self) -> None:
        """Raise _TooDeepError where a limit of the parser's own has hidden that the nesting passes ours.

        The C parser of some versions has such a limit, and reads one line ahead of its events; Python's has none, and
        is slow. So it reads only a text with a line that has brackets enough.
        """
        if any(line.count("[") + line.count("{") > _MAX_DEPTH for line in self._text.splitlines()):
            with contextlib.suppress(yaml.YAMLError):
                self._measure(yaml.SafeLoader)

    def _measure(self, loader: Any) -> None:
        """Refuse what is nested too deeply before it is built: the builder calls itself."""
        depth = 0
        for event in yaml.parse(self._text, Loader=loader):
            self._most += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else None
                    raise _TooDeepError([Problem("it is nested too deeply", line=line)], source=self.source)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _broken(self, error: yaml.YAMLError) -> PlanError:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line + 1 if mark is not None else None
        if "nesting depth" in what:
            return _TooDeepError([Problem("it is nested too deeply", line=line)], source=self.source)
        if isinstance(error, yaml.reader.ReaderError):
            # Its position is one of bytes or of characters, as the parser is C's or Python's.
            line = self._text.count("\n", 0, self._text.find(chr(error.character))) + 1
            what = f"the character #x{error.character:04x} is not allowed"
        return self._problem(f"this is not YAML: {what}", line)

    def _problem(self, message: str, line: int | None, step: str | None = None) -> PlanError:
        return PlanError([Problem(message, step=step, line=line)], source=self.source)

    def _build(self, node: yaml.Node, path: _Path) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > self._most or len(path) > _MAX_DEPTH:
            raise self._problem("its aliases make it too large", line)
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
                raise self._problem("a key must be a word", line, _step_of(path))
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._problem("merge keys are not supported", line, _step_of(path))
            # A step named 1 or on is text all the same.
            name = str(key_node.value)
            if name in seen:
                if path == ("steps",):
                    raise self._problem("there are two steps of this name", line, name)
                raise self._problem(f"{name!r} stands here twice", line, _step_of(path))
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
            what = f"{node.value} is not a number that JSON has"
            raise self._problem(what, node.start_mark.line + 1, _step_of(path))
        # Dates are the one scalar of YAML that JSON does not have.
        return value if isinstance(value, str | int | float | bool | type(None)) else str(node.value)

    def line(self, path: _Path) -> int | None:
        """The line of the nearest known place on the way to `path`."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def _step_of(path: _Path) -> str | None:
    return str(path[1]) if len(path) > 1 and path[0] == "steps" else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(name: str) -> None:
    raise _NotJsonError(f"{name} is not a number that JSON has")


def parse(text: str, *, source: str = "plan", base_dir: str = ".", check: bool = True) -> Plan:
    """A plan from YAML or JSON text (JSON is YAML). PlanError has every problem with its line.

    `base_dir` is the folder that its relative paths are found in.
    """
    document = _Document(text, source)
    if not isinstance(document.data, dict):
        raise PlanError("it is empty" if document.data is None else "it is not a mapping", source=source)
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
    """What else is wrong with a plan, the values left out that are told of already."""
    data = deepcopy(document.data)
    for item in error.errors():
        place: Any = data
        # The last part that is a place in the file: types and keys that are missing are none.
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
    """A union reports each of its members; the first says enough."""
    return list({problem.path: problem for problem in reversed(found)}.values())[::-1]


#: What pydantic puts between the parts of a place: names of types, not of anything in the file.
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
    """A plan's or parameter file's text; PlanError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot be read: {error.strerror}", source=str(path)) from None
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"{len(data)} bytes are more than the {MAX_PLAN_BYTES} that a plan may have", source=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PlanError([Problem("this is not UTF-8 text", line=line)], source=str(path)) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """A file of parameters: one YAML or JSON mapping."""
    data = _Document(read_text(path), str(path)).data
    if not isinstance(data, dict):
        raise PlanError("it is not a mapping of parameters", source=str(path))
    return data


def load(name: str, *, check: bool = True) -> Plan:
    """A plan by its file, or by its name in the folders of `LONGSHORE_PLANS` and in packages.

    A package offers a plan by an entry point of the group `longshore.plans`: a Plan, or a function
    that makes one.
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
    """The file of a stored plan; None for one of a package, or of nobody."""
    for folder in filter(None, get_settings().plans.split(os.pathsep)):
        for suffix in _SUFFIXES:
            if (found := Path(folder) / f"{name}{suffix}").is_file():
                return found
    return None


def _load_file(path: Path, *, check: bool) -> Plan:
    return parse(read_text(path), source=str(path), base_dir=str(path.parent), check=check)


def stored() -> list[str]:
    """The names of all plans that can be started by name, sorted."""
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
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]
