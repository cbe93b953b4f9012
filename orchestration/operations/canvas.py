"""The tasks of a Celery canvas as steps: a task's result becomes the first argument of the next one, as Celery does it.

`convert` follows `celery.canvas`: partial arguments and immutable signatures, groups inside of groups as one list,
groups of one task inside of a chain as that task, and a group before a task as the header of a chord.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from longshore.orchestration.errors import UsageError
from longshore.orchestration.language import templates
from longshore.orchestration.language.expressions import Expression, as_data
from longshore.orchestration.operations.celery_task import CELERY, as_params
from longshore.orchestration.operations.timer import TIMER

if TYPE_CHECKING:
    from celery import Signature

#: The compensation of a task: a task or its name, called with the same arguments; a signature of its own; or none.
Compensation = Any
#: The compensations that `longshore.orchestration.celery.compensates` registered, by the name of the task.
COMPENSATIONS: dict[str, Compensation] = {}

_MAPS = {"celery.map": False, "celery.starmap": True}
_COMPOSED = {"chain", "group", "chord", "chunks"}
#: Options that Celery sets where it prepares a canvas, which a plan replaces.
_IDS = frozenset({"task_id", "root_id", "parent_id", "group_id", "group_index", "chord", "chord_size", "chain"})
_LONGEST_NAME = 48


@dataclass(frozen=True)
class TaskResult:
    """The result of a step, as an argument."""

    step: str

    def template(self, *, of_undo: bool) -> str:
        """The template of the result; that of an undo has a default, as the plan demands of it."""
        default = " | default(none)" if of_undo else ""
        return f"{{{{ steps[{self.step!r}].data.result{default} }}}}"


@dataclass(frozen=True)
class CanvasStep:
    """A step to be added to a plan."""

    name: str
    op: str
    params: dict[str, Any]
    after: tuple[str, ...]
    #: Parameters of the compensation, by the same operation.
    undo: dict[str, Any] | Literal["none"] | None = None


@dataclass
class Converted:
    """The steps of a canvas, and its result: a TaskResult, or a list of results."""

    steps: list[CanvasStep] = field(default_factory=list)
    result: Any = None

    def value(self, data: Mapping[str, Any]) -> Any:
        """The result, from the data of the steps by name."""

        def known(result: Any) -> Any:
            if isinstance(result, TaskResult):
                return data[result.step]["result"]
            return [known(each) for each in result] if isinstance(result, list) else result

        return known(self.result)


def convert(
    signature: Signature[Any],
    args: Sequence[Any] = (),
    undo: Mapping[Any, Compensation] | None = None,
    idempotent: Collection[Any] = (),
) -> Converted:
    """The steps of a signature of any shape, called with `args`. `undo` maps tasks, or their names, to compensations;
    the tasks in `idempotent`, or their names, run again after the loss of a worker.

    Raises UsageError for an option that a step cannot keep, for an argument that is not JSON, and for a name in `undo`
    or `idempotent` that no task of the canvas has.
    """
    canvas = _Canvas({_task_name(task): each for task, each in (undo or {}).items()}, set(map(_task_name, idempotent)))
    canvas.found.result, _ = canvas.add(signature, list(args), ())
    for option, named in (("undo", canvas.undo.keys()), ("idempotent", canvas.idempotent)):
        if unused := sorted(named - canvas.tasks):
            raise UsageError(
                f"{option} names the task {unused[0]}, which is not in the canvas",
                remedy=f"name one of its tasks: {', '.join(sorted(canvas.tasks))}",
            )
    return canvas.found


def _task_name(task: Any) -> str:
    return task if isinstance(task, str) else str(task.name)


class _Canvas:
    """A conversion under way. Each method returns the result of a part, and the steps that end it."""

    def __init__(self, undo: Mapping[str, Compensation], idempotent: Set[str]) -> None:
        self.undo = undo
        self.idempotent = idempotent
        self.found = Converted()
        self.tasks: set[str] = set()
        self._names: set[str] = set()

    def add(self, signature: Any, given: list[Any], after: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """Add the steps of a signature that begins with the arguments `given`, after some steps."""
        if not isinstance(signature, dict):
            raise UsageError(f"{signature!r} is not a signature", remedy="pass one, such as task.s(42)")
        from celery.canvas import Signature  # noqa: PLC0415 - 0.2 s that plans without a canvas need not pay

        known: Any = signature if isinstance(signature, Signature) else Signature.from_dict(signature)
        kind = known.subtask_type or known.task.removeprefix("celery.")
        if kind in _COMPOSED:
            if lost := sorted(key for key, value in known.options.items() if key not in _IDS and value is not None):
                raise UsageError(
                    f"the {kind} has the option {lost[0]}, which belongs to a task",
                    remedy=_REMEDIES.get(lost[0], f"set {lost[0]} on each task of the {kind}"),
                )
            given = [*([] if known.immutable else given), *known.args]
        match kind:
            case "chain":
                return self._chain(known, given, after)
            case "group":
                return self._group(list(known.tasks), given, after)
            case "chord":
                return self._chord(known, given, after)
            case "chunks":
                return self._group(list(known.group().tasks), [], after)
        if known.task in _MAPS:
            return self._map(known, after)
        return self._task(known, [*([] if known.immutable else given), *known.args], after)

    def _chain(self, signature: Any, given: list[Any], after: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        links = list(_links(signature))
        full = [link for link in links if not _is_empty_group(link)] or links[-1:]
        result: Any = None
        for link in full:
            result, after = self.add(link, given, after)
            given = [result]
        return result, after

    def _group(self, tasks: Sequence[Any], given: list[Any], after: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        results: list[Any] = []
        ends: list[str] = []
        for task in tasks:
            result, last = self.add(task, given, after)
            # The members of a group inside of a group are members of the outer one.
            results += result if task.get("subtask_type") == "group" else [result]
            ends += last
        return results, tuple(dict.fromkeys(ends)) or after

    def _chord(self, signature: Any, given: list[Any], after: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        if signature.kwargs.get("kwargs"):
            raise UsageError("the chord has keyword arguments", remedy="give them to each task of its header")
        header = signature.tasks
        members = list(header if isinstance(header, list | tuple) else header.tasks)
        results, ends = self._group(members, given, after)
        return self.add(signature.body, [results], ends)

    def _map(self, signature: Any, after: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """A step for each item, one after the other, as the one task of Celery calls them."""
        from celery.canvas import Signature  # noqa: PLC0415 - see `add`

        inner, results = signature.kwargs["task"], []
        for item in signature.kwargs["it"]:
            args = list(item) if _MAPS[signature.task] else [item]
            each = Signature(inner["task"], app=signature.app, **signature.options)
            result, after = self._task(each, args, after)
            results.append(result)
        return results, after

    def _task(self, signature: Any, args: list[Any], after: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        where = f"the signature of {signature.task}"
        options = dict(signature.options)
        if lost := sorted(key for key in options.keys() & _REMEDIES.keys() if options[key]):
            raise UsageError(f"{where} has the option {lost[0]}, which a step cannot keep", remedy=_REMEDIES[lost[0]])
        self.tasks.add(signature.task)
        name = self._name(signature.task)
        if delay := _delay(options.pop("countdown", None), options.pop("eta", None)):
            step = CanvasStep(self._name(f"{name}-delay"), TIMER.name, delay, after)
            self.found.steps.append(step)
            after = (step.name,)
        plain = signature.clone()
        plain.args, plain.options = (), options
        params = as_params(plain) | {"as_result": True}
        if signature.task in self.idempotent:
            params["idempotent"] = True

        def called(of_undo: bool) -> dict[str, Any]:
            given: dict[str, Any] = {"args": [_argument(each, where, of_undo) for each in args]}
            given["kwargs"] = {key: _argument(each, where, of_undo) for key, each in signature.kwargs.items()}
            return {key: value for key, value in given.items() if value}

        self.found.steps.append(
            CanvasStep(name, CELERY.name, params | called(False), after, self._undo(signature, called(True)))
        )
        return TaskResult(name), (name,)

    def _undo(self, signature: Any, called: dict[str, Any]) -> dict[str, Any] | Literal["none"] | None:
        compensation = self.undo.get(signature.task, COMPENSATIONS.get(signature.task))
        if compensation is None:
            return None
        if compensation == "none":
            return "none"
        if isinstance(compensation, dict):
            return as_params(compensation)  # type: ignore[arg-type]
        return as_params(signature.app.signature(_task_name(compensation))) | called

    def _name(self, task: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9_-]", "-", task.rpartition(".")[2]).lstrip("-_")[:_LONGEST_NAME] or "task"
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name)
        return name


def _links(chain: Any) -> Iterator[Any]:
    """The tasks of a chain: chains inside of it are parts of it, and a group of one task is that task."""
    for task in chain.tasks:
        if task.get("subtask_type") == "chain":
            yield from _links(task)
        elif task.get("subtask_type") == "group" and len(task.tasks) == 1:
            yield from _links_of(task.tasks[0])
        else:
            yield task


def _links_of(task: Any) -> Iterator[Any]:
    if task.get("subtask_type") == "chain":
        yield from _links(task)
    else:
        yield task


def _is_empty_group(task: Any) -> bool:
    return task.get("subtask_type") == "group" and not task.tasks


def _delay(countdown: float | None, eta: datetime | timedelta | str | None) -> dict[str, Any]:
    """The parameters of the timer of a delayed task; none without a delay."""
    if eta is not None:
        if isinstance(eta, timedelta):
            return {"delay": eta.total_seconds()}
        until = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        return {"until": (until if until.tzinfo else until.replace(tzinfo=UTC)).isoformat()}
    return {"delay": countdown} if countdown else {}


def _argument(value: Any, where: str, of_undo: bool) -> Any:
    """An argument as the data of a plan. Text with braces stays text, since Celery renders no templates."""
    if isinstance(value, TaskResult):
        return value.template(of_undo=of_undo)
    if isinstance(value, Expression):
        return as_data(value)
    if isinstance(value, str):
        return f"{{{{ {json.dumps(value, ensure_ascii=False)} }}}}" if templates.is_template(value) else value
    if isinstance(value, list | tuple):
        return [_argument(each, where, of_undo) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _argument(each, where, of_undo) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UsageError(
        f"{where} has an argument of type {type(value).__name__}, which is not JSON: {value!r}",
        remedy="pass text, numbers, lists or mappings, and convert them in the task",
    )


#: Options that have no meaning for a step, each with its remedy.
_REMEDIES = {
    "link": "make the callback the next task of the chain",
    "link_error": "name the compensation of the task in undo, or watch the run with Hooks",
    "serializer": "remove it: arguments are stored as JSON",
    "compression": "remove it: arguments are stored as JSON",
    "ignore_result": "remove it: the result of each step is recorded",
    "retry": "remove it: a lost message is sent again",
    "retry_policy": "remove it: a lost message is sent again",
    "reply_to": "remove it: the worker's answer is recorded by the run",
    "stamped_headers": "pass them as headers, without a stamp",
}
