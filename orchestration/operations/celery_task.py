"""An application's Celery task as a step, executed by the application's own workers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, Waits, register

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


class TaskParams(Params):
    """The parts of a signature. `queue` is a queue that the application's workers consume.

    * `fenced` – each worker of the application asks the record before it begins the task
      (`longshore.orchestration.celery.install`)
    * `idempotent` – a second execution has no further effect; after the loss of a worker only such a task runs again
    """

    task: Annotated[str, Field(min_length=1)]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    queue: str = "celery"
    fenced: bool = False
    idempotent: bool = False


class TaskResult(Result):
    """The mapping that the task returned; any other value is stored as `result`."""

    result: Any = None


CELERY = register(
    Operation(
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
    )
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
            remedy="make callbacks steps of their own, and set timeouts and retries on the step",
        )
    params: dict[str, Any] = {"task": signature.task}
    if signature.args:
        params["args"] = list(signature.args)
    if signature.kwargs:
        params["kwargs"] = dict(signature.kwargs)
    if (queue := _queue(signature)) != "celery":
        params["queue"] = queue
    if getattr(signature.app, FENCED, False):
        params["fenced"] = True
    return params


#: The attribute of an application's Celery app whose workers ask the record before they begin a task.
FENCED = "longshore_fenced"
#: Options of a signature that routing uses; the task id is that of the step.
_CARRIED = frozenset({"queue", "routing_key", "exchange", "task_id", "immutable"})


def _queue(signature: Signature[Any]) -> str:
    """The queue by the task's options, the signature's options and the application's routes."""
    app = signature.app
    task: Any = app.tasks.get(str(signature.task))
    own = {key: value for key, value in (task._get_exec_options() if task else {}).items() if value is not None}
    options = own | dict(signature.options)
    routed = app.amqp.router.route(options, str(signature.task), signature.args, signature.kwargs)
    queue = routed.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))
