"""The interface of an operation's implementation, and the registry of implementations.

The runner (`longshore.tasks.attempts.runner`) reads and journals `before`, then calls `act`, then records the
outcome. `undo` receives the journalled and the recorded data. A dry run calls `predict` only.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from longshore.orchestration.authoring.context import Context, Outcome, Prediction
from longshore.orchestration.errors import NotAllowed, OperationError, Preflight, UnknownName
from longshore.orchestration.operations import Operation, Params, find

P = TypeVar("P", bound=Params)
#: The decision of a step, and then its execution: see `Implementation.change`.
Change = Generator[Prediction, None, dict[str, Any] | Outcome]


class Implementation(Generic[P]):
    """Implements one operation: by `change`, or by `act` and `predict` where a dry run cannot decide as the step does.

    An attempt may follow that of a dead worker: `act` then receives the first attempt's `before` and has to
    detect that attempt's effects. `changed` is always relative to `before`.
    """

    operation: Operation

    def before(self, ctx: Context, params: P) -> dict[str, Any]:
        """Read what `undo` needs, as JSON. The runner journals the result once, before `act`. Nothing is stored where
        `ctx.dry_run` is set.
        """
        return {}

    def change(self, ctx: Context, params: P, before: dict[str, Any]) -> Change:
        """Compare the target with `before`, and yield the decision, from reads only: a dry run stops there. Then change
        the differences, and return the data; or an Outcome, if only the change shows whether anything differed.
        """
        raise NotImplementedError

    def act(self, ctx: Context, params: P, before: dict[str, Any]) -> Outcome:
        """Read, compare, and change only the differences. Raises OperationError."""
        change = self.change(ctx, params, before)
        decided = next(change)
        try:
            next(change)
        except StopIteration as end:
            return end.value if isinstance(end.value, Outcome) else Outcome(decided.changed is True, end.value)
        raise RuntimeError(f"{self.operation.name} decides twice")

    def predict(self, ctx: Context, params: P) -> Prediction:
        """Predict the outcome of `act`, from reads only."""
        ctx = replace(ctx, dry_run=True)
        try:
            return next(self.change(ctx, params, self.before(ctx, params)))
        except NotAllowed:
            raise  # no earlier step can change this
        except _Absent as error:
            return Prediction(error.later, changed=None) if ctx.has_upstream else would_fail(str(error))
        except Preflight as error:
            return obstacle(ctx, str(error))

    def undo(self, ctx: Context, params: P, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        """Restore `before`. `data` is None if no outcome was recorded: `act` may have stopped anywhere, or
        never started. Idempotent; downloads nothing; raises OperationError rather than overwrite a later
        change by others. `changed` reports whether anything was undone.
        """
        raise NotImplementedError


class _Absent(Preflight):
    later = ""


def absent(message: str, *, later: str, remedy: str) -> Preflight:
    """The error of a container or image that the step lacks. `later`: the prediction if an earlier step provides it."""
    error = _Absent(message, remedy=remedy)
    error.later = later
    return error


def unfit(ctx: Context, what: str, remedy: str = "", *, touched: bool = False) -> OperationError:
    """Create the error of an unmet precondition: Preflight, or OperationError if this attempt (`touched`) or an
    earlier one may have had an effect.
    """
    return (Preflight if ctx.attempt == 1 and not touched else OperationError)(what, remedy=remedy)


def unchanged(ctx: Context, why: str) -> Prediction:
    """The prediction of a step that changes nothing as things are; an earlier step of the run may alter that."""
    return Prediction(why, changed=None if ctx.has_upstream else False)


def obstacle(ctx: Context, why: str) -> Prediction:
    """The prediction of a step that would fail as things are; an earlier step of the run may remove the obstacle."""
    if ctx.has_upstream:
        return Prediction(f"would fail, unless an earlier step changes this: {why}", changed=None)
    return would_fail(why)


def would_fail(why: str) -> Prediction:
    return Prediction(f"would fail: {why}", changed=False, impossible=why)


class NoUndo(Implementation[P]):
    """Implements an operation without an undo of its own: another step of the plan compensates it."""

    def undo(self, ctx: Context, params: P, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)


class ReadOnly(NoUndo[P]):
    """Implements a read-only operation. `reads`: the text of a dry run, with the names of parameters in braces."""

    reads = ""

    def read(self, ctx: Context, params: P) -> dict[str, Any]:
        raise NotImplementedError

    def change(self, ctx: Context, params: P, before: dict[str, Any]) -> Change:
        yield Prediction(f"would {self.reads.format(**dict(params))}", changed=False)
        return self.read(ctx, params)


_IMPLEMENTATIONS: dict[str, Implementation[Any]] = {}
_FUNCTION_IMPLEMENTATION: list[Callable[..., Implementation[Any]]] = []


def implements(operation: Operation) -> Callable[[type[Implementation[P]]], type[Implementation[P]]]:
    """Class decorator: register the class as the implementation of an operation."""

    def add(cls: type[Implementation[P]]) -> type[Implementation[P]]:
        cls.operation = operation
        _IMPLEMENTATIONS[operation.name] = cls()
        return cls

    return add


def implements_functions(cls: type[Implementation[P]]) -> type[Implementation[P]]:
    """Class decorator: register the class that implements an application's functions."""
    _FUNCTION_IMPLEMENTATION[:] = [cls]
    return cls


def implementation(name: str) -> Implementation[Any]:
    """Return the implementation of an operation. Raises UnknownName if this worker has none."""
    found = _IMPLEMENTATIONS.get(name)
    if found is None and (operation := find(name)).function is not None:
        found = _IMPLEMENTATIONS[name] = _FUNCTION_IMPLEMENTATION[0](operation, operation.function)
    if found is None:
        raise UnknownName(f"operation {name!r} has no implementation in this worker")
    return found


__all__ = [
    "Change",
    "Context",
    "Implementation",
    "NoUndo",
    "Outcome",
    "Prediction",
    "ReadOnly",
    "absent",
    "implementation",
    "implements",
    "implements_functions",
    "obstacle",
    "unchanged",
    "unfit",
    "would_fail",
]
