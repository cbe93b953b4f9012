"""The `@operation` decorator: turns a function of an application into an operation, typed by its signature.

    @operation("billing.charge", queue="billing", idempotent=True, undo="billing.refund")
    def charge(ctx: Context, customer: str, amount: int) -> Result:
        ...

An operation is registered where its module is imported: by the application, and by the workers, which import the
modules of the entry-point group `longshore.operations` and of the setting `imports`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_type_hints, overload

from pydantic import create_model

from longshore.orchestration.authoring.context import Context
from longshore.orchestration.errors import ConfigError
from longshore.orchestration.operations import BACKOFF, Kind, Params, Retry, TypedOperation, Undo, register
from longshore.orchestration.operations import Result as AnyResult
from longshore.orchestration.operations.base import bound

C = ParamSpec("C")
P = ParamSpec("P")
R = TypeVar("R")

#: Names that parameters cannot have: arguments of the added functions, and an attribute of pydantic's models.
_TAKEN = frozenset({"before", "data", "model_config"})
#: The queue of functions that name no other.
QUEUE = "functions"


@dataclass
class Functions:
    """The functions of an operation: the one that acts, and those that its decorators added."""

    act: Callable[..., Any]
    retry_on: tuple[type[BaseException], ...] = ()
    #: The operation that compensates this one.
    undo_by: str | None = None
    read_only: bool = False
    before: Callable[..., Any] | None = None
    undo: Callable[..., Any] | None = None
    predict: Callable[..., Any] | None = None
    done: Callable[..., Any] | None = None


class OwnOperation(TypedOperation[P], Generic[C, P, R]):
    """An operation made of a function, which remains callable as a function: C are the parameters of the function, P
    those of a step, without the context.

    Its methods are decorators that add further functions. Each takes, by name, any of the context, the parameters of
    the operation, and the arguments listed here:

    * `before` – reads the state that the undo will need; returns a mapping, recorded before the function acts
    * `undo` – the compensation; takes `before`, and `data`, the recorded data of the step, or None
    * `predict` – the answer of a dry run, as a Prediction or a sentence; reads only
    * `done` – finds the effect of an earlier attempt whose outcome was lost; takes `before`; returns the result,
      or None where there was no effect
    """

    def __init__(self, name: str, function: Callable[C, R], functions: Functions) -> None:
        self.name = name
        self._function = function
        self._functions = functions
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> R:
        return self._function(*args, **kwargs)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        context = context_parameter(self._function)
        parameters = [each for each in inspect.signature(self._function).parameters.values() if each.name != context]
        positional = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
        needed = {each.name: each.default is each.empty for each in parameters}
        return bound(self.name, needed, positional, args, kwargs)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: set the function that reads the state before the step acts."""
        self._functions.before = function
        return function

    def undo(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: set the compensation. Raises ConfigError where the operation names another as its undo."""
        if self._functions.undo_by is not None:
            raise ConfigError(
                f"operation {self.name!r} has an undo already: {self._functions.undo_by}",
                remedy="remove `undo=` from @operation, or the undo function",
            )
        self._functions.undo = function
        return function

    def predict(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: set the function that answers a dry run."""
        self._functions.predict = function
        return function

    def done(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: set the function that finds the effect of a lost attempt; the operation becomes repeatable."""
        self._functions.done = function
        return function


class Decorator(Protocol):
    """Makes an operation of a function, whose first parameter may be the context."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, P], R], /
    ) -> OwnOperation[Concatenate[Context, P], P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> OwnOperation[P, P, R]: ...


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
    renamed: Mapping[str, str] | None = None,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Decorator:
    """Decorator: register a function as the operation `name`.

    The parameters of the function are the parameters of the step. A parameter that is annotated as Context, or named
    `ctx`, receives the context instead. The function returns a Result, a mapping, a pydantic model, a dataclass, a
    boolean (whether the step is changed), or None. Any other value is `data.result`. An exception fails the step. An
    `async def` function runs in an event loop of the worker; its coroutine is cancelled if the attempt exceeds its
    timeout, or the run is aborting.

    * `undo` – the name of the operation that compensates this one. Its parameters are taken by name: from the data of
      the step, else from the data of the `before` function, else from the parameters of the step.
    * `read_only` – the function changes nothing.
    * `idempotent` – a second call with the same `ctx.idempotency_key` has no further effect. After a lost attempt, a
      step runs again only with `idempotent`, `read_only` or a `done` function; otherwise, the step is unknown.
    * `retry` – the number and delays of the attempts, which follow after `Transient` and the exceptions in `retry_on`.
      If the step or the plan has `retry`, that policy applies, and an attempt follows after every exception, except
      `Permanent`, `Preflight`, `InDoubt` and `StepCancelled`.
    * `service` – the service that the function needs, with `{host}` for the host of the step. If the function raises
      `Blocked`, the breaker of the service opens, and runs that need the service wait.
    * `secrets` – parameters that may contain `{{ secret('env:NAME') }}`. Only the function receives the value.

    A stored run keeps its parameters if you deploy a new version of the function. Two arguments adapt them:

    * `renamed` – former names of parameters with their present names, such as `{"order": "order_id"}`
    * `upgrade` – a function that receives the stored parameters, even if they are up to date, and returns the
      parameters for the present version

    Raises ConfigError if the function has parameters that a step cannot have.
    """
    hidden = frozenset(secrets)

    def make(function: Callable[..., Any]) -> OwnOperation[Any, Any, Any]:
        context = context_parameter(function)
        functions = Functions(function, retry_on, undo, read_only)
        params = _params(name, function, context)
        if unknown := sorted(hidden - params.model_fields.keys()):
            raise ConfigError(
                f"operation {name!r}: `secrets` names {unknown[0]!r}, which is not a parameter of the function",
                remedy="name parameters of the function only",
            )
        for old, new in (renamed or {}).items():
            if old in params.model_fields or new not in params.model_fields:
                raise ConfigError(
                    f"operation {name!r}: `renamed` has {old!r} for {new!r}, which is no parameter's former name",
                    remedy="write {former name: present name}",
                )
        made: OwnOperation[Any, Any, Any] = OwnOperation(name, function, functions)
        register(
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
            renamed=dict(renamed or {}),
            upgrade=upgrade,
        )
        return made

    return make


def context_parameter(function: Callable[..., Any]) -> str | None:
    """The name of the parameter that receives the context, or None."""
    hints = _hints(function)
    for name in inspect.signature(function).parameters:
        if name == "ctx" or hints.get(name) is Context:
            return name
    return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(f"{function!r}: the annotations cannot be resolved: {error}") from None


def _params(name: str, function: Callable[..., Any], context: str | None) -> type[Params]:
    hints = _hints(function)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == context:
            continue
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise ConfigError(
                f"operation {name!r}: parameter {parameter.name!r} is *args, **kwargs or positional-only",
                remedy="declare each parameter by name",
            )
        if parameter.name in _TAKEN:
            raise ConfigError(
                f"operation {name!r}: the parameter name {parameter.name!r} is reserved", remedy="rename the parameter"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    title = "".join(part.capitalize() for part in name.replace("-", ".").replace("_", ".").split("."))
    return create_model(f"{title}Params", __base__=Params, **fields)
