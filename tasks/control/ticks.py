"""Celery tasks sent by beat: the tick that starts due schedules and jobs, and the restart of stale stacks."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger

from longshore.orchestration.client.client import Client
from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.jobs.discovery import job_files
from longshore.orchestration.jobs.schedule import tick as start_due
from longshore.orchestration.messaging.canvas import ORCHESTRATE, TICK
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.schedules import declarations, starts
from longshore.orchestration.settings import Settings
from longshore.orchestration.stacks.orchestrate import Stacks
from longshore.orchestration.stacks.plan import RolloutOptions
from longshore.orchestration.states import TERMINAL
from longshore.tasks.control.celery_tasks import SagaTask, store_and_plans

log = get_task_logger(__name__)

#: Seconds between two checks of a refresh run.
_AGAIN = 1.0


@shared_task(name=TICK, base=SagaTask, autoretry_for=(), acks_late=False)
def tick() -> None:
    """Start the schedules and jobs that are due. A lost tick is followed by another."""
    store, _ = store_and_plans()
    store.call(store.client.set, store.keys.last_tick, store.now(), ex=86_400)
    starts.start_due(_client(store.settings))
    start_due(Client(store.settings), job_files(store.settings))


def _client(settings: Settings) -> Client:
    """A client whose runs have the actor `schedule`."""
    return Client(settings.model_copy(update={"actor": "schedule"}))


@shared_task(name=declarations.TASK, base=SagaTask, autoretry_for=(), acks_late=False)
def scheduled(name: str, given: dict[str, Any] | None = None) -> None:
    """Start a schedule for which a beat has fired, if due: a declared one, or the one in the message (`given`).

    A run that jitter delays is checked once more, by another message.
    """
    store, _ = store_and_plans()
    client = _client(store.settings)
    try:
        one = declarations.from_entry(store.settings, name, given) if given else declarations.find(store.settings, name)
        starts.start_one(client, one)
    except LongshoreError as error:
        log.error("schedule %s: %s", name, error)
        return
    now = store.now()
    held = [at + one.jitter(at) - now for at in one.when.planned(now - round(one.when.jitter * 1000), now)]
    if (wait := min((ms for ms in held if ms > 0), default=0)) and given:
        scheduled.apply_async(kwargs={"name": name, "given": given}, countdown=wait / 1000 + 0.1, queue=CONTROL)


@shared_task(name=ORCHESTRATE, base=SagaTask, autoretry_for=(), acks_late=False)
def orchestrate(every: float = 300.0, look: str = "") -> None:
    """Refresh the inventory of the hosts and restart stale stacks.

    The task requeues itself until the refresh run (`look`) has ended, and occupies no process meanwhile. Two beats, or
    a late one, request the same runs: one refresh each `every` seconds. A lost message is followed by another.
    """
    store, _ = store_and_plans()
    try:
        stacks = Stacks(Client(store.settings))
        if busy := stacks.active_runs():
            log.info("orchestrate: run %s is in progress", ", ".join(busy))
            return
        run = stacks.refresh(look or f"{store.now() // round(every * 1000)}")
        if run.state() not in TERMINAL:
            again = {"every": every, "look": run.id}
            orchestrate.apply_async(kwargs=again, countdown=_AGAIN, queue=CONTROL, expires=every + _AGAIN)
            return
        report = run.report()
        selection = stacks.selection_of(report)
        if report.exit_code == 0 and not any(step.changed for step in report.steps):
            run.prune(0)  # the refresh found no change, and another one follows in a few minutes
        for host, why in selection.errors.items():
            log.warning("orchestrate: host %s could not be inspected: %s", host, why)
        if selection.chosen:
            started = stacks.start(selection, RolloutOptions())
            log.info("orchestrate: run %s for %s", started.id, ", ".join(map(selection.name, selection.chosen)))
    except LongshoreError as error:
        log.warning("orchestrate: %s", error)
