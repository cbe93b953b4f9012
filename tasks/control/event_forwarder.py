"""Forwards run events to server-side hooks and notifiers, at least once.

The position in the event stream is stored with the run. Two workers may forward the same event at the same time. A
worker that is killed while forwarding leaves the other events to the next sweep: a run stays live until all its events
are forwarded.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from celery import Celery

from longshore.orchestration.monitoring import notifications
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs import events
from longshore.orchestration.runs.hooks import HookDispatcher, Hooks, on_workers
from longshore.orchestration.store.run_store import Store

NOTIFY, TRACE = "longshore.notify", "longshore.trace"


def send(app: Celery, task: str, run_id: str, *args: str) -> None:
    """Send a notification task. A lost message is not resent: no part of the run waits for it."""
    app.send_task(
        task, args=(run_id, *args), queue="control", root_id=run_id, parent_id=run_id,
        argsrepr=repr((run_id, *args)), ignore_result=True,
    )  # fmt: skip


log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _hooks() -> list[Hooks]:
    return on_workers()


class EventForwarder:
    """Forwards the events of the runs of one installation."""

    def __init__(self, store: Store, hooks: list[Hooks] | None = None, app: Any = None) -> None:
        self._store = store
        self._hooks = hooks
        self._app = app

    def listens(self) -> bool:
        """Whether this worker forwards events to hooks, notifiers or traces."""
        notified = _hooks() if self._hooks is None else self._hooks
        return bool(notified or self._kinds() or self._traced())

    def _kinds(self) -> frozenset[str]:
        enabled = isinstance(self._app, Celery)
        return notifications.enabled_kinds(self._store.settings) if enabled else frozenset()

    def _traced(self) -> bool:
        return bool(self._store.settings.tracing) and isinstance(self._app, Celery)

    def tell(self, run_id: str, plan: CompiledPlan) -> None:
        """Forward the events since the last call."""
        notified = _hooks() if self._hooks is None else self._hooks
        if not self.listens():
            return
        kinds, traced = self._kinds(), self._traced()
        cursor = self._store.notified(run_id)
        new = events.read(self._store, run_id, plan, cursor)
        if not new:
            return
        dispatchers = [HookDispatcher(self._store, run_id, plan) for _ in notified]
        for event in events.read(self._store, run_id, plan) if cursor != "0-0" else ():
            if event.id == new[0].id:
                break
            for dispatcher in dispatchers:
                dispatcher.note(event)
        for event in new:
            for dispatcher, hooks in zip(dispatchers, notified, strict=True):
                try:
                    dispatcher.tell(event, hooks)
                except Exception:  # an error of a hook must not fail the run
                    log.exception("a hook failed at event %s of run %s", event.id, run_id)
            kind = notifications.kind_of(event)
            if kind in kinds:
                send(self._app, NOTIFY, run_id, event.id)
            if traced and event.name == "run_ended":
                send(self._app, TRACE, run_id)
        self._store.notified(run_id, new[-1].id)
