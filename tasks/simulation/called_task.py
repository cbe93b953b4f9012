"""The implementation of Celery tasks in the sandbox: the application's task is called in this process."""

from __future__ import annotations

import json
from typing import Any

from celery import Celery

from longshore.orchestration.operations.celery_task import TaskParams
from longshore.orchestration.operations.results import as_mapping
from longshore.tasks.implementation import Context, Implementation, Outcome


class CalledTask(Implementation[TaskParams]):
    """A task of an application."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def act(self, ctx: Context, params: TaskParams, before: dict[str, Any]) -> Outcome:
        # The result as a message carries it.
        result = json.loads(json.dumps(self._app.tasks[params.task](*params.args, **params.kwargs)))
        return Outcome(changed=True, data={"result": result} if params.as_result else as_mapping(result))
