"""All exceptions of Longshore, in one hierarchy.

    LongshoreError                    exit code 1
    ├── UsageError                    exit code 2: an invalid request
    │   ├── PlanError                 an invalid plan, with step and line
    │   │   └── PlanDenied            a plan refused by policy: too large, a plaintext secret, an unsafe template
    │   ├── ParamsError               values that do not match the plan's `params`
    │   ├── UnknownName               no such plan, run, step, operation or host
    │   │   └── JobNotFound           no such job; the message lists the known ones
    │   ├── RunConflict               the run id belongs to a run of another plan
    │   ├── BadIdentifier             a text that is not valid in a key or a path
    │   └── ConfigError               invalid settings, or a missing program or package
    ├── StoreUnavailable              Redis does not answer
    │   └── WrongType                 a key in Redis has an unexpected type
    ├── Damaged                       an unreadable entry in Redis
    ├── QueueFull                 the run queue is full
    ├── ServiceDown               a service that the plan needs is down; the run was refused
    ├── RunLost                   neither the run's record nor its request is in Redis
    ├── RunFailed                     a run did not succeed; carries the report and its exit code
    ├── JobFailed                     a job did not succeed; carries its report
    │   ├── ImageMissing              the image could not be pulled; nothing was stopped
    │   ├── StopFailed                the stack, or a part of it, did not stop
    │   ├── WorkerFailed              the job container failed or did not start
    │   ├── JobTimeout                the job container exceeded its timeout
    │   ├── JobCancelled              the run was cancelled
    │   └── StartFailed               the stack was not fully restarted
    ├── DecodeError                   a step's data does not match the requested type
    ├── WaitTimeout                   waiting timed out; the run continues
    └── OperationError                an operation failed on a worker
        ├── Transient                 a temporary error: the step is retried
        ├── Permanent                 an error that is not retried
        ├── Unsuccessful              the effect was attempted and failed: retried only under an explicit policy
        ├── Delayed                   the outcome is not known yet: the operation is polled
        ├── InDoubt                   the effect may have happened, and a retry could repeat it
        ├── Blocked                   the service is down: its breaker opens, the run is suspended
        ├── Preflight                 failed before any effect
        │   └── NotAllowed            denied by the worker's settings; recorded in the audit trail
        ├── StepTimeout               the attempt exceeded its timeout
        └── StepCancelled             the attempt was stopped, because its run ended early

Each error states what failed, where, and the remedy. `exit_code` is the exit code of the command line,
through any wrapping (`exit_code_of`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class LongshoreError(Exception):
    """Base class of all errors of Longshore. `remedy` is one imperative sentence: the next thing to do."""

    #: The stable name of the error, which `longshore explain` describes. A subclass may have its own.
    code = "general"
    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle rebuilds an exception from `args`, which hold no keyword-only arguments.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[LongshoreError], args: tuple[Any, ...], state: dict[str, Any]) -> LongshoreError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(LongshoreError):
    """The request is invalid: wrong input, names or settings."""

    code = "usage"
    exit_code = 2


@dataclass(eq=False, repr=False)
class Problem:
    """One defect of a plan, with its step and the line of its file.

    `path` is its location inside the plan (`("steps", "pull", "with")`), from which the loader derives the line.
    """

    message: str
    step: str | None = None
    line: int | None = None
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line else []
        where += [f"step {self.step!r}"] if self.step else []
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        return " ".join(text.split())  # names from a file may contain newlines

    def __repr__(self) -> str:
        return f"Problem({str(self)!r})"


#: The most problems listed in one message.
_LISTED = 5


class PlanError(UsageError):
    """The plan is invalid. `problems` lists every defect; the message names the first ones."""

    code = "plan-invalid"

    def __init__(self, problems: list[Problem] | str, *, source: str = "") -> None:
        found = [Problem(problems)] if isinstance(problems, str) else problems
        more = f" (and {len(found) - 1} more: longshore plan validate)" if len(found) > 1 else ""
        # A plan built in Python has no file to validate, so the message lists several problems.
        first = "; ".join(map(str, found[:_LISTED])) + (
            f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        )
        super().__init__(f"{source}: {found[0]}{more}" if source else first)
        self.problems = found
        self.source = source


class PlanDenied(PlanError):
    """The policy of the installation refuses the plan. The denial is recorded in the audit trail."""

    code = "plan-denied"


class ParamsError(UsageError):
    """The values do not match the `params` of the plan."""

    code = "params-invalid"


class UnknownName(UsageError):
    """The plan, run, step, operation, host, service or schedule of this name does not exist."""

    code = "unknown-name"


class JobNotFound(UnknownName):
    """No host that answered has a job of this name."""

    code = "job-not-found"


class BadIdentifier(UsageError):
    """A run id, or another part of a key or a path, has invalid characters."""

    code = "bad-identifier"


class RunConflict(UsageError):
    """The run id belongs to a run of another plan or with other parameters."""

    code = "run-conflict"


class ConfigError(UsageError):
    """The settings are invalid or contradictory, or a program or package is missing."""

    code = "config-invalid"


class StoreUnavailable(LongshoreError):
    """Redis does not answer, or refuses the request."""

    code = "store-unavailable"


class WrongType(StoreUnavailable):
    """A key in Redis has an unexpected type."""

    code = "wrong-type"


class Damaged(LongshoreError):
    """An entry in Redis cannot be read. The reader moves it to the dead letters and continues."""

    code = "damaged-entry"


#: Exceptions that decoding a damaged entry can raise.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


class DecodeError(LongshoreError):
    """The data of the step does not exist, or does not match the requested type."""

    code = "decode-failed"


class WaitTimeout(LongshoreError):
    """The run did not end, or did not answer a command, within the time limit of the call. The run continues."""

    code = "wait-timeout"


class QueueFull(LongshoreError):
    """Too many runs wait for their admission (setting `max_queued`). Nothing was stored."""

    code = "queue-full"


class ServiceDown(LongshoreError):
    """A service that the plan needs is down, and the setting `on_blocked` is `refuse`. Nothing was stored."""

    code = "service-down"


class RunLost(LongshoreError):
    """Neither the run's record nor its request is in Redis: the run was pruned, or Redis lost its data."""

    code = "run-lost"


class RunFailed(LongshoreError):
    """The run has ended without success; `report` is its report."""

    code = "run-failed"

    def __init__(self, message: str, *, report: Any, exit_code: int) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = exit_code


class JobFailed(LongshoreError):
    """The job has ended without success; `report` covers the whole run, `report.job` the job."""

    code = "job-failed"

    def __init__(self, message: str, *, report: Any, exit_code: int = 1) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = exit_code


class ImageMissing(JobFailed):
    """The image of the job container is missing and could not be pulled. The stack was not stopped."""

    code = "image-missing"


class StopFailed(JobFailed):
    """At least one container of the stack did not stop. The others start again, unless the job keeps them stopped."""

    code = "stop-failed"


class WorkerFailed(JobFailed):
    """The job container failed or did not start."""

    code = "worker-failed"


class JobTimeout(JobFailed):
    """The job container exceeded its timeout and was stopped."""

    code = "job-timeout"


class JobCancelled(JobFailed):
    """The run of the job was cancelled."""

    code = "job-cancelled"


class StartFailed(JobFailed):
    """Some containers of the stack did not become healthy again after the job; `report.job.down` lists them."""

    code = "start-failed"


class OperationError(LongshoreError):
    """The operation failed; it may have acted in part, except with the subclasses `Preflight` and `Blocked`."""

    code = "operation-failed"

    def __init__(self, message: str, *, remedy: str = "", data: dict[str, Any] | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.data = data or {}


class Transient(OperationError):
    """A temporary error, such as a busy engine or an unreachable registry: the step is retried."""

    code = "transient"


class Permanent(OperationError):
    """An error that another attempt would meet again, such as a declined card: the step is not retried."""

    code = "permanent"


class Unsuccessful(OperationError):
    """The operation was completed without success, such as a command with exit code 1.

    The step is retried only if the step or the plan has `retry`.
    """

    code = "unsuccessful"


class Delayed(OperationError):
    """The effect has begun, and its outcome is not known yet: the worker calls the operation again later.

    The later call has the same idempotency key. If the operation has a `done` function, the worker calls the operation
    only if `done` finds no effect. `after` is the delay in seconds, by default the setting `slow_retry`. These calls do
    not count against the retry limit.
    """

    code = "delayed"

    def __init__(self, message: str = "outcome not known yet", *, after: float | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.after = after


class InDoubt(OperationError):
    """The effect may have happened and cannot be verified: the step ends `unknown`."""

    code = "in-doubt"


class Blocked(OperationError):
    """The service is down, and no effect happened: the run is suspended until the service works again.

    `service` is the name of the service, by default the `service` of the operation. The attempt does not count against
    the retry limit.
    """

    code = "blocked"

    def __init__(self, message: str = "the service does not answer", *, service: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.service = service


class Preflight(OperationError):
    """The operation failed before any effect: there is nothing to undo."""

    code = "preflight"


class NotAllowed(Preflight):
    """The settings of the worker forbid the operation. The denial is recorded in the audit trail."""

    code = "not-allowed"


class StepTimeout(OperationError):
    """The attempt exceeded its timeout."""

    code = "step-timeout"


class StepCancelled(OperationError):
    """The attempt was stopped, because its run ended early."""

    code = "step-cancelled"


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
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
    """The error, its causes, and the errors that requests and urllib3 store in `args` and `reason`."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop()
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]


def code_of(error: BaseException) -> str:
    """The code of an error, through any wrapping; '' where no error of Longshore is among its causes."""
    return next((link.code for link in chain(error) if isinstance(link, LongshoreError)), "")


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error. Other exceptions may wrap the error."""
    for link in chain(error):
        if isinstance(link, LongshoreError):
            return link.exit_code
    return 1


def plain(message: str) -> str:
    """A pydantic message without its `Value error, ` prefix."""
    return message.removeprefix("Value error, ")
