"""An application's own operations: functions, typed by their signatures.

    @operation("billing.charge", queue="billing", idempotent=True, undo="billing.refund")
    def charge(ctx: Context, customer: str, amount: int) -> Result:
        ...

Known where the module is imported: by the application, and by the workers, which import what the entry-point
group `longshore.operations` or the setting `imports` names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

from pydantic import create_model

from longshore.orchestration.authoring.context import Context
from longshore.orchestration.errors import ConfigError
from longshore.orchestration.operations import BACKOFF, Kind, Operation, Params, Retry, Undo, register
from longshore.orchestration.operations import Result as AnyResult

P = ParamSpec("P")
R = TypeVar("R")

#: What the functions that are added to an operation are given, and what pydantic's models have.
_TAKEN = frozenset({"before", "data", "model_config"})
#: The queue of functions that name none.
QUEUE = "functions"


@dataclass
class Functions:
    """What does an operation: its function, and those that were added to it."""

    act: Callable[..., Any]
    retry_on: tuple[type[BaseException], ...] = ()
    #: The operation that takes it back.
    undo_by: str | None = None
    read_only: bool = False
    before: Callable[..., Any] | None = None
    undo: Callable[..., Any] | None = None
    predict: Callable[..., Any] | None = None
    done: Callable[..., Any] | None = None


class OwnOperation(Generic[P, R]):
    """A function that is an operation; it can still be called as the function that it was.

    Its methods are decorators that add to it. Each of the added functions takes what it names of the
    context, the operation's parameters, and what is said here:

    * `before` – reads what the undo will need; a mapping, recorded before the function is called.
    * `undo` – takes it back: `before`, and `data`, what was recorded, None where nothing was.
    * `predict` – what a dry run says: a Prediction or a sentence. Only reads.
    * `done` – whether an attempt before this one did it already, though nobody heard of it: `before`; the
      result, or None.
    """

    def __init__(self, name: str, function: Callable[P, R], functions: Functions) -> None:
        self.name = name
        self._function = function
        self._functions = functions
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._functions.before = function
        return function

    def undo(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self._functions.undo_by is not None:
            raise ConfigError(f"operation {self.name!r} has an undo already: {self._functions.undo_by}")
        self._functions.undo = function
        return function

    def predict(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._functions.predict = function
        return function

    def done(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._functions.done = function
        return function


def operation(
    name: str,
    *,
    queue: str = QUEUE,
    undo: str | None = None,
    read_only: bool = False,
    idempotent: bool = False,
    retry: Retry | None = None,
    retry_on: tuple[type[BaseException], ...] = (),
    service: str = "",
    secrets: Iterable[str] = (),
    summary: str = "",
) -> Callable[[Callable[P, R]], OwnOperation[P, R]]:
    """Make a function an operation of that name.

    Its parameters are the step's, checked by pydantic; one that is annotated as Context, or is named `ctx`,
    gets the context. It returns a Result, a mapping, a model, a dataclass, or nothing; what it raises fails
    the step. `read_only` says that it changes nothing, `idempotent` that a second call with the
    same `ctx.idempotency_key` does no harm: only such a one is called again when its worker was lost. Errors
    of the types in `retry_on` can pass and are tried again, as `retry` says. `undo` names the operation that
    takes it back: its parameters are looked for by their names in what was recorded, in `before`, and in the
    step's parameters. `service` names what it needs (`{host}` in it is the host that it runs on): one that is
    found down, by a `Blocked`, is left alone, and whoever needs it waits. `secrets` names the parameters in which
    `{{ secret('env:NAME') }}` may stand: the function gets the value, and no record does.
    """
    hidden = frozenset(secrets)

    def make(function: Callable[P, R]) -> OwnOperation[P, R]:
        context = context_parameter(function)
        functions = Functions(function, retry_on, undo, read_only)
        params = _params(name, function, context)
        if unknown := sorted(hidden - params.model_fields.keys()):
            raise ConfigError(f"operation {name!r}: it has no parameter {unknown[0]!r} that could be a secret")
        made = OwnOperation(name, function, functions)
        register(
            Operation(
                name=name,
                params=params,
                result=AnyResult,
                queue=queue,
                kind=Kind.READ_ONLY if read_only else Kind.ACTS,
                undo=Undo.FULL if undo else Undo.NONE,
                summary=summary or (function.__doc__ or name).strip().splitlines()[0],
                repeatable=lambda _params: idempotent or functions.done is not None,
                service=service,
                secrets=hidden,
                function=functions,
                retry=retry or BACKOFF,
            )
        )
        return made

    return make


def context_parameter(function: Callable[..., Any]) -> str | None:
    """The name of the parameter that gets the context."""
    hints = _hints(function)
    for name in inspect.signature(function).parameters:
        if name == "ctx" or hints.get(name) is Context:
            return name
    return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(f"{function!r}: its types cannot be resolved: {error}") from None


def _params(name: str, function: Callable[..., Any], context: str | None) -> type[Params]:
    hints = _hints(function)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == context:
            continue
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise ConfigError(f"operation {name!r}: its parameters need names, *args and **kwargs have none")
        if parameter.name in _TAKEN:
            raise ConfigError(f"operation {name!r}: a parameter cannot be called {parameter.name!r}")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    title = "".join(part.capitalize() for part in name.replace("-", ".").replace("_", ".").split("."))
    return create_model(f"{title}Params", __base__=Params, **fields)
