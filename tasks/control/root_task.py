"""A run's first task stands for the whole run in Flower, and in whatever else listens to Celery's events.

It is the root of all others. It stays started while the run goes on, and ends when the run does: well or as failed.
These are signs only, sent once as it happens: the record is the truth, and nobody has to listen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from celery import Celery

from longshore.orchestration.states import RunState

log = logging.getLogger(__name__)


class RootTask:
    """Of the runs of one installation; `app` None where nobody is told (a simulation)."""

    def __init__(self, app: Celery | None) -> None:
        self._app = app

    def ended(self, run_id: str, plan: str, state: RunState, fields: Mapping[str, str], node: str = "") -> None:
        """Say that the run has come to rest."""
        took = (int(fields.get("ended") or 0) - int(fields.get("started") or fields.get("ended") or 0)) / 1000
        if state is RunState.SUCCEEDED:
            self._tell("task-succeeded", run_id, plan, node, result=repr(str(state)), runtime=took)
        else:
            why = f"{state}: {fields.get('err') or fields.get('cause') or ''}"
            self._tell("task-failed", run_id, plan, node, exception=why, traceback="", runtime=took)

    def again(self, run_id: str, plan: str, node: str = "") -> None:
        """Say that a run that rested goes on."""
        self._tell("task-retried", run_id, plan, node, exception="somebody has asked that it go on", traceback="")

    def _tell(self, event: str, run_id: str, plan: str, node: str, **fields: object) -> None:
        if not isinstance(self._app, Celery):
            return
        try:
            with self._app.events.default_dispatcher(hostname=node or None) as dispatcher:
                dispatcher.send(event, uuid=run_id, name=plan, root_id=run_id, **fields)
        except Exception:  # who listens hears of it at the next occasion, or looks at the record
            log.debug("nobody could be told of run %s", run_id, exc_info=True)
