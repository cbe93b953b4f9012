"""The schema of an operation: its name, parameters, result and guarantees.

This package holds schemas only, so that a plan can be validated without Docker. `longshore.tasks` has one
implementation for each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, Generic, ParamSpec

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from longshore.orchestration.errors import ConfigError, UnknownName, UsageError
from longshore.orchestration.language.durations import Duration
from longshore.orchestration.settings import get_settings

P = ParamSpec("P")


class Params(BaseModel):
    """Base of an operation's parameters: immutable, unknown names rejected.

    The schema is built on first use, as a process needs only a few of the hundred operations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Result(BaseModel):
    """Base of an operation's result data."""

    model_config = ConfigDict(extra="allow", defer_build=True)


def expected(form: str) -> WrapValidator:
    """A text that does not match the pattern of its type is reported by the expected form, not by the pattern."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            if error.errors()[0]["type"] != "string_pattern_mismatch":
                raise
        raise PydanticCustomError("unexpected_form", "{value} is not {form}", {"value": repr(value), "form": form})

    return WrapValidator(check)


class Kind(StrEnum):
    """The effect of a repeated call."""

    #: Reads only; never `changed`.
    READ_ONLY = "read_only"
    #: Converges to a state: a second call returns `unchanged`.
    CONVERGES = "converges"
    #: Acts on each call.
    ACTS = "acts"


class Undo(StrEnum):
    """How much of its effect an operation can undo by itself."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"


class Waits(StrEnum):
    """The external event that a step waits for, without a worker."""

    NOTHING = ""
    #: An approval.
    PERSON = "person"
    #: The end of a child run.
    RUN = "run"
    #: The end of an application's Celery task.
    TASK = "task"
    #: A time.
    TIME = "time"

    @property
    def is_final(self) -> bool:
        """Whether such a step is never retried and cannot be an undo, since a person, a run or a clock ends it."""
        return self in {Waits.PERSON, Waits.RUN, Waits.TIME}


class Retry(BaseModel):
    """The number of attempts at a step, and the delays between them.

    Each delay is twice as long as the one before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    attempts: int = Field(default=4, ge=1, le=100, description="The number of attempts, including the first one")
    initial: Duration = Field(0.0, description="The delay before the first retry. With 0s, no retry is delayed")
    maximum: Duration = Field(30.0, description="The longest delay before a retry")
    jitter: bool = Field(default=True, description="Whether each delay is shortened at random, by up to half")

    def delay(self, attempt: int, chance: float) -> float:
        """Seconds to wait after attempt number `attempt` (from 1); `chance` in [0, 1) is the random draw."""
        full = min(self.initial * 2.0 ** min(attempt - 1, 60), self.maximum)
        return full * (0.5 + 0.5 * chance) if self.jitter else full

    def worst_case(self) -> float:
        """Total delay in seconds if every attempt but the last fails."""
        return sum(self.delay(n, 1.0) for n in range(1, self.attempts))


#: Policy for temporary errors, where neither step nor plan sets one.
BACKOFF = Retry(attempts=4, initial=1.0, maximum=30.0)
#: Policy of operations whose errors are permanent.
NO_RETRY = Retry(attempts=1, initial=0.0, maximum=0.0, jitter=False)


def _always(_params: dict[str, Any]) -> bool:
    return True


def _never(_params: dict[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class About:
    """The documented guarantees of an operation; each text is a sentence without its full stop."""

    #: When the step is `changed`.
    changed: str
    #: The effect of its undo.
    undo: str
    #: The effect of a second attempt at the step.
    duplicate: str
    #: The reasons for which the step fails, besides those of all operations.
    fails: str = "only for the reasons that all operations share"
    #: The answer of a dry run.
    dry_run: str = "compares the present state with the parameters, and predicts the changes"
    #: The errors after which a further attempt follows.
    retried: str = "temporary errors"


#: Texts of read-only operations.
READ_ONLY = About(
    changed="never: the operation only reads",
    undo="none needed",
    duplicate="reads again",
    dry_run="names the object that would be read",
)


@dataclass(frozen=True)
class Operation:
    """The schema of one operation.

    The predicates take the step's raw `with`, before it is rendered. `repeatable`: whether a lost attempt may be
    retried, because the operation detects its earlier effect. `is_read_only_command`: whether the operation changes
    nothing with these parameters.
    """

    name: str
    params: type[Params]
    result: type[BaseModel]
    queue: str
    kind: Kind
    undo: Undo
    summary: str
    retry: Retry = BACKOFF
    repeatable: Callable[[dict[str, Any]], bool] = _always
    #: Parameters that the plan does not render as templates, because the operation interprets the braces.
    literal: Callable[[dict[str, Any]], frozenset[str]] = lambda _params: frozenset()
    is_read_only_command: Callable[[dict[str, Any]], bool] = _never
    waits: Waits = Waits.NOTHING
    #: Whether the operation has an effect outside of the worker's process.
    effect: bool = True
    #: The service that the operation depends on, with `{host}` for its host; not attempted while its breaker is open.
    service: str = ""
    #: Whether the undo has an effect with these raw parameters.
    undoable: Callable[[dict[str, Any]], bool] = _always
    #: Parameters that may contain `secret()`.
    secrets: frozenset[str] = frozenset()
    #: Whether the operation can run inside a container (`in:` of a step).
    inside: bool = False
    about: About | None = None
    #: Former names of parameters with their present ones, and a function that brings the parameters of a stored step up
    #: to date.
    renamed: Mapping[str, str] = field(default_factory=dict)
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    #: The function of a custom operation (`longshore.orchestration.authoring.functions`).
    function: Any = None

    @property
    def takes_back(self) -> bool:
        """Whether the operation has an undo of its own."""
        return self.undo is not Undo.NONE or getattr(self.function, "undo", None) is not None

    @property
    def elsewhere(self) -> bool:
        """Whether another system performs the effect, which no receipt on a worker's host can fence."""
        return self.function is not None or self.name in {"network.http.request", "celery.task.execute"}

    def upgraded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a step that may have been stored for an earlier version of the operation."""
        values = {self.renamed.get(name, name): value for name, value in params.items()}
        return values if self.upgrade is None else self.upgrade(values)

    @property
    def accepts(self) -> tuple[str, ...]:
        """The parameters that a stored step may have: `name`, `name?` for an optional one, `former=name` for a former
        name, and `*` where a function upgrades all of them.
        """
        fields = self.params.model_fields.items()
        names = [name if each.is_required() else f"{name}?" for name, each in fields]
        former = [f"{old}={new}" for old, new in self.renamed.items()]
        return (*names, *former, *(["*"] if self.upgrade is not None else []))

    def templated(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters that the plan renders as templates."""
        literal = self.literal(params)
        return {name: value for name, value in params.items() if name not in literal} if literal else params

    def is_read_only(self, params: dict[str, Any]) -> bool:
        """Whether a step with these parameters changes nothing."""
        return self.kind is Kind.READ_ONLY or self.is_read_only_command(params)


def service_of(operation: Operation, host: str) -> str:
    """The service that an operation needs on a host; '' if it needs none or the host is unknown."""
    if not host and "{host}" in operation.service:
        return ""
    return operation.service.replace("{host}", host)


class TypedOperation(Generic[P]):
    """An operation whose parameters type checkers know; `Plan.step` takes it in place of its name."""

    name: str

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """The parameters by name. Raises UsageError for one that is missing, unknown, or given twice."""
        raise NotImplementedError


def bound(
    name: str, parameters: Mapping[str, bool], positional: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by name. `parameters` has whether each is required, and `positional` those that need no name.

    Raises UsageError for one that is missing, unknown, or given twice.
    """
    if len(args) > len(positional):
        raise UsageError(f"{name} takes {len(positional)} parameters by position, and {len(args)} are given")
    given = dict(zip(positional, args, strict=False))
    if unknown := [key for key in kwargs if key not in parameters]:
        near = f"; it has {', '.join(parameters)}" if parameters else ""
        raise UsageError(f"{name} has no parameter {unknown[0]!r}{near}")
    if twice := [key for key in kwargs if key in given]:
        raise UsageError(f"{name}: the parameter {twice[0]!r} is given twice")
    given |= kwargs
    if missing := [key for key, is_required in parameters.items() if is_required and key not in given]:
        raise UsageError(f"{name} needs the parameter{'s' * (len(missing) > 1)} {' and '.join(missing)}")
    return given


_REGISTRY: dict[str, Operation] = {}


def _registering(make: Callable[P, Operation]) -> Callable[P, Operation]:
    def register(*args: P.args, **kwargs: P.kwargs) -> Operation:
        operation = make(*args, **kwargs)
        if operation.name in _REGISTRY:
            raise ValueError(f"operation {operation.name!r} is registered twice")
        _REGISTRY[operation.name] = operation
        return operation

    return register


#: Create an operation and register it by its name. Raises ValueError for a duplicate name.
register = _registering(Operation)


def find(name: str) -> Operation:
    """The operation of that name. Raises UnknownName with the nearest names."""
    operation = _REGISTRY.get(name)
    if operation is None:
        load_own()
        operation = _REGISTRY.get(name)
    if operation is None:
        longer = [known for known in _REGISTRY if known.startswith(name)][:2]
        near = longer or get_close_matches(name, _REGISTRY, n=2)
        remedy = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "list operations with longshore ops ls; load custom operations with LONGSHORE_IMPORTS"
        )
        raise UnknownName(f"unknown operation {name!r}", remedy=remedy)
    return operation


def known(name: str) -> Operation | None:
    """The operation of that name, or None."""
    try:
        return find(name)
    except UnknownName:
        return None


@cache
def load_own() -> None:
    """Import custom operations: the entry points `longshore.operations`, and the modules of the setting `imports`,
    also from the working directory. Raises ConfigError for an import that fails.
    """
    from celery.utils.imports import import_from_cwd  # noqa: PLC0415 - celery takes 0.1 s, which a plan need not pay

    for entry in entry_points(group="longshore.operations"):
        _import(f"entry point {entry.name}", entry.load)
    for name in filter(None, (part.strip() for part in get_settings().imports.split(","))):
        _import(f"module {name}", partial(import_from_cwd, name))


def _import(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:
        raise ConfigError(
            f"cannot import {what} with custom operations: {type(error).__name__}: {error}",
            remedy="correct LONGSHORE_IMPORTS, or install the package",
        ) from error


def all_operations() -> dict[str, Operation]:
    """All registered operations, sorted by name."""
    load_own()
    return dict(sorted(_REGISTRY.items()))
