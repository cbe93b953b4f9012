"""An application's Celery task as a step, executed by the application's own workers."""

from __future__ import annotations

from bisect import bisect
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AwareDatetime, Field

from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations.base import (
    NO_RETRY,
    About,
    Kind,
    Params,
    Result,
    Undo,
    Waits,
    register,
)

if TYPE_CHECKING:
    from celery import Signature


#: Seconds from the interruption of a fenced task at its time limit to the end of its process.
STOP_GRACE = 10.0


class TaskError(StrEnum):
    """How an application has marked the error of a task; an error without a mark is retried by an explicit policy."""

    PERMANENT = "permanent"
    #: Raised before any effect.
    PREFLIGHT = "preflight"
    CANCELLED = "cancelled"
    IN_DOUBT = "in_doubt"


class TaskOptions(Params):
    """The options of a message. `priority` is one of the steps that the application's broker has; `expires` is a number
    of seconds from the dispatch, or a time.
    """

    priority: Annotated[int, Field(ge=0, le=9)] = 0
    expires: Annotated[float, Field(gt=0)] | AwareDatetime | None = None
    time_limit: Annotated[float, Field(gt=0)] | None = None
    soft_time_limit: Annotated[float, Field(gt=0)] | None = None
    headers: dict[str, Any] = {}

    def lifetime(self, since: float = 0.0) -> float | None:
        """Seconds from now until the message expires, `since` seconds after its dispatch; None for no end."""
        if isinstance(self.expires, datetime):
            return max(0.0, (self.expires - datetime.now(UTC)).total_seconds())
        return None if self.expires is None else max(0.0, self.expires - since)


class TaskParams(Params):
    """The step sends the message of the task, and waits for the end of the task without occupying a worker."""

    task: Annotated[str, Field(min_length=1, description="Name of the task")]
    args: list[Any] = Field([], description="Positional arguments")
    kwargs: dict[str, Any] = Field({}, description="Keyword arguments")
    queue: str = Field("celery", description="A queue that the application's workers consume")
    as_result: bool = Field(default=False, description="Put every returned value under `result`, even a mapping")
    options: TaskOptions = Field(TaskOptions(), description="Celery options of the message")
    fenced: bool = Field(
        default=False, description="Set to true if the application calls `install(app)`, which fences its tasks"
    )
    idempotent: bool = Field(
        default=False, description="Set to true if a second execution of the task has no further effect"
    )


class TaskResult(Result):
    """`result` is the value that the task returns. If the value is a mapping, the data have its keys instead, unless
    `as_result` is set.
    """

    result: Any = None


CELERY = register(
    name="celery.task.execute",
    params=TaskParams,
    result=TaskResult,
    queue="control",
    kind=Kind.ACTS,
    undo=Undo.NONE,
    summary="Run an application's Celery task on the application's workers",
    retry=NO_RETRY,
    repeatable=lambda params: params.get("idempotent") is True,
    waits=Waits.TASK,
    about=About(
        changed="always",
        undo="none; give the step an `undo` in the plan",
        duplicate="after a lost attempt, sends the task again only with `idempotent`; otherwise, the step is unknown",
        fails="if the task fails. With `fenced`, also if the task has not begun at the time limit of the step, or is "
        "then interrupted. Otherwise, the step is unknown after its time limit",
        dry_run="names the task and its queue",
        retried="each error of the task; with `fenced`, except Permanent, Preflight, InDoubt and StepCancelled",
    ),
)


def as_params(signature: Signature[Any]) -> dict[str, Any]:
    """Convert a signature to parameters: its task, arguments and queue. Raises UsageError for a canvas, and for
    options that a step does not carry.
    """
    if not isinstance(signature, dict):
        raise UsageError(f"{signature!r} is not a signature", remedy="pass one, such as task.s(42)")
    if signature.get("subtask_type"):
        raise UsageError("a step takes the signature of a single task", remedy="make each task of the canvas a step")
    if lost := sorted(key for key, value in signature.options.items() if key not in _CARRIED and value is not None):
        raise UsageError(
            f"the signature of {signature.task} has unsupported options: {', '.join(lost)}",
            remedy="make callbacks steps of their own, set retries on the step, and remove other options",
        )
    params: dict[str, Any] = {"task": signature.task}
    if signature.args:
        params["args"] = list(signature.args)
    if signature.kwargs:
        params["kwargs"] = dict(signature.kwargs)
    if (queue := _queue(signature)) != "celery":
        params["queue"] = queue
    if options := _options(signature):
        params["options"] = options
    if getattr(signature.app, FENCED, False):
        params["fenced"] = True
    return params


#: The attribute of an application's Celery app whose workers ask the record before they begin a task.
FENCED = "longshore_fenced"
#: Options of a signature that the message keeps, and those that routing uses; the task id is that of the step.
_KEPT = ("expires", "time_limit", "soft_time_limit", "headers")
_CARRIED = frozenset({"queue", "routing_key", "exchange", "priority", "task_id", "immutable", *_KEPT})
#: The priorities that Celery's Redis transport tells apart, where the application configures no others.
_PRIORITY_STEPS = (0, 3, 6, 9)


def _options(signature: Signature[Any]) -> dict[str, Any]:
    """The message options of the task and of the signature, as JSON."""
    given = _own_options(signature) | dict(signature.options)
    options: dict[str, Any] = {key: given[key] for key in _KEPT if given.get(key)}
    if isinstance(expires := options.get("expires"), datetime):
        options["expires"] = (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).isoformat()
    if given.get("priority"):
        steps = sorted((signature.app.conf.broker_transport_options or {}).get("priority_steps", _PRIORITY_STEPS))
        if step := steps[max(0, bisect(steps, given["priority"]) - 1)]:
            options["priority"] = step
    return options


def _own_options(signature: Signature[Any]) -> dict[str, Any]:
    task: Any = signature.app.tasks.get(str(signature.task))
    return {key: value for key, value in (task._get_exec_options() if task else {}).items() if value is not None}


def _queue(signature: Signature[Any]) -> str:
    """The queue by the task's options, the signature's options and the application's routes."""
    app = signature.app
    options = _own_options(signature) | dict(signature.options)
    routed = app.amqp.router.route(options, str(signature.task), signature.args, signature.kwargs)
    queue = routed.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))
