"""Validation of plans, before anything is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from longshore.orchestration.errors import LongshoreError, Problem, UnknownName, plain
from longshore.orchestration.language import secrets, templates
from longshore.orchestration.language.guards import LOOKS_AT_FAILURE, OnlyIf
from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.operations import Operation, Params, celery_task, find, known, subplan
from longshore.orchestration.plans.compiled import CONTROL, CompiledPlan, find_cycle, target_of
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.policy import excessive_code
from longshore.orchestration.plans.steps import NAME, Step, UndoSpec
from longshore.orchestration.settings import MAX_STEPS, MAX_UNITS

#: Loads the child plan that a step names or contains.
Resolve = Callable[[Plan, Any], Plan]
#: Root names of templates that are rendered before the host is known.
_NO_HOST = templates.ROOTS - {"host"}


def problems(plan: Plan, resolve: Resolve) -> list[Problem]:
    """Every problem of a plan, in the order of the file; empty for a valid plan. `resolve` loads a child plan, and
    raises a LongshoreError if it cannot.
    """
    if costly := excessive_code(plan):
        return [costly]
    found = list(_whole(plan))
    if len(plan.steps) > MAX_STEPS:
        return found
    in_order = not found
    for name, step in plan.steps.items():
        found += _step(plan, name, step, resolve)
    # Levels need a valid order of the steps.
    return found + (list(_points_of_no_return(plan)) if in_order else [])


def _whole(plan: Plan) -> Iterator[Problem]:
    if not re.fullmatch(NAME, plan.name):
        yield Problem(f"the plan's name {plan.name!r} must match {NAME}", path=("name",))
    if plan.concurrency is not None:
        yield from _template(plan, "", "concurrency", plan.concurrency.key, ("concurrency", "key"), {"params"})
    if not plan.steps:
        yield Problem("the plan has no steps", path=("steps",))
    if len(plan.steps) > MAX_STEPS:
        yield Problem(
            f"the plan has {len(plan.steps)} steps; at most {MAX_STEPS} are allowed: split the plan", path=("steps",)
        )
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
                    f"depends on {dependency!r}, which is not in the plan{hint}",
                    step=name,
                    path=(*at, "after"),
                )
    if cycle := find_cycle(plan):
        yield Problem(
            f"the steps form a cycle: {' → '.join(cycle)}",
            step=cycle[0],
            path=("steps", cycle[0], "after"),
        )


def _upstream(plan: Plan, name: str) -> set[str]:
    """All direct and indirect dependencies of a step."""
    seen: set[str] = set()
    stack = list(plan.steps[name].after)
    while stack:
        current = stack.pop()
        if current not in seen and current in plan.steps:
            seen.add(current)
            stack += plan.steps[current].after
    return seen


def _step(plan: Plan, name: str, step: Step, resolve: Resolve) -> Iterator[Problem]:
    at = ("steps", name)
    item = _item(step)
    yield from _operation(plan, name, step.op, step.with_, at, templates.ROOTS | item)
    yield from _inside(plan, name, step, templates.ROOTS | item)
    yield from _guards(plan, name, step)
    yield from _fan_out(plan, name, step)
    operation = known(step.op)
    if operation is not None and operation.waits.is_final and step.retry is not None:
        yield Problem(f"{step.op} is never retried: remove retry", step=name, path=(*at, "retry"))
    undo_by = getattr(operation.function, "undo_by", None) if operation is not None else None
    if undo_by is not None and known(undo_by) is None:
        yield Problem(f"the undo of {step.op} is the unknown operation {undo_by!r}", step=name, path=(*at, "op"))
    if step.op == subplan.RUN.name:
        yield from _sub_plan(plan, name, step, resolve)
    if step.op == celery_task.CELERY.name and step.timeout is None:
        yield Problem(
            "a Celery task needs a timeout, because a lost task never ends the step: set timeout",
            step=name,
            path=at,
        )
    yield from _result_fields(plan, name, step)
    if isinstance(step.undo, UndoSpec):
        undo_at = (*at, "undo")
        roots = templates.ROOTS | {"data", "before"} | item
        yield from _operation(plan, name, step.undo.op, step.undo.with_, undo_at, roots)
        undo = known(step.undo.op)
        if undo is not None and undo.waits.is_final:
            yield Problem(
                f"{undo.name} cannot be an undo, because it waits for an external event: use another operation",
                step=name,
                path=undo_at,
            )
        if step.always:
            yield Problem("an always step is never undone: remove undo", step=name, path=undo_at)


def _result_fields(plan: Plan, name: str, step: Step) -> Iterator[Problem]:
    """Problems of templates that read a field of a task's result which the data of its step cannot have."""
    undo = step.undo.with_ if isinstance(step.undo, UndoSpec) else {}
    try:
        read = [("steps", name, *path) for path in templates.paths(undo) if path[0] == "data"]
        read += templates.paths([step.with_, undo])
    except templates.TemplateProblem:
        return  # reported elsewhere
    for path in read:
        task = plan.steps.get(path[1]) if len(path) > 3 and path[0] == "steps" and path[2] == "data" else None
        if task is None or task.op != celery_task.CELERY.name or not task.with_.get("as_result"):
            continue
        if path[3] != "result":
            yield Problem(
                f"data.{path[3]} does not exist, because step {path[1]!r} stores the whole result of its task: "
                f"write data.result.{path[3]}",
                step=name,
                path=("steps", name),
            )


def _item(step: Step) -> set[str]:
    return {"item"} if step.foreach is not None else set()


def _inside(plan: Plan, name: str, step: Step, roots: frozenset[str] | set[str]) -> Iterator[Problem]:
    if step.in_ is None:
        return
    where = ("steps", name, "in")
    yield from _template(plan, name, "in", step.in_.container, where, roots)
    for op in [step.op, *([step.undo.op] if isinstance(step.undo, UndoSpec) else [])]:
        operation = known(op)
        if operation is not None and not operation.inside:
            yield Problem(f"{op} cannot run inside a container", step=name, path=where)


def _guards(plan: Plan, name: str, step: Step) -> Iterator[Problem]:
    for condition in step.when:
        where = ("steps", name, "when")
        expression = templates.braced(condition.if_)
        try:
            templates.references(expression)
        except templates.TemplateProblem as error:
            yield Problem(f"when: {condition.if_!r} is not a valid expression: {error.why}", step=name, path=where)
            continue
        yield from _template(plan, name, "when", expression, where, templates.ROOTS | _item(step))
        if target_of(plan, name) == ANY and "host" in templates.references(expression, frozenset()).unknown:
            yield Problem(
                "when: the condition reads host, but the step has no target: set target",
                step=name,
                path=where,
            )
        yield from _condition(plan, name, expression, where)
    for word in step.only_if:
        in_units = word is not OnlyIf.FAILED
        if word not in LOOKS_AT_FAILURE or not step.after or step.always:
            continue
        if not any(_may_fail(plan, dependency, in_units=in_units) for dependency in step.after):
            yield Problem(
                f"only_if: {word} can never hold, because each dependency ends the run on failure: "
                "set on_error: continue on one of them",
                step=name,
                path=("steps", name, "only_if"),
            )
            break


def _condition(plan: Plan, name: str, expression: str, where: tuple[str, ...]) -> Iterator[Problem]:
    """Problems of conditions with a constant answer."""
    if not templates.is_lone(expression):
        yield Problem(
            f"when: {expression!r} renders to text, which is always true: write the condition without braces",
            step=name,
            path=where,
        )
    failed = templates.looks_for_failure_of(expression)
    if failed is not None and failed in plan.steps and not plan.steps[name].always and not _may_fail(plan, failed):
        yield Problem(
            f"when: the condition can never hold, because step {failed!r} ends the run on failure: "
            "set on_error: continue on it",
            step=name,
            path=where,
        )


def _may_fail(plan: Plan, name: str, *, in_units: bool = False) -> bool:
    """Whether the run can continue after a failure of the step, or with `in_units` of units that it tolerates."""
    step = plan.steps.get(name)
    if step is None:
        return True  # a missing step is reported elsewhere
    tolerated = in_units and step.tolerate is not None
    return step.always or tolerated or (step.on_error or plan.on_error) == "continue"


def _fan_out(plan: Plan, name: str, step: Step) -> Iterator[Problem]:
    at = ("steps", name)
    target = target_of(plan, name)
    if isinstance(step.foreach, str) and not templates.is_template(step.foreach):
        yield Problem("foreach: expected a list, or a template for one: {{ … }}", step=name, path=(*at, "foreach"))
    elif isinstance(step.foreach, str) and not _is_lone(step.foreach):
        yield Problem(
            "foreach: the template renders to text, not a list: write a single {{ expression }}", step=name, path=at
        )
    try:
        json.dumps(step.foreach, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        yield Problem(f"foreach: the items cannot be represented as JSON: {error}", step=name, path=(*at, "foreach"))
    if step.foreach is not None:
        yield from _template(plan, name, "foreach", step.foreach, (*at, "foreach"), _NO_HOST)
    yield from _template(plan, name, "target", target, (*at, "target") if step.target else ("target",), _NO_HOST)
    if isinstance(step.foreach, list) and len(step.foreach) > MAX_UNITS:
        yield Problem(f"foreach: at most {MAX_UNITS} items are allowed", step=name, path=(*at, "foreach"))
    hosts = is_several(target)
    many = step.foreach is not None or hosts or templates.is_template(target)
    for word in ("max_parallel", "canary"):
        if getattr(step, word) is not None and not many:
            yield Problem(f"{word} requires a foreach or several hosts", step=name, path=(*at, word))
    if step.on_no_host == "skip" and target == ANY:
        yield Problem("on_no_host requires a target", step=name, path=(*at, "on_no_host"))
    operation = known(step.op)
    if hosts and operation is not None and operation.queue == CONTROL:
        yield Problem(f"{step.op} runs once, not on each host: target a single host", step=name, path=at)


def _is_lone(text: str) -> bool:
    try:
        return templates.is_lone(text)
    except templates.TemplateProblem:
        return True  # a broken template is reported elsewhere


def _points_of_no_return(plan: Plan) -> Iterator[Problem]:
    points = [name for name, step in plan.steps.items() if step.irreversible]
    if not points:
        return
    compiled = CompiledPlan(plan, lenient=True)
    for name in points:
        point = compiled.steps[compiled.index[name]]
        at = ("steps", name, "irreversible")
        others = [compiled.steps[i].name for i in compiled.levels[point.level] if i != point.index]
        if others:
            yield Problem(
                f"an irreversible step must be alone in its level, but {', '.join(others)} would run beside it: "
                "order them with after",
                step=name,
                path=at,
            )
        if point.always:
            yield Problem("an irreversible step cannot be an always step: remove one of the two", step=name, path=at)
        if isinstance(point.step.undo, UndoSpec):
            yield Problem("an irreversible step is never undone: remove undo", step=name, path=at)
        for step in compiled.steps:
            if step.level > point.level and isinstance(step.step.undo, UndoSpec):
                yield Problem(
                    f"the undo would never run after {name!r}, the point of no return: remove undo",
                    step=step.name,
                    path=("steps", step.name, "undo"),
                )


def _sub_plan(plan: Plan, name: str, step: Step, resolve: Resolve) -> Iterator[Problem]:
    """Problems of a child plan and of the parameters given to it."""
    at = ("steps", name, "with", "plan")
    try:
        child = resolve(plan, step.with_.get("plan"))
    except LongshoreError as error:
        yield Problem(f"child plan: {error}", step=name, path=at)
        return
    given = step.with_.get("params", {})
    if isinstance(given, dict):
        for key in sorted(given.keys() - child.params.keys()):
            yield Problem(f"the plan {child.name!r} has no parameter {key!r}", step=name, path=at)
        for key, param in child.params.items():
            if param.required and key not in given:
                yield Problem(f"the plan {child.name!r} needs the parameter {key!r}", step=name, path=at)


def _template(
    plan: Plan,
    name: str,
    what: str,
    value: Any,
    where: tuple[str | int, ...],
    roots: frozenset[str] | set[str] = templates.ROOTS,
    *,
    own: bool = False,
    secret: bool = False,
) -> Iterator[Problem]:
    """Problems of the references in a value's templates."""
    try:
        refers = templates.references(value, frozenset(roots))
    except templates.TemplateProblem as error:
        yield Problem(str(error), step=name, path=where)
        return
    for reference in sorted(refers.secrets, key=str):
        why = None if secret else f"{what}: secret() is not allowed here, because the value would be visible"
        if reference is None:
            why = why or f"{what}: secret() takes one literal reference and no filter: write secret('env:NAME')"
        if why := why or secrets.problem(reference):
            yield Problem(why, step=name, path=where)
    for unknown in sorted(refers.unknown):
        hint = "; item requires a foreach" if unknown == "item" else ""
        yield Problem(
            f"{what}: the template uses the unknown name {unknown!r}; allowed are {', '.join(sorted(roots))}{hint}",
            step=name,
            path=where,
        )
    for param in sorted(refers.params - plan.params.keys()):
        yield Problem(f"{what}: the plan has no parameter {param!r}", step=name, path=where)
    if name not in plan.steps:
        return
    # Computed on demand, as a large plan with few templates must not compute all ancestors.
    upstream = _upstream(plan, name) | ({name} if own else set()) if refers.steps else set()
    for other in sorted(refers.steps - upstream):
        if other not in plan.steps:
            why = "which is not in the plan"
        elif other == name or name in _upstream(plan, other):
            why = "which does not run before this step"
        else:
            why = f"which does not run before this step: add {other!r} to its after"
        yield Problem(f"{what}: the template reads step {other!r}, {why}", step=name, path=where)


def _operation(
    plan: Plan,
    name: str,
    op: str,
    params: dict[str, Any],
    at: tuple[str | int, ...],
    roots: frozenset[str] | set[str] = templates.ROOTS,
) -> Iterator[Problem]:
    try:
        operation = find(op)
    except UnknownName as error:
        yield Problem(str(error), step=name, path=(*at, "op"))
        return
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        yield Problem(f"the parameters cannot be represented as JSON: {error}", step=name, path=(*at, "with"))
        return
    yield from (Problem(text, step=name, path=(*at, *where)) for text, where in _parameters(operation, params))
    of_undo = "data" in roots
    for key, value in operation.templated(params).items():
        secret, what = key in operation.secrets, f"undo: {key}" if of_undo else key
        yield from _template(plan, name, what, value, (*at, "with", key), roots, own=of_undo, secret=secret)


def _parameters(operation: Operation, params: dict[str, Any]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Problems of literal parameters; values with templates are checked when rendered."""
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
    """The validation error of the parameters, or None."""
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
