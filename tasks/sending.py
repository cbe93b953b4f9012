"""The messages by which those outside are told of a run."""

from __future__ import annotations

from celery import Celery

NOTIFY, TRACE = "longshore.notify", "longshore.trace"


def send(app: Celery, task: str, run_id: str, *args: str) -> None:
    """Have it told. What is lost on the way is not told: nothing of the run waits for it."""
    app.send_task(
        task, args=(run_id, *args), queue="control", root_id=run_id, parent_id=run_id,
        argsrepr=repr((run_id, *args)), ignore_result=True,
    )  # fmt: skip
