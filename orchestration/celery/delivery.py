"""One delivery of a task that runs for a step: its begin, its lease, its output and its end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from uuid import uuid4

from celery.exceptions import Ignore, Reject, Retry

from longshore.orchestration.authoring.context import Context, HostFacts, current
from longshore.orchestration.errors import (
    InDoubt,
    LongshoreError,
    Permanent,
    Preflight,
    StepCancelled,
    StoreUnavailable,
)
from longshore.orchestration.messaging.step_header import StepHeader
from longshore.orchestration.monitoring.output import captured, pass_on
from longshore.orchestration.operations.celery_task import STOP_GRACE, TaskError
from longshore.orchestration.plans.compiled import unit_of
from longshore.orchestration.states import RunState
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: Seconds between two questions of a delivery that may begin soon, and while Redis does not answer.
_SOON, _REDIS_PAUSE = 0.1, 1.0
#: Seconds between two reads of the run's state.
_STOP_POLL = 0.5
#: The marks of errors; the first match counts.
_MARKS: tuple[tuple[type[LongshoreError], TaskError], ...] = (
    (Preflight, TaskError.PREFLIGHT),
    (Permanent, TaskError.PERMANENT),
    (StepCancelled, TaskError.CANCELLED),
    (InDoubt, TaskError.IN_DOUBT),
)

#: The deliveries under way in this process, by task id.
running: dict[str, TaskDelivery] = {}


class TaskDelivery:
    """A delivery as a context manager around the task. Raises Ignore where the record refuses the delivery."""

    def __init__(self, store: Store, header: StepHeader, request: Any) -> None:
        self._store = store
        self._header = header
        self._task_id = str(request.id)
        self._retries = int(request.retries or 0)
        self._host = str(request.hostname or "")
        self._owner = f"{request.id}@{request.hostname}/{uuid4().hex[:8]}"
        self._deadline = 0.0
        self._over = threading.Event()
        #: Whether another attempt has the step now, or the time limit has passed.
        self._lost = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TaskDelivery:
        self._begin()
        running[self._task_id] = self
        threading.Thread(target=self._keep, name="longshore-lease", daemon=True).start()
        self._stack.enter_context(captured(self._print))
        token = current.set(self._context())
        self._stack.callback(current.reset, token)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if isinstance(error, Exception) and not isinstance(error, Retry | Ignore | Reject):
            self._note(error)

    def end(self, how: str) -> None:
        """Release the lease, as `Store.release_task` does."""
        self._over.set()
        try:
            self._store.release_task(*self._place, self._header.fence, self._owner, how)
        except StoreUnavailable as error:  # the lease expires instead
            log.warning("task %s: its lease was not released: %s", self._task_id, error)

    # --- the begin ----------------------------------------------------------------------------

    def _begin(self) -> None:
        give_up = time.monotonic() + self._header.seconds
        while True:
            try:
                answer, what = self._store.begin_task(
                    *self._place, self._header.fence, self._owner, self._retries, always=self._header.always
                )
            except StoreUnavailable as error:
                answer, what, pause = "early", str(error), _REDIS_PAUSE
            else:
                pause = _SOON
            if answer == "ok":
                self._deadline = time.monotonic() + int(float(what)) / 1000
                return
            if answer == "no" or time.monotonic() >= give_up:
                log.warning("task %s is not carried out for step %s: %s", self._task_id, self._header.step, what)
                raise Ignore(f"not carried out for step {self._header.step} of run {self._header.run_id}: {what}")
            time.sleep(pause)

    @property
    def _place(self) -> tuple[str, Any, str]:
        return self._header.run_id, self._header.step_id, self._header.side

    # --- while the task runs ------------------------------------------------------------------

    def _keep(self) -> None:
        """Renew the lease until the end; interrupt a task that has lost its step, or is late, and end its process."""
        every = self._store.settings.lease / 3
        while not self._over.wait(min(every, max(0.0, self._deadline - time.monotonic()))):
            if time.monotonic() >= self._deadline or not self._renewed():
                break
        else:
            return
        self._lost = True
        handler = signal.getsignal(signal.SIGUSR1)
        if getattr(handler, "__name__", "") != "soft_timeout_sighandler":
            self._keep_without_end()
            return
        log.warning("task %s is interrupted: its attempt has no time left, or was superseded", self._task_id)
        os.kill(os.getpid(), signal.SIGUSR1)  # Celery raises SoftTimeLimitExceeded in the task
        until = time.monotonic() + STOP_GRACE
        while not self._over.wait(min(every, max(0.0, until - time.monotonic()))):
            self._renewed()
            if time.monotonic() >= until:
                os.kill(os.getpid(), signal.SIGKILL)

    def _keep_without_end(self) -> None:
        """Renew the lease of a late task that runs in a thread, which no signal can interrupt."""
        while not self._over.wait(self._store.settings.lease / 3) and self._renewed():
            pass

    def _renewed(self) -> bool:
        member = f"{self._header.side}{self._header.step_id}"
        try:
            return self._store.renew(self._header.run_id, [(member, self._owner)]) > 0
        except StoreUnavailable:
            return True  # the lease decides

    def _context(self) -> Context:
        header = self._header
        return Context(
            run_id=header.run_id,
            step=header.step,
            plan=header.plan,
            attempt=header.attempt,
            fence=int(header.fence),
            unit=unit_of(header.step_id),
            host=HostFacts(self._host.partition("@")[2]),
            deadline=self._deadline,
            asked_to_stop=self._asked_to_stop,
            log=lambda text: self._printed("", text.splitlines()),
            printed=self._printed,
            renew=self._renewed,
        )

    _read_at = 0.0
    _stop = False

    def _asked_to_stop(self) -> bool:
        """Whether the run is being ended or another attempt has the step; reads Redis every half second at most."""
        ends = not self._header.side and not self._header.always
        if ends and not self._stop and time.monotonic() - self._read_at >= _STOP_POLL:
            self._read_at = time.monotonic()
            with contextlib.suppress(StoreUnavailable):
                self._stop = self._store.state(self._header.run_id) == RunState.ABORTING
        return self._stop or self._lost

    def _print(self, stream: str, lines: Sequence[str]) -> None:
        with contextlib.suppress(StoreUnavailable):  # a task does not fail for its output
            self._store.add_log(self._header.run_id, self._header.step_id, lines, stream)

    def _printed(self, stream: str, lines: Sequence[str]) -> None:
        pass_on()
        self._print(stream, lines)

    # --- the error ----------------------------------------------------------------------------

    def _note(self, error: Exception) -> None:
        """Record the error before Celery sends the message of the failure, which does not contain it."""
        self._print("stderr", "".join(traceback.format_exception(error)).splitlines())
        text = str(error) if isinstance(error, LongshoreError) else f"{type(error).__name__}: {error}"
        kind = next((mark for kind, mark in _MARKS if isinstance(error, kind)), "")
        known = {"fence": self._header.fence, "error": text[:2000], "kind": str(kind)}
        try:
            json.dumps(known).encode()
            self._store.note_task_error(*self._place, known)
        except (StoreUnavailable, UnicodeError) as why:
            log.warning("the error of task %s was not stored: %s", self._task_id, why)
