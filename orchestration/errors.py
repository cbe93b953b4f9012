"""Every error of Longshore, under one root.

    LongshoreError                    exit code 1
    ├── UsageError                    exit code 2: what was asked for makes no sense
    │   ├── PlanError                 a plan that cannot be run, with step and line
    │   │   └── PlanDenied            one that could do harm: too large, a secret in clear, a template that breaks out
    │   ├── ParamsError               values that do not fit the plan's `params`
    │   ├── UnknownName               no such plan, run, step or operation
    │   │   └── JobNotFound           no such job; names those that there are
    │   ├── RunConflict               the run id is taken by another plan
    │   ├── BadIdentifier             a text that can be no part of a key or of a path
    │   └── ConfigError               settings, a missing program or package
    ├── StoreUnavailable              Redis does not answer
    │   └── WrongType                 a key in Redis has another type than Longshore gave it
    ├── Damaged                       an entry in Redis that cannot be read
    ├── QueueFull                 as many runs wait as may
    ├── ServiceDown               a service that the plan needs is down, and new runs are refused
    ├── RunLost                   the run is not in Redis any more
    ├── RunFailed                     a run ended badly; carries the report and its exit code
    ├── JobFailed                     a job ended badly; carries its report
    │   ├── ImageMissing              its image could not be had: nothing was stopped
    │   ├── StopFailed                the stack, or part of it, would not stop
    │   ├── WorkerFailed              the worker ended with an error, or never began
    │   ├── JobTimeout                the worker ran out of its time
    │   ├── JobCancelled              somebody has cancelled it
    │   └── StartFailed               the stack is not fully up again
    ├── DecodeError                   a step's data is not of the type that was asked for
    ├── WaitTimeout                   the run goes on, the waiting ended
    └── OperationError                an operation failed on a worker
        ├── Transient                 may pass: it is tried again
        ├── Unsuccessful              it was done and did not work: tried again where the plan says so
        ├── Delayed                   not known yet how it ended: it is asked again
        ├── InDoubt                   it may have happened, and asking again would be to do it again
        ├── Blocked                   its service is down: its breaker opens, the run is suspended
        ├── Preflight                 failed before anything was touched
        │   └── NotAllowed            this worker's settings forbid it; stands in the audit trail
        ├── StepTimeout               the attempt ran out of its time
        └── StepCancelled             the run asked its running steps to stop

Each error says what happened, where, and what to do next; `exit_code` is what the command line
returns for it, through any wrapping (`exit_code_of`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class LongshoreError(Exception):
    """Root of all errors. `remedy` is one sentence that says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments are not in `args`, from which exceptions are copied between processes.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[LongshoreError], args: tuple[Any, ...], state: dict[str, Any]) -> LongshoreError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(LongshoreError):
    """What was asked for cannot be done as it was asked."""

    exit_code = 2


class Problem:
    """One thing that is wrong with a plan: what, in which step, at which line of its file.

    `path` leads to it inside the plan (`("steps", "pull", "with")`); the reader of a file turns it
    into a line.
    """

    def __init__(
        self,
        message: str,
        *,
        step: str | None = None,
        line: int | None = None,
        path: tuple[str | int, ...] = (),
    ) -> None:
        self.message = message
        self.step = step
        self.line = line
        self.path = path

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line else []
        where += [f"step {self.step!r}"] if self.step else []
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        return " ".join(text.split())  # one line, whatever a file has put into a name

    def __repr__(self) -> str:
        return f"Problem({str(self)!r})"


#: Problems that one line may tell of.
_TOLD = 5


class PlanError(UsageError):
    """A plan that cannot be run. `problems` holds all that was found, the message names the first of them."""

    def __init__(self, problems: list[Problem] | str, *, source: str = "") -> None:
        found = [Problem(problems)] if isinstance(problems, str) else problems
        more = f" (and {len(found) - 1} more: longshore plan validate)" if len(found) > 1 else ""
        # A plan that was built in Python has no file that could be validated: all of it is told here.
        first = "; ".join(map(str, found[:_TOLD])) + (f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else "")
        super().__init__(f"{source}: {found[0]}{more}" if source else first)
        self.problems = found
        self.source = source


class PlanDenied(PlanError):
    """A plan that is refused for what it could do. It stands in the audit trail."""


class ParamsError(UsageError):
    """Values that do not fit the plan's `params`."""


class UnknownName(UsageError):
    """No such plan, run, step or operation."""


class JobNotFound(UnknownName):
    """No such job, on the hosts that answered."""


class BadIdentifier(UsageError):
    """A run id, or another text that becomes a part of a key or of a path, is none."""


class RunConflict(UsageError):
    """The run id belongs to a run of another plan or with other parameters."""


class ConfigError(UsageError):
    """Settings that contradict each other, or a program or package that is missing."""


class StoreUnavailable(LongshoreError):
    """Redis does not answer, or refuses to write."""


class WrongType(StoreUnavailable):
    """A key in Redis has another type than the one that Longshore gave it."""


class Damaged(LongshoreError):
    """An entry in Redis that cannot be read: it becomes one dead letter, and harms nothing else."""


#: What the reader of a damaged entry raises.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


class DecodeError(LongshoreError):
    """There is no such step, or its data does not fit the type."""


class WaitTimeout(LongshoreError):
    """Waiting ended before the run did. The run goes on."""


class QueueFull(LongshoreError):
    """As many runs wait to begin as may. Nothing was stored."""


class ServiceDown(LongshoreError):
    """A service that the plan needs is down, and the setting `on_blocked` refuses new runs. Nothing was stored."""


class RunLost(LongshoreError):
    """The run was there, and is not in Redis any more: it was pruned, or Redis has lost its data."""


class RunFailed(LongshoreError):
    """A run that did not end as asked; `report` is complete all the same."""

    def __init__(self, message: str, *, report: Any, exit_code: int) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = exit_code


class JobFailed(LongshoreError):
    """A job that did not end as asked; `report` is the whole run's, `report.job` its own part."""

    def __init__(self, message: str, *, report: Any, exit_code: int = 1) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = exit_code


class ImageMissing(JobFailed):
    """The worker's image is not there and could not be had. Nothing was stopped."""


class StopFailed(JobFailed):
    """The stack, or a part of it, would not stop. What was stopped has been started again."""


class WorkerFailed(JobFailed):
    """The worker ended with an error, or never began."""


class JobTimeout(JobFailed):
    """The worker ran out of its time, and was ended."""


class JobCancelled(JobFailed):
    """Somebody has cancelled the run."""


class StartFailed(JobFailed):
    """Not all that ran before is well again: `report.job.down` names it. The work itself may have succeeded."""


class OperationError(LongshoreError):
    """An operation failed. Permanent unless it is `Transient`; its effect is unknown unless `Preflight`."""

    def __init__(self, message: str, *, remedy: str = "", data: dict[str, Any] | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.data = data or {}


class Transient(OperationError):
    """An error that can pass: the engine is busy, a registry is away. The step's policy tries it again."""


class Unsuccessful(OperationError):
    """Done, and not with success: an exit code. Tried again only where step or plan has a policy."""


class Delayed(OperationError):
    """It was begun, and it is not known yet how it ended: it is asked again, until the step's time is over.

    Asking is to call the operation once more, with the same idempotency key; one that has a `done` answers by
    that. `after` is when, in seconds; the setting `slow_retry` where it is left out. It uses up no attempt.
    """

    def __init__(self, message: str = "not known yet", *, after: float | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.after = after


class InDoubt(OperationError):
    """It may have happened, and there is nobody to ask: the step ends `unknown`."""


class Blocked(OperationError):
    """Nothing was done, because the service is down: its breaker opens, and the run waits until it is back.

    `service` is its name, the one that the operation declares where it is left out. It uses up no attempt.
    """

    def __init__(self, message: str = "the service does not answer", *, service: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.service = service


class Preflight(OperationError):
    """Failed before anything was touched, so that there is nothing to undo."""


class NotAllowed(Preflight):
    """The settings of the worker forbid it, whatever a plan says. It stands in the audit trail."""


class StepTimeout(OperationError):
    """The attempt ran out of its time."""


class StepCancelled(OperationError):
    """The run asked its running steps to stop, and this one did."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it was raised from, outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting.append(current.__cause__ or current.__context__)
        if isinstance(current, BaseExceptionGroup):
            waiting += reversed(current.exceptions)


def wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and the errors that requests and urllib3 keep in its arguments."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop()
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]


def exit_code_of(error: BaseException) -> int:
    """The exit code an error stands for, however often it was wrapped."""
    for link in chain(error):
        if isinstance(link, LongshoreError):
            return link.exit_code
    return 1


def plain(message: str) -> str:
    """A message of pydantic's without the words that are for programmers."""
    return message.removeprefix("Value error, ")
