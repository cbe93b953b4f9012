"""The tick that beat sends: start the jobs that are due."""

from __future__ import annotations

from pathlib import Path

from celery import shared_task

from longshore.orchestration.canvas import TICK
from longshore.orchestration.client import Client
from longshore.orchestration.jobs.schedule import tick as start_due
from longshore.orchestration.settings import Settings
from longshore.tasks.messages import SagaTask, store_and_plans


def job_files(settings: Settings) -> list[Path]:
    return [Path(name) for name in settings.jobs.split(":") if name]


@shared_task(name=TICK, base=SagaTask, autoretry_for=(), acks_late=False)
def tick() -> None:
    """One that is lost is followed by another."""
    store, _ = store_and_plans()
    start_due(Client(store.settings), job_files(store.settings))
