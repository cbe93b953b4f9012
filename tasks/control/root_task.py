"""The root task: a run's first Celery task, which represents the run in Flower and other consumers of Celery's events.

All other tasks of the run have this root. The root task stays started while the run is live, and succeeds or fails when
the run ends. Its events are sent once, without a guarantee: the record decides, and no consumer is required.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from celery import Celery

from longshore.orchestration.states import RunState

log = logging.getLogger(__name__)


class RootTask:
    """Events of the root tasks of one installation; with `app` None (a simulation) none are sent."""

    def __init__(self, app: Celery | None) -> None:
        self._app = app

    def ended(self, run_id: str, plan: str, state: RunState, fields: Mapping[str, str], node: str = "") -> None:
        """Send the event of the run's end."""
        took = (int(fields.get("ended") or 0) - int(fields.get("started") or fields.get("ended") or 0)) / 1000
        if state is RunState.SUCCEEDED:
            self._tell("task-succeeded", run_id, plan, node, result=repr(str(state)), runtime=took)
        else:
            why = f"{state}: {fields.get('err') or fields.get('cause') or ''}"
            self._tell("task-failed", run_id, plan, node, exception=why, traceback="", runtime=took)

    def again(self, run_id: str, plan: str, node: str = "") -> None:
        """Send the event that an ended run is live again."""
        self._tell("task-retried", run_id, plan, node, exception="the run was reopened", traceback="")

    def _tell(self, event: str, run_id: str, plan: str, node: str, **fields: object) -> None:
        if not isinstance(self._app, Celery):
            return
        try:
            with self._app.events.default_dispatcher(hostname=node or None) as dispatcher:
                dispatcher.send(event, uuid=run_id, name=plan, root_id=run_id, **fields)
        except Exception:  # consumers receive the next event, or read the record
            log.debug("the event of run %s was not sent", run_id, exc_info=True)
