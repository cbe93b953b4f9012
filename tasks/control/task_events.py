"""Celery events of a run's root task and of chain links, for Flower and other consumers of Celery's events.

The root task is the first Celery task of a run and represents it: all other tasks of the run have this root, it stays
started while the run is live, and it succeeds or fails when the run ends. A link that ran in the process of the link
before has no message, so its events are sent here. Each event is sent once, without a guarantee: the record decides.
Without a consumer no event is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from celery import Celery

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.states import RunState
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: Seconds for which a process remembers whether anybody consumes events.
_REMEMBERED = 2.0
#: Workers subscribe to one pattern, for remote control; each consumer of events subscribes to others.
_WITHOUT_CONSUMERS = 1
_wanted: dict[int, tuple[float, bool]] = {}


def wanted(store: Store) -> bool:
    """Whether anybody may consume Celery's events now."""
    known = _wanted.get(id(store))
    if known is None or time.monotonic() >= known[0]:
        try:
            found = int(store.call(store.client.pubsub_numpat)) > _WITHOUT_CONSUMERS
        except StoreUnavailable:
            found = True
        known = _wanted[id(store)] = (time.monotonic() + _REMEMBERED, found)
    return known[1]


class TaskEvents:
    """Events of the tasks of one installation; with `app` None (a simulation) none are sent."""

    def __init__(self, app: Celery | None, store: Store, node: str = "") -> None:
        self._app = app
        self._store = store
        self._node = node

    def root_ended(self, run_id: str, plan: str, state: RunState, fields: Mapping[str, str]) -> None:
        """Send the event of the run's end."""
        took = (int(fields.get("ended") or 0) - int(fields.get("started") or fields.get("ended") or 0)) / 1000
        if state is RunState.SUCCEEDED:
            self._send("task-succeeded", run_id, run_id, name=plan, result=repr(str(state)), runtime=took)
        else:
            why = f"{state}: {fields.get('err') or fields.get('cause') or ''}"
            self._send("task-failed", run_id, run_id, name=plan, exception=why, traceback="", runtime=took)

    def root_reopened(self, run_id: str, plan: str) -> None:
        """Send the event that an ended run is live again."""
        self._send("task-retried", run_id, run_id, name=plan, exception="the run was reopened", traceback="")

    def link_started(self, run_id: str, task_id: str, name: str, shown: str) -> None:
        """Send the events that a link of a chain was received and has started."""
        self._send("task-received", task_id, run_id, name=name, args=shown, kwargs="{}", parent_id=run_id)
        self._send("task-started", task_id, run_id)

    def link_ended(self, run_id: str, task_id: str, seconds: float, error: str) -> None:
        """Send the event that a link of a chain has ended."""
        if error:
            self._send("task-failed", task_id, run_id, exception=error, traceback="", runtime=seconds)
        else:
            self._send("task-succeeded", task_id, run_id, result="None", runtime=seconds)

    @property
    def wanted(self) -> bool:
        """Whether events are sent at all."""
        return isinstance(self._app, Celery) and wanted(self._store)

    def _send(self, event: str, task_id: str, run_id: str, **fields: object) -> None:
        if not isinstance(self._app, Celery) or not wanted(self._store):
            return
        try:
            with self._app.events.default_dispatcher(hostname=self._node or None) as dispatcher:
                dispatcher.send(event, uuid=task_id, root_id=run_id, **fields)
        except Exception:  # consumers receive the next event, or read the record
            log.debug("an event of run %s was not sent", run_id, exc_info=True)
