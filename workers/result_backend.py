"""A result backend that stores no results: it takes over the part of a chord's body when the run's record allows it.

Outcomes live in the saga. The script that records an outcome also counts its level; the task returns, or its exception
carries, an `Advance` where the run can continue. A worker of the control queue then advances the run in the same
process, as the body of the chord would; any other worker publishes the body. Nothing is counted twice, and a failed
step is a failed Celery task while its chord continues.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, states
from celery.backends.base import DisabledBackend

from longshore.orchestration.messaging.canvas import Canvas
from longshore.orchestration.plans.compiled import CONTROL
from longshore.tasks.control.celery_tasks import Advance, advance_here, consumed_queues
from longshore.tasks.loaded_runs import NotOurs

log = logging.getLogger(__name__)


class SagaBackend(DisabledBackend):
    """The backend of Longshore's own tasks; other tasks of the same app have no results."""

    app: Celery  # set by the base class

    def ensure_chords_allowed(self) -> None:
        """Allow chords: the record counts them."""

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Store nothing: the run's record counts its level."""

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Store nothing: the run's record counts its level."""

    def get_state(self, task_id: str) -> str:
        """A state that Celery does not overwrite when a task is revoked: no state is stored here."""
        return states.STARTED

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        if isinstance(result, Advance):
            self._go_on(request, result)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        advance = getattr(exc, "advance", None)
        if isinstance(advance, Advance):
            self._go_on(request, advance)

    def _go_on(self, request: Any, advance: Advance) -> None:
        """Advance the run in this process where the worker does control work; else, or if that fails, send a message:
        the body of the chord, or an advance message where the step has none.
        """
        run_id, plan_name = advance
        try:
            if CONTROL in consumed_queues(self.app):
                advance_here(self.app, run_id, str(getattr(request, "hostname", "") or ""))
                return
        except NotOurs as why:
            log.info("run %s is left to another worker: %s", run_id, why)
        except Exception:  # a message is retried, and the sweeper sends a lost one
            log.warning("run %s: it is advanced by a message", run_id, exc_info=True)
        try:
            if request is not None and request.chord:
                # Its own parent is the run, not the header task that happened to end last.
                self.app.signature(request.chord).apply_async(root_id=run_id, parent_id=run_id)
            else:
                Canvas(self.app, run_id).send_advance(plan_name)
        except Exception:  # the sweeper sends a lost advance
            log.warning("run %s: sending its advance failed; the sweeper sends it", run_id, exc_info=True)
