"""The leases of an application's tasks: the begin and the end of each delivery on a worker of the application."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.store.connection import milliseconds as _ms
from longshore.orchestration.store.indices import Indices
from longshore.orchestration.store.keys import Field


class TaskLeases(Indices):
    """Begins and releases tasks. Methods raise StoreUnavailable where Redis does not answer."""

    def begin_task(
        self, run_id: str, step_id: StepId, side: str, fence: str, owner: str, retries: int, *, always: bool = False
    ) -> tuple[str, str]:
        """Begin a delivery of an application's task under a lease.

        Returns `ok` with the ms until the time limit, `early` with the reason to ask again, or `no` with the reason why
        the delivery must not be carried out.
        """
        more = (_ms(self.settings.lease), retries, "1" if always else "")
        answer, what = self._run("begin", run_id, step_id, side, fence, owner, *more)
        if answer == "ok":
            self.look_at(run_id, self.now() + _ms(self.settings.lease / 3), sooner=True)
        return str(answer), str(what)

    def resend_task(self, run_id: str, step_id: StepId, side: str, fence: str) -> tuple[bool, int | None]:
        """Find out whether the message of a task that no worker has begun is to be sent again now.

        The answer is atomic: of several callers one sends the message. The second value is the time of the next look,
        ms; None for a task that has begun or ended.
        """
        send, due = self._run("resend_task", run_id, step_id, side, fence, _ms(self.settings.lease))
        return str(send) == "1", int(due) if due else None

    def release_task(self, run_id: str, step_id: StepId, side: str, fence: str, owner: str, how: str = "") -> None:
        """Release the lease of a delivery: the task has `ended`, its message comes `again`, or it retries by itself."""
        self._run("release", run_id, step_id, side, fence, owner, how)
        self.look_at(run_id, self.now(), sooner=True)

    def note_task_error(self, run_id: str, step_id: StepId, side: str, error: Mapping[str, Any]) -> None:
        """Record the error of an application's task; Celery's message of the failure does not contain it."""
        name = f"{side}{Field.TASK_ERROR}:{step_id}"
        self.call(self.client.hset, self.keys.of(run_id).steps, name, json.dumps(error, ensure_ascii=False))
