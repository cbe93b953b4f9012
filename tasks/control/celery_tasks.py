"""The Celery tasks: each receives ids, and reads everything else from the record."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from celery import Celery, Task, shared_task
from celery.exceptions import Ignore, Retry

from longshore.orchestration.errors import Damaged, StoreUnavailable
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import ADVANCE, DRY_RUN, STEP, TASK_ENDED, UNDO, Canvas
from longshore.orchestration.monitoring import logs
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.states import RunState
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.records import read_request
from longshore.orchestration.store.run_store import Store
from longshore.tasks.attempts.delivery import (
    AnotherInstance,
    Delivery,
    Ended,
    Refused,
    Result,
    RetryScheduled,
    WaitsOutside,
    hostname,
)
from longshore.tasks.attempts.dry_run import dry_run_step
from longshore.tasks.attempts.runner import Attempt
from longshore.tasks.control.chain_links import ChainLinks
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.control.dispatch import send_next
from longshore.tasks.control.external_waits import NotYet
from longshore.tasks.control.task_events import TaskEvents, wanted
from longshore.tasks.loaded_runs import Newer, NotOurs, Plans

#: How often a message of a newer version is requeued; after that the workers of that version resend it.
_PASSED_ON = 10

_here: dict[int, tuple[Store, Plans]] = {}


def store_and_plans() -> tuple[Store, Plans]:
    """The store and plans of this process: a connection must not be shared over a fork."""
    pid = os.getpid()
    if pid not in _here:
        _here.clear()
        store = Store()
        _here[pid] = (store, Plans(store))
    return _here[pid]


def consumed_queues(app: Celery) -> Collection[str]:
    """The names of the queues that this worker consumes: those of `-Q`, or else all queues of the app."""
    return app.amqp.queues.consume_from


class Advance(NamedTuple):
    """The result of a step's task where the run can continue now: `SagaBackend` advances the run or sends a message."""

    run_id: str
    plan: str


class AttemptFailed(Exception):
    """The recorded final failure of a step, raised so that its Celery task fails too."""

    advance: Advance | None = None


class SagaTask(Task):  # type: ignore[type-arg]
    """Base of all tasks: retries with backoff while Redis is unavailable."""

    abstract = True
    ignore_result = True
    acks_late = True
    autoretry_for: tuple[type[Exception], ...] = (StoreUnavailable,)
    retry_backoff = 1
    retry_backoff_max = 30
    retry_jitter = True
    max_retries = 20
    throws = (AttemptFailed,)
    #: Whether the task records its own progress, so that a repeated message may run; no sweeper resends it.
    may_come_again = False

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Ignore a signed message that was carried out before: a repeated one may be a copy made by an attacker.

        The sweeper resends the message of work that was not done.
        """
        logs.begin(**({"run": args[0]} if args else {}))
        signature = self.request.get(signing.FIELD)
        if signing.ring() is None or not isinstance(signature, dict):
            return  # the transport rejects unsigned messages where signatures are required
        store, _ = store_and_plans()
        if self.may_come_again:
            return
        try:
            accepted = store.keys.accepted(str(signature["mac"]))
            first = store.call(store.client.set, accepted, "1", nx=True, ex=signing.REMEMBERED)
        except StoreUnavailable as error:
            raise Ignore(f"whether the message was carried out is unknown: {error}") from None
        if not first:
            why = f"message {task_id} of {self.name} was carried out before: a copy, or a second delivery"
            note_refusal(store, why, run=str(args[0]) if args else "")
            raise Ignore(why)


def _delivery(task: SagaTask, run_id: str, step_id: StepId, side: str) -> Delivery:
    """The delivery of this message. Raises Ignore, and Retry for a message of a newer version."""
    store, plans = store_and_plans()
    request = task.request
    try:
        loaded = plans.get(run_id)
    except Newer as error:
        raise _pass_on(task, error) from None
    except NotOurs as error:
        raise Ignore(str(error)) from None
    signature = request.get(signing.FIELD)
    if loaded.plan.digest and isinstance(signature, dict) and signature.get("plan") not in {"", loaded.digest}:
        why = f"message {request.id} was signed for another plan than that of the run"
        note_refusal(store, why, run=run_id)
        raise Ignore(why)
    return Delivery(
        store,
        loaded,
        run_id,
        step_id,
        owner=f"{request.id}@{request.hostname}/{uuid4().hex[:8]}",
        task_id=str(request.id),
        canvas=partial(Canvas, task.app),
        host=hostname(str(request.hostname or "")),
        side=side,
    )


def _pass_on(task: SagaTask, why: Newer) -> Exception:
    """Requeue a message of a newer version, so that a worker of that version receives it.

    A message that is only resent after each loss could reach an old worker each time: Redis serves waiting consumers in
    turn.
    """
    if task.request.retries >= _PASSED_ON:
        return Ignore(str(why))
    return task.retry(exc=why, countdown=random.uniform(0.2, 1.0), max_retries=None, throw=False)  # noqa: S311


def _carry_out(task: SagaTask, run_id: str, step_id: StepId, side: str) -> Advance | None:
    """Run the attempt, and the links of its chain that this process may run too, and end its Celery task the same way.

    Raises Ignore, Retry, AttemptFailed.
    """
    links = ChainLinks(task.request, consumed_queues(task.app))
    delivery = links.attach(_delivery(task, run_id, step_id, side))
    events = TaskEvents(task.app, delivery.store, str(task.request.hostname or ""))
    first = True
    while True:
        began = time.monotonic()
        logs.add(step=delivery.name, host=delivery.host)
        try:
            try:
                result: Result = Attempt(delivery).run()
            except AnotherInstance:
                # This process has cached the plan of a deleted run with the same id.
                store_and_plans()[1].get(run_id, again=True)
                delivery = links.attach(_delivery(task, run_id, step_id, side))
                result = Attempt(delivery).run()
        except Refused as why:
            raise Ignore(str(why)) from None
        if isinstance(result, WaitsOutside):
            # The external event may have arrived already: the coordinator reads the record once more.
            delivery.canvas(run_id, None).send_advance(delivery.plan.plan.name)
            raise Ignore(result.what)
        if isinstance(result, RetryScheduled):
            if first:
                raise _retry(task, delivery, result)
            links.drop()
            events.link_ended(run_id, delivery.task_id, time.monotonic() - began, result.error)
            _retry_link(delivery, result)
            return None
        if not first:
            events.link_ended(run_id, delivery.task_id, time.monotonic() - began, result.error)
        if result.recorded.next_grant is None:
            if not first and result.error:  # the task was that of the first link, which has succeeded
                links.drop()
                result = replace(result, error="")
            return _ended(delivery, result)
        delivery, first = links.take(delivery, result.recorded.next_grant), False
        shown = f"{delivery.plan.plan.name}.{delivery.name}"
        events.link_started(run_id, delivery.task_id, shown, f"({run_id!r}, {delivery.name!r})")


def _retry(task: SagaTask, delivery: Delivery, retry: RetryScheduled) -> Exception:
    if retry.parked:
        # Celery records a retry and sends nothing: the sweeper sends the message when it is due.
        due = datetime.now(UTC) + timedelta(seconds=retry.delay)
        return Retry(retry.error, exc=AttemptFailed(retry.error), when=due)
    where: dict[str, Any] = {"queue": delivery.retry_queue} if delivery.retry_queue else {}
    return task.retry(exc=AttemptFailed(retry.error), countdown=retry.delay, max_retries=None, throw=False, **where)


def _retry_link(delivery: Delivery, retry: RetryScheduled) -> None:
    """Send the next attempt at a link as a message of its own; the task was that of another step."""
    if not retry.parked:
        hosts = {delivery.step_id: delivery.host} if delivery.retry_queue else None
        delivery.canvas(delivery.run_id, hosts).send_single(
            STEP, delivery.plan, delivery.step_id, countdown=retry.delay
        )


def _ended(delivery: Delivery, result: Ended) -> Advance | None:
    recorded = result.recorded
    send_next(delivery.store, delivery.canvas, delivery.run_id, delivery.plan, recorded.next_units)
    advance = Advance(delivery.run_id, delivery.plan.plan.name) if recorded.advance else None
    if result.error:
        failed = AttemptFailed(result.error)
        failed.advance = advance
        raise failed
    return advance


def advance_here(app: Celery, run_id: str, node: str) -> RunState | None:
    """Advance a run in this process. Raises NotOurs, StoreUnavailable."""
    store, plans = store_and_plans()
    return Coordinator(app, store, plans, node=node).advance(run_id)


@shared_task(name=STEP, base=SagaTask, bind=True)
def step(self: SagaTask, run_id: str, step_id: StepId) -> Advance | None:
    """Run one step, or one unit of it."""
    return _carry_out(self, run_id, step_id, "")


@shared_task(name=UNDO, base=SagaTask, bind=True)
def undo(self: SagaTask, run_id: str, step_id: StepId) -> Advance | None:
    """Run the compensation of one step, or of one unit of it."""
    return _carry_out(self, run_id, step_id, "u")


@shared_task(name=ADVANCE, base=SagaTask, bind=True)
def advance(self: SagaTask, run_id: str) -> None:
    """Let the coordinator continue a run. Body of every chord; safe at any other time."""
    try:
        state = advance_here(self.app, run_id, str(self.request.hostname or ""))
    except NotOurs as error:
        raise Ignore(str(error)) from None
    if self.request.id == run_id and wanted(store_and_plans()[0]):
        # The root task represents the whole run: the event of its end is sent when the run ends.
        raise Ignore(f"the run continues: {state}")


@shared_task(name=TASK_ENDED, base=SagaTask, bind=True)
def task_ended(
    self: SagaTask,
    result: Any,
    run_id: str,
    step_id: StepId,
    side: str,
    fence: str,
    ok: bool,
    seal: dict[str, Any] | None = None,
) -> None:
    """Record the end of an application's own task: its result, or the id of the failed task."""
    store, plans = store_and_plans()
    try:
        signing.check_seal("ended", {"told": [run_id, step_id, side, fence], "ok": ok}, seal)
    except signing.Forged as why:
        note_refusal(store, f"{TASK_ENDED} is refused: {why}", run=run_id)
        raise Ignore(str(why)) from None
    coordinator = Coordinator(self.app, store, plans, node=str(self.request.hostname or ""))
    try:
        if coordinator.external_waits.task_ended(result, run_id, step_id, side, fence, ok=ok):
            coordinator.advance(run_id)
    except NotYet:
        raise self.retry(countdown=0.3, max_retries=100) from None
    except NotOurs as error:
        raise Ignore(str(error)) from None


@shared_task(name=DRY_RUN, base=SagaTask, bind=True)
def dry_run(self: SagaTask, dry_run_id: str, index: int) -> None:
    """Predict the effect of a step from reads only. The answer and the plan expire by themselves."""
    store, _ = store_and_plans()
    text = store.dry_run(dry_run_id)
    if text is None:
        raise Ignore("the dry run has expired")
    try:
        if (keys := signing.ring(store.settings)) is not None:
            signing.check_text(keys, "dry_run", dry_run_id, text)
        body = read_request(dry_run_id, text)
    except (signing.Forged, Damaged) as why:
        note_refusal(store, f"dry run {dry_run_id} is refused: {why}")
        raise Ignore(str(why)) from None
    answer = dry_run_step(body, index, hostname(str(self.request.hostname or "")), store)
    store.answer(dry_run_id, json.dumps(answer, ensure_ascii=False), 60.0)
