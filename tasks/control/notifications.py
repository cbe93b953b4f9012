"""Celery tasks that send notifications and traces: a slow receiver does not delay a run."""

from __future__ import annotations

from celery import shared_task
from celery.exceptions import Ignore

from longshore.orchestration.client.client import Client
from longshore.orchestration.errors import UnknownName
from longshore.orchestration.monitoring import notifications
from longshore.orchestration.runs import events
from longshore.tasks.control.celery_tasks import SagaTask, store_and_plans
from longshore.tasks.control.event_forwarder import NOTIFY, TRACE

#: Seconds after which the sender of a notification counts as lost.
_CLAIM = 120


class _NotificationTask(SagaTask):
    """Base of the notification tasks: a failed delivery is retried eight times, for about six minutes."""

    abstract = True
    may_come_again = True
    autoretry_for: tuple[type[Exception], ...] = (Exception,)
    dont_autoretry_for = (UnknownName,)
    retry_backoff = 2
    retry_backoff_max = 120
    retry_jitter = False
    max_retries = 8


@shared_task(name=NOTIFY, base=_NotificationTask)
def notify(run_id: str, event_id: str) -> None:
    """Send the notification of one event of a run."""
    store, _ = store_and_plans()
    run = Client(store.settings).get(run_id)
    before = _before(event_id)
    event = next((event for event in events.read(store, run_id, run.plan, before) if event.id == event_id), None)
    kind = notifications.kind_of(event) if event is not None else None
    if event is None or kind is None:
        raise Ignore(f"run {run_id} has no such event")
    notice = notifications.make(store.settings, run_id, run.plan.plan.name, store.fields(run_id), event, kind)
    claim, by_whom = store.keys.notified(f"{notice.id} claim"), store.keys.notified(notice.id)
    if not store.call(store.client.set, claim, "1", nx=True, ex=_CLAIM):
        raise Ignore("the notification is being delivered")
    known: set[str] = set(store.call(store.client.smembers, by_whom))
    delivered = set(known)
    try:
        notifications.deliver(store.settings, notice, delivered)
    finally:
        if delivered - known:
            store.call(store.client.sadd, by_whom, *(delivered - known))
            store.call(store.client.expire, by_whom, round(store.settings.retention))
        store.call(store.client.delete, claim)


@shared_task(name=TRACE, base=_NotificationTask)
def trace(run_id: str) -> None:
    """Send a run's trace."""
    from longshore.orchestration.monitoring import tracing  # noqa: PLC0415 - needs the extra otel

    store, _ = store_and_plans()
    tracing.send(Client(store.settings).get(run_id))


def _before(event_id: str) -> str:
    """The position in the stream just before an event."""
    ms, _, number = event_id.partition("-")
    return f"{ms}-{int(number) - 1}" if int(number or 0) else f"{int(ms) - 1}-{2**63}"
