"""Everything that can be wrong with a plan, found before anything is stored."""

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
from longshore.orchestration.language.guards import LOOKS_AT_FAILURE
from longshore.orchestration.language.targets import ANY, is_several
from longshore.orchestration.operations import Operation, Params, Waits, celery_task, find, known, subplan
from longshore.orchestration.plans.compiled import CONTROL, CompiledPlan, find_cycle, target_of
from longshore.orchestration.plans.model import NAME, Plan, Step, UndoSpec
from longshore.orchestration.plans.policy import excessive_code
from longshore.orchestration.settings import MAX_STEPS, MAX_UNITS

#: Gives the plan that a step of another plan names or contains.
Resolve = Callable[[Plan, Any], Plan]
#: What is rendered before it is known where a step is done.
_NO_HOST = templates.ROOTS - {"host"}


def problems(plan: Plan, resolve: Resolve) -> list[Problem]:
    """Every problem, in the order of the file; empty for a plan that can be run. `resolve` gives the plan that a step
    names or contains, and raises a LongshoreError where it cannot.
    """
    if costly := excessive_code(plan):
        return [costly]
    found = list(_whole(plan))
    if len(plan.steps) > MAX_STEPS:
        return found
    in_order = not found
    for name, step in plan.steps.items():
        found += _step(plan, name, step, resolve)
    # Without an order of the steps there are no levels.
    return found + (list(_points_of_no_return(plan)) if in_order else [])


def _whole(plan: Plan) -> Iterator[Problem]:
    if not re.fullmatch(NAME, plan.name):
        yield Problem(f"the plan's name {plan.name!r} must match {NAME}", path=("name",))
    if plan.concurrency is not None:
        yield from _template(plan, "", "concurrency", plan.concurrency.key, ("concurrency", "key"), {"params"})
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
    if operation is not None and operation.waits in {Waits.PERSON, Waits.RUN} and step.retry is not None:
        yield Problem(f"{step.op} is not tried again, so it has no retry", step=name, path=(*at, "retry"))
    undo_by = getattr(operation.function, "undo_by", None) if operation is not None else None
    if undo_by is not None and known(undo_by) is None:
        yield Problem(f"the undo of {step.op} is the unknown operation {undo_by!r}", step=name, path=(*at, "op"))
    if step.op == subplan.RUN.name:
        yield from _sub_plan(plan, name, step, resolve)
    if step.op == celery_task.CELERY.name and step.timeout is None:
        yield Problem(
            "an application's task needs a timeout: without one, a lost task would be waited for for ever",
            step=name,
            path=at,
        )
    if isinstance(step.undo, UndoSpec):
        undo_at = (*at, "undo")
        roots = templates.ROOTS | {"data", "before"} | item
        yield from _operation(plan, name, step.undo.op, step.undo.with_, undo_at, roots)
        undo = known(step.undo.op)
        if undo is not None and undo.waits in {Waits.PERSON, Waits.RUN}:
            yield Problem(f"{undo.name} cannot be an undo: give one that acts by itself", step=name, path=undo_at)
        if step.always:
            yield Problem("an always step is never undone, so its undo would never run", step=name, path=undo_at)


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
            yield Problem(f"{op} cannot be done inside a container", step=name, path=where)


def _guards(plan: Plan, name: str, step: Step) -> Iterator[Problem]:
    for condition in step.when:
        where = ("steps", name, "when")
        expression = templates.braced(condition.if_)
        try:
            templates.references(expression)
        except templates.TemplateProblem as error:
            yield Problem(f"when: {condition.if_!r} is no expression: {error.why}", step=name, path=where)
            continue
        yield from _template(plan, name, "when", expression, where, templates.ROOTS | _item(step))
        if target_of(plan, name) == ANY and "host" in templates.references(expression, frozenset()).unknown:
            yield Problem(
                "when: it looks at host, and which worker will take the step is not known: give it a target",
                step=name,
                path=where,
            )
        yield from _condition(plan, name, expression, where)
    at_failure = [word for word in step.only_if if word in LOOKS_AT_FAILURE]
    if at_failure and step.after and not step.always and not any(_may_fail(plan, d) for d in step.after):
        yield Problem(
            f"only_if: {at_failure[0]} can never hold: each step before it ends the run when it fails; "
            "give one of them on_error: continue",
            step=name,
            path=("steps", name, "only_if"),
        )


def _condition(plan: Plan, name: str, expression: str, where: tuple[str, ...]) -> Iterator[Problem]:
    """A condition that always has the same answer is a mistake."""
    if not templates.is_lone(expression):
        yield Problem(
            f"when: {expression!r} is text, and text is true: write the condition without braces",
            step=name,
            path=where,
        )
    failed = templates.looks_for_failure_of(expression)
    if failed is not None and failed in plan.steps and not plan.steps[name].always and not _may_fail(plan, failed):
        yield Problem(
            f"when: it can never hold: step {failed!r} ends the run when it fails; give it on_error: continue",
            step=name,
            path=where,
        )


def _may_fail(plan: Plan, name: str) -> bool:
    """Whether the run can go on after something of the step has failed."""
    step = plan.steps.get(name)
    if step is None:
        return True  # that it is not there is told elsewhere
    return step.always or step.tolerate is not None or (step.on_error or plan.on_error) == "continue"


def _fan_out(plan: Plan, name: str, step: Step) -> Iterator[Problem]:
    at = ("steps", name)
    target = target_of(plan, name)
    if isinstance(step.foreach, str) and not templates.is_template(step.foreach):
        yield Problem(
            "foreach: it is neither a list nor a template that gives one, {{ … }}", step=name, path=(*at, "foreach")
        )
    elif isinstance(step.foreach, str) and not _is_lone(step.foreach):
        yield Problem("foreach: it can only give text, not a list: write one {{ expression }}", step=name, path=at)
    try:
        json.dumps(step.foreach, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        yield Problem(f"foreach: its items are not what JSON can hold: {error}", step=name, path=(*at, "foreach"))
    if step.foreach is not None:
        yield from _template(plan, name, "foreach", step.foreach, (*at, "foreach"), _NO_HOST)
    yield from _template(plan, name, "target", target, (*at, "target") if step.target else ("target",), _NO_HOST)
    if isinstance(step.foreach, list) and len(step.foreach) > MAX_UNITS:
        yield Problem(f"foreach: more than {MAX_UNITS} items", step=name, path=(*at, "foreach"))
    hosts = is_several(target)
    many = step.foreach is not None or hosts or templates.is_template(target)
    for word in ("max_parallel", "canary"):
        if getattr(step, word) is not None and not many:
            yield Problem(f"{word} is for a step with a foreach or several hosts", step=name, path=(*at, word))
    if step.on_no_host == "skip" and target == ANY:
        yield Problem("on_no_host is for a step with a target", step=name, path=(*at, "on_no_host"))
    operation = known(step.op)
    if hosts and operation is not None and operation.queue == CONTROL:
        yield Problem(f"{step.op} is done once, not on each host", step=name, path=at)


def _is_lone(text: str) -> bool:
    try:
        return templates.is_lone(text)
    except templates.TemplateProblem:
        return True  # broken, which is told elsewhere


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
                f"it is irreversible, and so must be alone in its level; {', '.join(others)} would run beside it",
                step=name,
                path=at,
            )
        if point.always:
            yield Problem("it is irreversible, and so cannot be an always step", step=name, path=at)
        if isinstance(point.step.undo, UndoSpec):
            yield Problem("it is irreversible, so its undo would never run", step=name, path=at)
        for step in compiled.steps:
            if step.level > point.level and isinstance(step.step.undo, UndoSpec):
                yield Problem(
                    f"it comes after {name!r}, the point of no return, so its undo would never run",
                    step=step.name,
                    path=("steps", step.name, "undo"),
                )


def _sub_plan(plan: Plan, name: str, step: Step, resolve: Resolve) -> Iterator[Problem]:
    """The other plan must be one that can be run, with these parameters as far as they are known."""
    at = ("steps", name, "with", "plan")
    try:
        child = resolve(plan, step.with_.get("plan"))
    except LongshoreError as error:
        yield Problem(f"its plan: {error}", step=name, path=at)
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
    """Whether a value's templates look only at what there is."""
    try:
        refers = templates.references(value, frozenset(roots))
    except templates.TemplateProblem as error:
        yield Problem(str(error), step=name, path=where)
        return
    for reference in sorted(refers.secrets, key=str):
        why = None if secret else f"{what}: secret() may not stand here: it would be seen"
        if reference is None:
            why = why or f"{what}: secret() takes one reference as it is written, and no filter: secret('env:NAME')"
        if why := why or secrets.problem(reference):
            yield Problem(why, step=name, path=where)
    for unknown in sorted(refers.unknown):
        hint = "; item is there in the parameters of a step with a foreach" if unknown == "item" else ""
        yield Problem(
            f"{what}: the template names {unknown!r}; it may use {', '.join(sorted(roots))}{hint}",
            step=name,
            path=where,
        )
    for param in sorted(refers.params - plan.params.keys()):
        yield Problem(f"{what}: the plan has no parameter {param!r}", step=name, path=where)
    if name not in plan.steps:
        return
    # A plan of many steps with few templates must not pay for every step's ancestors.
    upstream = _upstream(plan, name) | ({name} if own else set()) if refers.steps else set()
    for other in sorted(refers.steps - upstream):
        why = "which does not come before this step" if other in plan.steps else "which is not in the plan"
        yield Problem(f"{what}: the template looks at step {other!r}, {why}", step=name, path=where)


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
        yield Problem(f"its parameters are not what JSON can hold: {error}", step=name, path=(*at, "with"))
        return
    yield from (Problem(text, step=name, path=(*at, *where)) for text, where in _parameters(operation, params))
    for key, value in operation.templated(params).items():
        secret = key in operation.secrets
        yield from _template(plan, name, key, value, (*at, "with", key), roots, own="data" in roots, secret=secret)


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
