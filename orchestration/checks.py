"""Everything that can be wrong with a plan, found before anything is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from longshore.orchestration import templates
from longshore.orchestration.compiled import find_cycle
from longshore.orchestration.errors import Problem, UnknownName
from longshore.orchestration.operations import Operation, Params, find
from longshore.orchestration.plan import NAME, Plan, Step, UndoSpec
from longshore.orchestration.settings import MAX_STEPS


def problems(plan: Plan) -> list[Problem]:
    """All that is wrong, in the order of the file; empty for a plan that can be run."""
    found = list(_whole(plan))
    if found:
        return found  # levels, and so what is upstream, have no meaning yet
    for name, step in plan.steps.items():
        found += _step(plan, name, step)
    return found


def _whole(plan: Plan) -> Iterator[Problem]:
    if not re.fullmatch(NAME, plan.name):
        yield Problem(f"the plan's name {plan.name!r} must match {NAME}", path=("name",))
    if not plan.steps:
        yield Problem("the plan has no steps", path=("steps",))
    if len(plan.steps) > MAX_STEPS:
        yield Problem(f"{len(plan.steps)} steps are more than the {MAX_STEPS} that a plan may have", path=("steps",))
        return
    for name, step in plan.steps.items():
        at: tuple[str | int, ...] = ("steps", name)
        if not re.fullmatch(NAME, name):
            yield Problem(f"the name must match {NAME}", step=name, path=at)
        for dependency in step.after:
            if dependency not in plan.steps:
                near = get_close_matches(dependency, plan.steps, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield Problem(
                    f"comes after {dependency!r}, which is not in the plan{hint}",
                    step=name,
                    path=(*at, "after"),
                )
    if cycle := find_cycle(plan):
        yield Problem(
            f"the steps wait for each other: {' → '.join(cycle)}",
            step=cycle[0],
            path=("steps", cycle[0], "after"),
        )


def _upstream(plan: Plan, name: str) -> set[str]:
    """Every step that comes before this one."""
    seen: set[str] = set()
    stack = list(plan.steps[name].after)
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack += plan.steps[current].after
    return seen


def _step(plan: Plan, name: str, step: Step) -> Iterator[Problem]:
    at = ("steps", name)
    yield from _operation(plan, name, step.op, step.with_, at)
    if isinstance(step.undo, UndoSpec):
        undo_at = (*at, "undo")
        roots = templates.ROOTS | {"data", "before"}
        yield from _operation(plan, name, step.undo.op, step.undo.with_, undo_at, roots)
        if step.always:
            yield Problem("an always step is never undone, so its undo would never run", step=name, path=undo_at)


def _operation(
    plan: Plan,
    name: str,
    op: str,
    params: dict[str, Any],
    at: tuple[str | int, ...],
    roots: frozenset[str] = templates.ROOTS,
) -> Iterator[Problem]:
    try:
        operation = find(op)
    except UnknownName as error:
        yield Problem(str(error), step=name, path=(*at, "op"))
        return
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        yield Problem(f"its parameters are not what JSON can hold: {error}", step=name, path=(*at, "with"))
        return
    yield from (Problem(text, step=name, path=(*at, *where)) for text, where in _parameters(operation, params))
    for key, value in operation.templated(params).items():
        where = (*at, "with", key)
        try:
            refers = templates.references(value, roots)
        except templates.TemplateProblem as error:
            yield Problem(str(error), step=name, path=where)
            continue
        for unknown in sorted(refers.unknown):
            yield Problem(
                f"{key}: the template names {unknown!r}; it may use {', '.join(sorted(roots))}",
                step=name,
                path=where,
            )
        for param in sorted(refers.params - plan.params.keys()):
            yield Problem(f"{key}: the plan has no parameter {param!r}", step=name, path=where)
        # A plan of many steps with few templates must not pay for every step's ancestors.
        upstream = _upstream(plan, name) | ({name} if "data" in roots else set()) if refers.steps else set()
        for other in sorted(refers.steps - upstream):
            why = "which does not come before this step" if other in plan.steps else "which is not in the plan"
            yield Problem(f"{key}: the template looks at step {other!r}, {why}", step=name, path=where)


def _parameters(operation: Operation, params: dict[str, Any]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Check what is written; a value with a template in it is checked when it is rendered."""
    if not templates.has_template(operation.templated(params)):
        yield from _messages(operation, validation_error(operation.params, params))
        return
    literal = operation.literal(params)
    fields = operation.params.model_fields
    for name in params.keys() - fields.keys():
        yield f"{operation.name} has no parameter {name!r}; it has {', '.join(fields)}", ("with", name)
    for name, field in fields.items():
        if name not in params:
            if field.is_required():
                yield f"{operation.name} needs the parameter {name!r}", ("with",)
        elif name in literal or not templates.has_template(params[name]):
            error = _field_error(field, params[name])
            yield from _messages(operation, error, (name,))


def validation_error(model: type[Params], params: dict[str, Any]) -> ValidationError | None:
    """What pydantic has against the parameters, or None."""
    try:
        model.model_validate(params)
    except ValidationError as error:
        return error
    return None


def _field_error(field: FieldInfo, value: Any) -> ValidationError | None:
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        return error
    return None


def _messages(
    operation: Operation, error: ValidationError | None, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    if error is None:
        return
    for item in error.errors():
        where = (*prefix, *item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(operation.params.model_fields)
            yield f"{operation.name} has no parameter {where[-1]!r}; it has {known}", ("with", *where)
        elif item["type"] == "missing":
            yield f"{operation.name} needs the parameter {where[-1]!r}", ("with",)
        else:
            yield f"{'.'.join(map(str, where)) or operation.name}: {plain(item['msg'])}", ("with", *where)


def plain(message: str) -> str:
    """A pydantic message without its prefix."""
    return message.removeprefix("Value error, ")
