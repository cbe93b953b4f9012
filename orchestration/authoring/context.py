"""What an operation may know and ask while it is at work, and what it says when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longshore.orchestration.errors import StepCancelled, StepTimeout
from longshore.orchestration.operations.results import HostResult

if TYPE_CHECKING:
    from longshore.orchestration.runs.step_report import StepReport
    from longshore.orchestration.store.caches import Caches
    from longshore.orchestration.store.objects import Objects


@dataclass(frozen=True)
class Outcome:
    """What an attempt did. `data` must be JSON. With `hosts`, the step fails if too many of them did."""

    changed: bool
    data: dict[str, Any] = field(default_factory=dict)
    hosts: list[HostResult] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """What a real run would do, as read from the machine now.

    `changed` is None where it cannot be known yet. `impossible` says why a run would certainly fail.
    """

    action: str
    changed: bool | None = True
    undo: str | None = None
    impossible: str | None = None
    #: What an operation that only looks has found.
    data: dict[str, Any] | None = None


@dataclass(frozen=True)
class HostFacts:
    """The host that an attempt runs on."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What an attempt may know and ask.

    `op_id` (`<run>.<step>`, and `@<number>` for an item or host) is the same at every attempt and
    delivery: it is the idempotency key that effects and calls to others can carry. `fence` grows with every
    attempt. `deadline` is on the clock of `time.monotonic`. `asked_to_stop` is cheap to call often.
    `results` are the steps before this one, by name, read when they are asked for. `files` gives the content
    of a local file that the plan carries, by the path written in it.
    """

    run_id: str
    step: str
    plan: str
    attempt: int = 1
    fence: int = 0
    #: The number of its item or host, where the step was fanned out; and the item itself.
    unit: int | None = None
    item: Any = None
    host: HostFacts = field(default_factory=HostFacts)
    deadline: float | None = None
    dry_run: bool = False
    #: Whether a step before this one may still change what is found now.
    has_upstream: bool = False
    asked_to_stop: Callable[[], bool] = lambda: False
    #: The container that it is done inside of; '' for the host itself.
    container: str = ""
    #: Of what is recorded; what the operation's own marks must not tell either.
    redact: Callable[[str], str] = lambda text: text
    #: The same for data that is kept elsewhere than in its outcome.
    redact_data: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data
    log: Callable[[str], None] = lambda _text: None
    #: Told whole lines of a program's output as they come, with the stream they are of: stdout or stderr.
    printed: Callable[[str, Sequence[str]], None] = lambda _stream, _lines: None
    renew: Callable[[], bool] = lambda: True
    #: Hold what others share, by its name and what it is called; waits for it.
    lock: Callable[[str, str], AbstractContextManager[None]] = lambda _name, _what: nullcontext()
    #: Told of a program that was started in a process group of its own, by its pid.
    began: Callable[[int], None] = lambda _pid: None
    results: Mapping[str, StepReport] = field(default_factory=dict)
    files: Callable[[str], bytes] = field(default_factory=lambda: _no_file)
    objects: Callable[[], Objects] = field(default_factory=lambda: _no_objects)
    caches: Callable[[], Caches] = field(default_factory=lambda: _no_caches)
    make_engine: Callable[[], Any] = field(default_factory=lambda: _no_engine)

    @property
    def op_id(self) -> str:
        return f"{self.run_id}.{self.part}"

    @property
    def part(self) -> str:
        """The step, or the item of it; no name has an @."""
        return self.step if self.unit is None else f"{self.step}@{self.unit}"

    @property
    def idempotency_key(self) -> str:
        return self.op_id

    @property
    def cancelled(self) -> bool:
        """Whether the run is being ended, so that the step should stop; or out of its time."""
        return self.asked_to_stop() or (self.deadline is not None and time.monotonic() >= self.deadline)

    @property
    def engine(self) -> Any:
        """The Docker engine of this host: a `docker.DockerClient`. ConfigError without `longshore[docker]`."""
        return self.make_engine()

    def heartbeat(self, note: str = "") -> None:
        """Say that it is alive: renew the lease, and log a note. Raises StepCancelled or StepTimeout if it
        should end, also when the step has become another attempt's.
        """
        if note:
            self.log(note)
        self.check()
        if not self.renew():
            raise StepCancelled("the step is another attempt's now")

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


def _no_objects() -> Any:
    raise RuntimeError("there is no object store in this context")


def _no_caches() -> Any:
    raise RuntimeError("there are no caches in this context")


def _no_engine() -> Any:
    raise RuntimeError("there is no engine in this context")
