"""What an operation is: its name, its parameters, its result and its promises.

Only schemas live here, so that a plan can be checked where no Docker is. The doing is in
`longshore.tasks`, one implementation an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from longshore.orchestration.errors import ConfigError, UnknownName
from longshore.orchestration.language.durations import Duration
from longshore.orchestration.settings import get_settings


class Params(BaseModel):
    """Base of an operation's parameters: an unknown one is an error, and none changes later.

    Its schema is built when it is first needed: there are a hundred of them, and a process needs a few.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Result(BaseModel):
    """Base of an operation's result data."""

    model_config = ConfigDict(extra="allow", defer_build=True)


class Kind(StrEnum):
    """What a second call does."""

    #: Looks only; never `changed`.
    READ_ONLY = "read_only"
    #: Brings about a state: the second call says `unchanged`.
    CONVERGES = "converges"
    #: Does it each time.
    ACTS = "acts"


class Undo(StrEnum):
    """How much of its effect an operation can take back by itself."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"


class Waits(StrEnum):
    """What a step is parked for, without a worker."""

    NOTHING = ""
    #: A person's decision.
    PERSON = "person"
    #: The end of a child run.
    RUN = "run"
    #: The end of a Celery task of somebody else's.
    TASK = "task"


class Retry(BaseModel):
    """When an attempt that failed is tried again.

    `attempts` counts all tries. The delay doubles from `initial` to at most `maximum`; with `jitter`
    it lies between half and the whole of that. Without an `initial` it is tried again at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    attempts: int = Field(default=4, ge=1, le=100, description="All tries, the first included")
    initial: Duration = Field(0.0, description="The first wait, which doubles each time; none if left out")
    maximum: Duration = Field(30.0, description="The longest wait")
    jitter: bool = Field(default=True, description="Between half and the whole of the wait")

    def delay(self, attempt: int, chance: float) -> float:
        """Seconds to wait after attempt number `attempt` (from 1); `chance` in [0, 1) is the dice."""
        full = min(self.initial * 2.0 ** min(attempt - 1, 60), self.maximum)
        return full * (0.5 + 0.5 * chance) if self.jitter else full

    def worst_case(self) -> float:
        """Seconds spent waiting if every try but the last fails."""
        return sum(self.delay(n, 1.0) for n in range(1, self.attempts))


#: For errors that can pass, where neither step nor plan has a policy.
BACKOFF = Retry(attempts=4, initial=1.0, maximum=30.0)
#: For operations whose errors do not pass by waiting.
NO_RETRY = Retry(attempts=1, initial=0.0, maximum=0.0, jitter=False)


def _always(_params: dict[str, Any]) -> bool:
    return True


def _never(_params: dict[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class About:
    """What a person has to know of an operation besides its parameters; each a sentence without its full stop."""

    #: When it says `changed`.
    changed: str
    #: What its undo does.
    undo: str
    #: How a second delivery of the same step is recognised.
    duplicate: str
    #: What a dry run says.
    dry_run: str = "compares what is there with what is wanted, and says what would be done"
    #: Which errors are tried again.
    retried: str = "an engine that does not answer or is busy; nothing else"


#: Of what only looks.
READ_ONLY = About(
    changed="never: it only looks",
    undo="nothing to take back",
    duplicate="looks again",
    dry_run="says what would be looked at",
)


@dataclass(frozen=True)
class Operation:
    """The schema of one kind of work.

    `repeatable` and `looks_only` are asked with the step's raw `with`, before it is rendered:
    whether an attempt that vanished may simply be done again (because the operation recognises
    what it did), and whether these parameters make it one that changes nothing.
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
    #: The parameters that are no templates of the plan's: the operation has its own use for the braces.
    literal: Callable[[dict[str, Any]], frozenset[str]] = lambda _params: frozenset()
    is_read_only_command: Callable[[dict[str, Any]], bool] = _never
    waits: Waits = Waits.NOTHING
    #: Whether it does anything at all outside of its worker's process.
    effect: bool = True
    #: The service that it needs, `{host}` for the host that it runs on: while that is down it is not tried.
    service: str = ""
    #: Whether, with these raw parameters, its undo can do something.
    undoable: Callable[[dict[str, Any]], bool] = _always
    #: The parameters in which `secret()` may stand.
    secrets: frozenset[str] = frozenset()
    #: Whether it can be done inside a container (`in:` of a step).
    inside: bool = False
    about: About | None = None
    #: Of an application's own: what does it (`longshore.orchestration.authoring.functions`).
    function: Any = None

    @property
    def takes_back(self) -> bool:
        """Whether it has an undo of its own."""
        return self.undo is not Undo.NONE or getattr(self.function, "undo", None) is not None

    @property
    def elsewhere(self) -> bool:
        """Whether another party brings its effect about, which no receipt on a worker's host fences."""
        return self.queue == "network" or self.function is not None or self.name == "celery.task.execute"

    def templated(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters that the plan's templates are looked for in."""
        literal = self.literal(params)
        return {name: value for name, value in params.items() if name not in literal} if literal else params

    def is_read_only(self, params: dict[str, Any]) -> bool:
        """Whether a step with these parameters cannot change anything."""
        return self.kind is Kind.READ_ONLY or self.is_read_only_command(params)


def service_of(operation: Operation, host: str) -> str:
    """The service that an operation needs there; '' where it names none, or one of a host that is not known."""
    if not host and "{host}" in operation.service:
        return ""
    return operation.service.replace("{host}", host)


_REGISTRY: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Make an operation known by its name. The same name twice is a programming error."""
    if operation.name in _REGISTRY:
        raise ValueError(f"operation {operation.name!r} is registered twice")
    _REGISTRY[operation.name] = operation
    return operation


def find(name: str) -> Operation:
    """The operation of that name; UnknownName otherwise, with the nearest known ones."""
    from difflib import get_close_matches  # noqa: PLC0415 - only on the way to an error

    operation = _REGISTRY.get(name)
    if operation is None:
        load_own()
        operation = _REGISTRY.get(name)
    if operation is None:
        longer = [known for known in _REGISTRY if known.startswith(name)][:2]
        near = longer or get_close_matches(name, _REGISTRY, n=2)
        remedy = f"did you mean {' or '.join(near)}?" if near else "own operations come with LONGSHORE_IMPORTS"
        raise UnknownName(f"unknown operation {name!r}", remedy=remedy)
    return operation


def known(name: str) -> Operation | None:
    """The operation of that name, if it is known here."""
    try:
        return find(name)
    except UnknownName:
        return None


@cache
def load_own() -> None:
    """Import what brings operations of an application's own: the entry points `longshore.operations`, and the
    modules of the setting `imports`, found from the working directory as well. ConfigError names one that fails.
    """
    from celery.utils.imports import import_from_cwd  # noqa: PLC0415 - only where there is something to import

    for entry in entry_points(group="longshore.operations"):
        _import(f"entry point {entry.name}", entry.load)
    for name in filter(None, (part.strip() for part in get_settings().imports.split(","))):
        _import(f"module {name}", partial(import_from_cwd, name))


def _import(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:
        raise ConfigError(
            f"{what}, which brings operations, cannot be imported: {type(error).__name__}: {error}",
            remedy="see LONGSHORE_IMPORTS",
        ) from error


def all_operations() -> dict[str, Operation]:
    """Every known operation by name, sorted."""
    load_own()
    return dict(sorted(_REGISTRY.items()))
