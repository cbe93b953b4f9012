"""How an operation is carried out: the port that each implementation fills.

The order is the runner's (`longshore.tasks.runner`): `before` is read and journalled, then `act`
acts, then its outcome is recorded. `undo` gets what was journalled and what was recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from longshore.orchestration.errors import StepCancelled, StepTimeout, UnknownName
from longshore.orchestration.operations import Operation, Params

P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Outcome:
    """What an attempt did. `data` must be JSON."""

    changed: bool
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a real run would do, as read from the machine now.

    `changed` is None where it cannot be known yet. `impossible` says why a run would certainly fail.
    """

    action: str
    changed: bool | None = True
    undo: str | None = None
    impossible: str | None = None


@dataclass
class Context:
    """What an attempt may know and ask.

    `op_id` (`<run>.<step>`) is the same at every attempt and delivery, so that effects can carry it.
    `deadline` is on the clock of `time.monotonic`. `asked_to_stop` is cheap to call often.
    `files` gives the content of a local file that the plan carries, by the path written in it.
    """

    run_id: str
    step: str
    plan: str
    attempt: int = 1
    fence: int = 0
    deadline: float | None = None
    dry_run: bool = False
    #: Whether a step before this one may still change what is found now.
    has_upstream: bool = False
    asked_to_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda _text: None
    files: Callable[[str], bytes] = field(default_factory=lambda: _no_file)

    @property
    def op_id(self) -> str:
        return f"{self.run_id}.{self.step}"

    def remaining(self, at_most: float) -> float:
        """Seconds left for this attempt, and not more than `at_most`."""
        if self.deadline is None:
            return at_most
        return max(0.0, min(at_most, self.deadline - time.monotonic()))

    def check(self) -> None:
        """Raise StepTimeout or StepCancelled if the attempt should end now."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise StepTimeout("ran out of its time")
        if self.asked_to_stop():
            raise StepCancelled("stopped because the run is being ended")

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake up for a cancel or the deadline, and raise then."""
        end = time.monotonic() + seconds
        while True:
            self.check()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))


def _no_file(path: str) -> bytes:
    raise FileNotFoundError(path)


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


_IMPLEMENTATIONS: dict[str, Implementation[Any]] = {}


def implements(operation: Operation) -> Callable[[type[Implementation[P]]], type[Implementation[P]]]:
    """Class decorator: the class carries out that operation."""

    def add(cls: type[Implementation[P]]) -> type[Implementation[P]]:
        cls.operation = operation
        _IMPLEMENTATIONS[operation.name] = cls()
        return cls

    return add


def implementation(name: str) -> Implementation[Any]:
    """The implementation of an operation; UnknownName if this worker has none."""
    try:
        return _IMPLEMENTATIONS[name]
    except KeyError:
        raise UnknownName(f"this worker cannot do {name!r}") from None
