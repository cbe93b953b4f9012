"""The interface between an operation and the attempt that runs it: its context, outcome and prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
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
    """The result of an attempt. `data` must be JSON. With `hosts`, the step fails if too many hosts failed."""

    changed: bool
    data: dict[str, Any] = field(default_factory=dict)
    hosts: list[HostResult] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """The result of a dry run of one operation: a text about the change that the operation would make.

    `changed` is None if the change cannot be predicted. `impossible` is the reason why the step would certainly fail.
    """

    action: str
    changed: bool | None = True
    undo: str | None = None
    impossible: str | None = None
    #: The findings of a read-only operation.
    data: dict[str, Any] | None = None


@dataclass(frozen=True)
class HostFacts:
    """The host that an attempt runs on."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def _no_file(path: str) -> bytes:
    raise FileNotFoundError(path)


def _without(what: str) -> Callable[[], Any]:
    def get() -> Any:
        raise RuntimeError(f"this context has no {what}")

    return get


@dataclass
class Context:
    """The context of an attempt at a step: its identity, its limits, and access to logs, locks, results and files.

    * `run_id`, `plan`, `step` – the id of the run, and the names of the plan and the step
    * `attempt` – the number of the attempt, from 1; `fence` grows with every attempt
    * `host` – the name, labels and facts of the host
    * `deadline` – the end of the time limit, on the clock of `time.monotonic`; None for no limit
    * `dry_run` – whether this is a dry run
    * `log(text)` – adds a line to the output of the step
    * `lock(name, label)` – a context manager that holds a lock shared by all hosts
    * `results` – the reports of earlier steps by name
    * `files(path)` – the content of a file that the plan names with this path
    """

    run_id: str
    step: str
    plan: str
    attempt: int = 1
    fence: int = 0
    #: The number of the item or host of a step that was fanned out, and the item itself.
    unit: int | None = None
    item: Any = None
    host: HostFacts = field(default_factory=HostFacts)
    deadline: float | None = None
    dry_run: bool = False
    #: Whether an earlier step may still change what a dry run reads now.
    has_upstream: bool = False
    asked_to_stop: Callable[[], bool] = lambda: False
    #: The container that the step runs in; '' for the host itself.
    container: str = ""
    #: Removes secrets from text; for anything that the operation stores or prints by itself.
    redact: Callable[[str], str] = lambda text: text
    #: Removes secrets from data that is stored elsewhere than in the outcome.
    redact_data: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data
    log: Callable[[str], None] = lambda _text: None
    #: Receives whole lines of a program's output as they are printed, with their stream: stdout or stderr.
    printed: Callable[[str, Sequence[str]], None] = lambda _stream, _lines: None
    renew: Callable[[], bool] = lambda: True
    #: Holds a shared lock, by name and label for people; blocks until the lock is free.
    lock: Callable[[str, str], AbstractContextManager[None]] = lambda _name, _what: nullcontext()
    #: Receives the pid of a program that was started in a process group of its own.
    began: Callable[[int], None] = lambda _pid: None
    results: Mapping[str, StepReport] = field(default_factory=dict)
    files: Callable[[str], bytes] = _no_file
    objects: Callable[[], Objects] = field(default=_without("object store"))
    caches: Callable[[], Caches] = field(default=_without("caches"))
    make_engine: Callable[[], Any] = field(default=_without("engine"))

    @property
    def op_id(self) -> str:
        """The same as `idempotency_key`."""
        return f"{self.run_id}.{self.part}"

    @property
    def part(self) -> str:
        """The name of the step; for an item or a host, followed by `@<number>`."""
        return self.step if self.unit is None else f"{self.step}@{self.unit}"

    @property
    def idempotency_key(self) -> str:
        """`<run>.<step>`, for an item or a host followed by `@<number>`. The same for every attempt.

        Pass the key to services, so that they recognise a repeated call.
        """
        return self.op_id

    @property
    def cancelled(self) -> bool:
        """Whether the attempt should stop: the run is aborting, or the deadline has passed."""
        return self.asked_to_stop() or (self.deadline is not None and time.monotonic() >= self.deadline)

    @property
    def engine(self) -> Any:
        """The Docker engine of this host, a `docker.DockerClient`. Raises ConfigError without `longshore[docker]`."""
        return self.make_engine()

    def heartbeat(self, note: str = "") -> None:
        """Log a note, and raise an exception if the attempt should stop.

        Raises StepTimeout after the deadline, and StepCancelled if the run is aborting or a later attempt has claimed
        the step. The method also renews the lease of the attempt, which the worker renews even without a call.
        """
        if note:
            self.log(note)
        self.check()
        if not self.renew():
            raise StepCancelled("another attempt has claimed the step")

    def remaining(self, at_most: float) -> float:
        """Seconds until the deadline, at most `at_most`."""
        if self.deadline is None:
            return at_most
        return max(0.0, min(at_most, self.deadline - time.monotonic()))

    def check(self) -> None:
        """Raise StepTimeout after the deadline, or StepCancelled if the run is aborting."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise StepTimeout("the attempt exceeded its timeout")
        if self.asked_to_stop():
            raise StepCancelled("stopped because the run is aborting")

    def sleep(self, seconds: float) -> None:
        """Sleep for some seconds. Meanwhile, raises StepTimeout or StepCancelled as `check` does, within 0.2 s."""
        end = time.monotonic() + seconds
        while True:
            self.check()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))


#: The context of the step that this thread runs.
current: ContextVar[Context | None] = ContextVar("longshore_step", default=None)


def current_step() -> Context | None:
    """The context of the step whose code calls this function; None outside of a step.

    In a Celery task of an application, the context has no results, files, objects, caches and engine.
    """
    return current.get()
