"""An application's own Celery task as a step, run bare by the application's own workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, Waits, register

if TYPE_CHECKING:
    from celery import Signature


class TaskParams(Params):
    """A signature's parts. `queue` is where the application's workers look for it."""

    task: Annotated[str, Field(min_length=1)]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    queue: str = "celery"


class TaskResult(Result):
    """A mapping that the task returned is the data itself; anything else is `result`."""

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
        # It may be under way at any time after it was sent.
        repeatable=lambda _params: False,
        waits=Waits.TASK,
    )
)


def as_params(signature: Signature[Any]) -> dict[str, Any]:
    """A signature as parameters: its task, arguments and queue. UsageError for what is no single task, and for
    options that would be lost on the way.
    """
    if not isinstance(signature, dict):
        raise UsageError(f"{signature!r} is no signature", remedy="give one, as task.s(42) makes it")
    if signature.get("subtask_type"):
        raise UsageError("a step is one task's signature", remedy="give each task of a canvas a step of its own")
    if lost := sorted(key for key, value in signature.options.items() if key not in _CARRIED and value is not None):
        raise UsageError(
            f"the signature of {signature.task} has {', '.join(lost)}, which a step does not carry",
            remedy="what comes after it is a step of its own; times and retries are the step's",
        )
    params: dict[str, Any] = {"task": signature.task}
    if signature.args:
        params["args"] = list(signature.args)
    if signature.kwargs:
        params["kwargs"] = dict(signature.kwargs)
    if (queue := _queue(signature)) != "celery":
        params["queue"] = queue
    return params


#: Options of a signature that say where it goes; its id is the step's own.
_CARRIED = frozenset({"queue", "routing_key", "exchange", "task_id", "immutable"})


def _queue(signature: Signature[Any]) -> str:
    """As the task itself, the signature and the application's routes say."""
    app = signature.app
    task: Any = app.tasks.get(str(signature.task))
    own = {key: value for key, value in (task._get_exec_options() if task else {}).items() if value is not None}
    options = own | dict(signature.options)
    routed = app.amqp.router.route(options, str(signature.task), signature.args, signature.kwargs)
    queue = routed.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))
