"""How an operation is carried out: the port that each implementation fills.

The order is the runner's (`longshore.tasks.attempts.runner`): `before` is read and journalled, then `act`
acts, then its outcome is recorded. `undo` gets what was journalled and what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from longshore.orchestration.authoring.context import Context, Outcome, Prediction
from longshore.orchestration.errors import OperationError, Preflight, UnknownName
from longshore.orchestration.operations import Operation, Params, find

P = TypeVar("P", bound=Params)


class Implementation(Generic[P]):
    """The doing of one operation.

    A dead worker's attempt may be followed by another: `act` then gets the `before` of the first one
    and has to recognise what that one did. `changed` is always relative to `before`.
    """

    operation: Operation

    def before(self, ctx: Context, params: P) -> dict[str, Any]:
        """Read what `undo` will need, JSON. It is journalled before `act`, once."""
        return {}

    def act(self, ctx: Context, params: P, before: dict[str, Any]) -> Outcome:
        """Read, compare, change only what differs. Raises OperationError."""
        raise NotImplementedError

    def predict(self, ctx: Context, params: P) -> Prediction:
        """Say what `act` would do, from reads only."""
        raise NotImplementedError

    def undo(self, ctx: Context, params: P, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        """Bring back `before`. `data` is None where no outcome was recorded: `act` may have stopped
        anywhere, or never begun. Repeatable; never fetches anything; refuses (OperationError) to
        overwrite what somebody else changed since. `changed` says whether there was something to undo.
        """
        raise NotImplementedError


def unfit(ctx: Context, what: str, remedy: str = "", *, touched: bool = False) -> OperationError:
    """The error for what cannot be done: Preflight, unless this attempt has touched something (`touched`), or one
    before it may have gone further.
    """
    return (Preflight if ctx.attempt == 1 and not touched else OperationError)(what, remedy=remedy)


class NoUndo(Implementation[P]):
    """The doing of an operation that has no undo of its own: something else of its plan makes it good."""

    def undo(self, ctx: Context, params: P, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        return Outcome(changed=False)


class ReadOnly(NoUndo[P]):
    """The doing of an operation that only looks."""


_IMPLEMENTATIONS: dict[str, Implementation[Any]] = {}
_OF_FUNCTIONS: list[Callable[..., Implementation[Any]]] = []


def implements(operation: Operation) -> Callable[[type[Implementation[P]]], type[Implementation[P]]]:
    """Class decorator: the class carries out that operation."""

    def add(cls: type[Implementation[P]]) -> type[Implementation[P]]:
        cls.operation = operation
        _IMPLEMENTATIONS[operation.name] = cls()
        return cls

    return add


def implements_functions(cls: type[Implementation[P]]) -> type[Implementation[P]]:
    """Class decorator: instances of the class carry out the operations that an application registers."""
    _OF_FUNCTIONS[:] = [cls]
    return cls


def implementation(name: str) -> Implementation[Any]:
    """The implementation of an operation; UnknownName if this worker has none."""
    done = _IMPLEMENTATIONS.get(name)
    if done is None and (operation := find(name)).function is not None:
        done = _IMPLEMENTATIONS[name] = _OF_FUNCTIONS[0](operation, operation.function)
    if done is None:
        raise UnknownName(f"this worker cannot do {name!r}")
    return done


__all__ = [
    "Context",
    "Implementation",
    "NoUndo",
    "Outcome",
    "Prediction",
    "ReadOnly",
    "implementation",
    "implements",
    "implements_functions",
    "unfit",
]
