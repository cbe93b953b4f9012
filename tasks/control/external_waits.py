"""Settle external waits: by a decision, the end of a child run or of a task, or a time limit."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.messaging.step_header import StepHeader
from longshore.orchestration.operations import Waits
from longshore.orchestration.operations.celery_task import STOP_GRACE, TaskError, TaskParams
from longshore.orchestration.operations.results import as_mapping
from longshore.orchestration.plans.compiled import StepId, as_id, index_of
from longshore.orchestration.settings import MAX_DATA_BYTES
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import parent_in
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.attempts.run_secrets import redaction_of
from longshore.tasks.control.child_waits import ChildWait
from longshore.tasks.control.dispatch import in_flight, send_next
from longshore.tasks.external_wait import MakeCanvas
from longshore.tasks.loaded_runs import Loaded, Plans

log = logging.getLogger(__name__)

#: States of a claimed step or undo that is not parked yet.
_BUSY = frozenset({str(StepState.RUNNING), str(UndoState.UNDOING)})


#: Seconds after its time limit within which a fenced worker has stopped a task.
TASK_GRACE = STOP_GRACE + 20.0
#: The status of a step whose task failed with an error that the application has marked.
_STATUS_OF_ERROR: dict[str, StepState] = {
    TaskError.CANCELLED: StepState.CANCELLED,
    TaskError.IN_DOUBT: StepState.UNKNOWN,
}


class NotYet(Exception):
    """The step is not parked yet, or the lease of its task decides: the same message is handled once more later."""


class Settled(NamedTuple):
    """Whether waits have ended, and the times at which messages of tasks are to be sent again, ms."""

    ended: bool
    due: list[int]


class ExternalWaits:
    """Settles the external waits of runs. Every call is safe to repeat: the record accepts one outcome."""

    def __init__(self, store: Store, plans: Plans, canvas: MakeCanvas) -> None:
        self.store = store
        self.plans = plans
        self.canvas = canvas

    def settle(
        self, run_id: str, loaded: Loaded, run: RunRecord, waits: dict[str, int], now: int, *, recover: bool = False
    ) -> Settled:
        """Record the decisions and ends since the last call.

        `recover` also sends the messages of tasks again that no worker has begun.
        """
        done, due = False, []
        for member, until in waits.items():
            side = "u" if member.startswith("u") else ""
            step_id = as_id(member.removeprefix("u"))
            if index_of(step_id) >= len(loaded.plan):
                self.store.drop_wait(run_id, member, "the plan has no such step")
                continue
            try:
                wait = _Wait(self, run_id, loaded, run, step_id, side, until, now, recover)
                done |= wait.settle()
                due += [] if wait.next_send is None else [wait.next_send]
            except StoreUnavailable:
                raise
            except Exception:  # one broken wait must not block the run: its time limits still count
                log.exception("run %s: the external wait %s failed", run_id, member)
        return Settled(done, due)

    def advance_parent(self, run_id: str, fields: dict[str, str]) -> None:
        """Advance the parent of a child run that has ended. The parent's sweep covers a lost message."""
        if parent := parent_in(fields.get("parent")):
            name = self.store.fields(parent).get("plan", parent)
            # The sweep has to examine a waiting parent for this alone: the message could be lost.
            self.store.look_at(parent, self.store.now(), sooner=True)
            self.canvas(parent, None).send_advance(name)

    def task_ended(self, result: Any, run_id: str, step_id: StepId, side: str, fence: str, *, ok: bool) -> bool:
        """Record the end of an application's task; return whether the run can continue. Raises NotYet."""
        loaded = self.plans.get(run_id)
        self.store.look_at(run_id, self.store.now() + round(1000 * self.store.settings.lease / 3), sooner=True)
        fields = (Field.STATUS, Field.FENCE, Field.ATTEMPTS, Field.UNCOUNTED, Field.BEGUN, Field.PARKED)
        kinds = [f"{side}{kind}" for kind in fields]
        status, held, attempts, uncounted, begun, wait = self.store.step_fields(run_id, [step_id], kinds)[step_id]
        if held == fence and status in _BUSY:
            raise NotYet
        progress = (begun or "").removeprefix(f"{fence} ") if (begun or "").startswith(f"{fence} ") else ""
        if held == fence and not progress and json.loads(wait or "{}").get("fenced"):
            log.warning(
                "run %s: a worker without install(app) has carried out the fenced task of step %s", run_id,
                loaded.plan.name_of(step_id),
            )  # fmt: skip
        lost = not ok and progress and not progress.endswith("ended")
        if held == fence and lost and not self._task_error(run_id, step_id, side, fence):
            raise NotYet  # its process was lost, which its lease decides, or its lease is about to be released
        redaction = redaction_of(loaded)
        if ok:
            return self._task_succeeded(redaction.data(result), run_id, step_id, side, fence, loaded)
        tries = int(attempts or 1) - int(uncounted or 0)
        known = self._task_error(run_id, step_id, side, fence)
        error = redaction.text(str(known.get("error") or self._why(str(result))))
        return self._task_failed(error, known.get("kind", ""), run_id, step_id, side, fence, loaded, tries)

    def _task_succeeded(self, result: Any, run_id: str, step_id: StepId, side: str, fence: str, loaded: Loaded) -> bool:
        if side:
            return self.end(run_id, loaded, step_id, side, fence, UndoState.UNDONE)
        with_ = loaded.plan.steps[index_of(step_id)].step.with_
        data = {"result": result} if with_.get("as_result") else as_mapping(result) if result is not None else None
        size = len(json.dumps(data))
        if size > MAX_DATA_BYTES:
            error = f"the result of {size} bytes exceeds {MAX_DATA_BYTES}"
            return self.end(run_id, loaded, step_id, side, fence, StepState.FAILED, error=error)
        return self.end(run_id, loaded, step_id, side, fence, StepState.CHANGED, data=data)

    def _task_failed(
        self, error: str, kind: str, run_id: str, step_id: StepId, side: str, fence: str, loaded: Loaded, tries: int
    ) -> bool:
        if not kind and self.retried(error, run_id, step_id, side, fence, loaded, tries):
            return False
        status = UndoState.UNDO_FAILED if side else _STATUS_OF_ERROR.get(kind, StepState.FAILED)
        no_effect = kind == TaskError.PREFLIGHT and tries == 1
        return self.end(run_id, loaded, step_id, side, fence, status, error=error, no_effect=no_effect)

    def retried(
        self, error: str, run_id: str, step_id: StepId, side: str, fence: str, loaded: Loaded, tries: int
    ) -> bool:
        """Schedule another attempt where the plan's policy has one; return whether the attempt is over by that."""
        index = index_of(step_id)
        policy = loaded.plan.retry_policy(index)
        if not loaded.plan.retries_every_error(index) or tries >= policy.attempts:
            return False
        delay = policy.delay(tries, random.random())  # noqa: S311 - jitter
        always = loaded.plan.steps[index].always
        noted = self.store.retry(run_id, step_id, side, fence, delay, 0.0, error, always=always)
        if noted == 1:
            self.store.look_at(run_id, self.store.now() + round(delay * 1000), sooner=True)
        return noted != -1

    def _task_error(self, run_id: str, step_id: StepId, side: str, fence: str) -> dict[str, Any]:
        """The error as the application's worker has recorded it; empty where its app is not fenced."""
        text = self.store.step_fields(run_id, [step_id], (f"{side}{Field.TASK_ERROR}",))[step_id][0]
        found = json.loads(text or "{}")
        return found if found.get("fence") == fence else {}

    def _why(self, task_id: str) -> str:
        """The error of a failed task, from Celery's result backend where that is this Redis.

        Celery's message contains only the fact of the failure.
        """
        # ResponseError: Redis users of an older ACL file may not read these keys.
        with contextlib.suppress(ResponseError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
            prefixes = dict.fromkeys(["", self.store.settings.broker_prefix()])
            found = self.store.client.mget([f"{prefix}celery-task-meta-{task_id}" for prefix in prefixes])
            kept = json.loads(next(text for text in found if text))
            words = kept["result"]["exc_message"]
            text = ", ".join(map(str, words)) if isinstance(words, list) else str(words)
            return f"{kept['result']['exc_type']}: {text}"
        return f"the task failed; its worker's log has why (task {task_id})"

    def end(
        self,
        run_id: str,
        loaded: Loaded,
        step_id: StepId,
        side: str,
        fence: str,
        status: str,
        *,
        error: str = "",
        data: Any = None,
        no_effect: bool = False,
        live_message: bool = False,
    ) -> bool:
        """Record an outcome; return whether the run can continue.

        `live_message`: the message of the task may still be carried out.
        """
        plan, index = loaded.plan, index_of(step_id)
        more = {"live_message": True} if live_message else {}
        outcome = json.dumps(({"error": error} if error else {}) | more, ensure_ascii=False)
        bulk = json.dumps({"data": data}, ensure_ascii=False) if data else ""
        recorded = self.store.complete(
            run_id, step_id, side, fence, status, outcome, bulk=bulk, error=error[:500], no_effect=no_effect,
            stops=not side and plan.stops(index),
        )  # fmt: skip
        send_next(self.store, self.canvas, run_id, plan, recorded.next_units)
        return recorded.accepted


class _Wait:
    """One external wait of a run. `until` is its time limit, ms; times are those of Redis's clock."""

    def __init__(
        self,
        parked: ExternalWaits,
        run_id: str,
        loaded: Loaded,
        run: RunRecord,
        step_id: StepId,
        side: str,
        until: int,
        now: int,
        recover: bool,
    ) -> None:
        self.parked = parked
        self.store = parked.store
        self.run_id = run_id
        self.loaded = loaded
        self.run = run
        self.step_id = step_id
        self.side = side
        self.late = until <= now
        self.remaining, self.recover = (until - now) / 1000, recover
        #: The time at which the message of the task is to be sent again, ms.
        self.next_send: int | None = None
        #: Whether a task has also exceeded the time in which its worker stops it.
        self.overdue = until + round(1000 * TASK_GRACE) <= now
        self.fence = ""
        self.step = loaded.plan.steps[index_of(step_id)]

    def settle(self) -> bool:
        kinds = (
            f"{self.side}{Field.STATUS}", f"{self.side}{Field.FENCE}", f"{self.side}{Field.PARKED}",
            Field.DECISION, Field.DECIDED_BY, Field.NOTE, Field.DECIDED_AT,
        )  # fmt: skip
        status, fence, info, *decision = self.store.step_fields(self.run_id, [self.step_id], kinds)[self.step_id]
        if status != StepState.WAITING:
            return False
        # The fence of the waiting attempt: a step that was interrupted and dispatched again has another.
        self.fence = fence or ""
        known = json.loads(info or "{}")
        if "child" in known:
            place = (self.run_id, self.run, self.step, self.step_id, self.side, self.late)
            return ChildWait(self.store, self.parked.plans, self.parked.canvas, *place, self._end).settle(known)
        if "task" in known:
            return self._task(known)
        if "unknown" in known:
            return self._word(known, decision[0] or "", decision[1] or "", decision[2] or "")
        if self.step.waits is Waits.PERSON:
            return self._decision(known, *(part or "" for part in decision))
        if self.step.waits is Waits.TIME and self.late:
            return self._end(StepState.UNCHANGED, no_effect=True)
        return False

    def _end(
        self, status: str, *, error: str = "", data: Any = None, no_effect: bool = False, live_message: bool = False
    ) -> bool:
        return self.parked.end(
            self.run_id, self.loaded, self.step_id, self.side, self.fence, status, error=error, data=data,
            no_effect=no_effect, live_message=live_message,
        )  # fmt: skip

    def _decision(self, info: dict[str, Any], decision: str, by: str, note: str, at: str) -> bool:
        said = f"{f': {note}' if note else ''}"
        if decision == "reject":
            return self._end(StepState.FAILED, error=f"rejected by {by}{said}", no_effect=True)
        if decision == "approve" or (self.late and info.get("on_timeout") == "approve"):
            data = {"approved": True, "by": by, "note": note, "at": int(at or self.store.now())}
            return self._end(StepState.UNCHANGED, data=data, no_effect=True)
        if self.late:
            error = f"no approval within {format_duration(float(info.get('seconds', 0)))}"
            return self._end(StepState.FAILED, error=error, no_effect=True)
        return False

    def _word(self, info: dict[str, Any], word: str, by: str, note: str) -> bool:
        """Settle a step whose worker was lost: by a person's decision, or after the time limit without one."""
        if not word and not self.late and self.run.state is not RunState.ABORTING:
            return False
        said = f"{word} by {by}{f': {note}' if note else ''}"
        if word == "done":
            done = self._end(StepState.CHANGED)
        elif word == "skip":
            done = self._end(StepState.SKIPPED, error=said)
        elif word == "undone":
            done = self._end(StepState.FAILED, error=said, no_effect=True)
        else:
            done = self._end(StepState.UNKNOWN, error=said if word else str(info["unknown"]))
        self._go_on()
        return done

    def _go_on(self) -> None:
        """Unsuspend the run that was suspended for such a decision, unless another step waits for one."""
        waits = self.store.look(self.run_id).waits
        kinds = (Field.STATUS, Field.PARKED)
        rows = self.store.step_fields(self.run_id, [as_id(member) for member in waits if member[0] != "u"], kinds)
        if not any(status == StepState.WAITING and '"unknown"' in (info or "") for status, info in rows.values()):
            side, ids = in_flight(self.store, self.run_id, self.loaded.plan, self.run)
            self.store.unsuspend(self.run_id, "unknown", self.run.epoch, side, ids)

    def _task(self, info: dict[str, Any]) -> bool:
        """Settle the wait for an application's task that is late, or whose run is being ended."""
        cancelled = self.run.state is RunState.ABORTING and not self.side and not self.step.always
        if not self.late and not cancelled:
            if self.recover and "message" in info:
                self._send_again(info)
            return False
        self._revoke(str(info["task"]))
        fence, _, progress = self._begun().partition(" ")
        begun = fence == self.fence
        # A fenced worker ends the task by itself, and sends the message of its end before it releases the lease.
        if begun and not self.overdue and (self._leased() or progress.endswith("ended")):
            return False
        live = self._leased() if begun else not info.get("fenced")
        status = StepState.CANCELLED if cancelled else StepState.UNKNOWN
        error = self._why_late(info, begun=begun, cancelled=cancelled)
        if not begun and not live:
            # Under its fence the record refuses the message from here on.
            status = StepState.CANCELLED if cancelled else StepState.FAILED
        untouched = not begun and not live and int(info.get("attempt", 0)) == 1
        again = (error, self.run_id, self.step_id, self.side, self.fence, self.loaded)
        if not begun and not live and not cancelled and self.parked.retried(*again, self._tries()):
            return False
        if self.side:
            return self._end(UndoState.UNDO_FAILED, error=error, live_message=live)
        return self._end(status, error=error, no_effect=untouched, live_message=live)

    def _send_again(self, info: dict[str, Any]) -> None:
        """Send the message of a task again that no worker has begun: a killed worker may have taken the message."""
        send, self.next_send = self.store.resend_task(self.run_id, self.step_id, self.side, self.fence)
        if not send:
            return
        params = TaskParams.model_validate(info["message"])
        lifetime = params.options.lifetime(float(info["seconds"]) - self.remaining)
        if lifetime is None or lifetime > 0:
            left = params.options.model_copy(update={"expires": lifetime})
            place = (self.run_id, self.step_id, self.side, self.fence, int(info["attempt"]), self.remaining)
            self.parked.canvas(self.run_id, None).send_task(
                params.model_copy(update={"options": left}), str(info["task"]), StepHeader.of(self.loaded.plan, *place)
            )

    def _tries(self) -> int:
        """The attempts so far that count against the retry limit."""
        kinds = (f"{self.side}{Field.ATTEMPTS}", f"{self.side}{Field.UNCOUNTED}")
        attempts, uncounted = self.store.step_fields(self.run_id, [self.step_id], kinds)[self.step_id]
        return int(attempts or 1) - int(uncounted or 0)

    def _why_late(self, info: dict[str, Any], *, begun: bool, cancelled: bool) -> str:
        """Why the wait for the task ends, for people."""
        task, limit = info["task"], format_duration(float(info["seconds"]))
        if cancelled:
            return f"cancelled {'between its own retries' if begun else 'before it was known to begin'} (task {task})"
        if begun:
            return f"the task did not end within {limit} (task {task})"
        if info.get("fenced"):
            return f"no worker of the application began the task within {limit} (task {task})"
        return (
            f"the task did not report its end within {limit} (task {task}): "
            "check that a worker of its application runs, with the same Redis and key prefix"
        )

    def _revoke(self, task: str) -> None:
        """Revoke the message of the task, once for each attempt."""
        mark = f"revoked:{self.side}{self.step_id}:{self.fence}"
        if not self.store.has_mark(self.run_id, mark):
            self.parked.canvas(self.run_id, None).revoke_task(task)
            self.store.set_mark(self.run_id, mark)

    def _begun(self) -> str:
        """The progress of the task as its worker recorded it; '' for one that no fenced worker has begun."""
        fields = self.store.step_fields(self.run_id, [self.step_id], (f"{self.side}{Field.BEGUN}",))
        return fields[self.step_id][0] or ""

    def _leased(self) -> bool:
        """Whether a worker of the application runs the task now."""
        leases = self.store.keys.of(self.run_id).leases
        return self.store.call(self.store.client.zscore, leases, f"{self.side}{self.step_id}") is not None
