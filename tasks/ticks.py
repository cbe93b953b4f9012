"""What beat sends: the tick that starts the jobs that are due, and the word to bring stale stacks right."""

from __future__ import annotations

from pathlib import Path

from celery import shared_task
from celery.utils.log import get_task_logger

from longshore.orchestration.canvas import ORCHESTRATE, TICK
from longshore.orchestration.client import Client
from longshore.orchestration.compiled import CONTROL
from longshore.orchestration.deployed.plan import Manner
from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.jobs.schedule import tick as start_due
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import TERMINAL
from longshore.tasks.messages import SagaTask, store_and_plans

log = get_task_logger(__name__)

#: Seconds after which a look is looked after again; and between two words of a beat that does not say.
_AGAIN, _EVERY = 1.0, 300.0


def job_files(settings: Settings) -> list[Path]:
    return [Path(name) for name in settings.jobs.split(":") if name]


@shared_task(name=TICK, base=SagaTask, autoretry_for=(), acks_late=False)
def tick() -> None:
    """One that is lost is followed by another."""
    store, _ = store_and_plans()
    start_due(Client(store.settings), job_files(store.settings))


@shared_task(name=ORCHESTRATE, base=SagaTask, autoretry_for=(), acks_late=False)
def orchestrate(look: str = "") -> None:
    """Has the hosts looked at, and comes again until that has ended (`look` is its run): it holds no process meanwhile.

    Two beats, or one that is late, ask for the same runs. One that is lost is followed by another.
    """
    store, _ = store_and_plans()
    deployed = Client(store.settings).deployed()
    every = store.settings.orchestrate_every or _EVERY
    try:
        run = deployed.look(look or f"{round(store.now() / 1000 // every)}")
        if run.state() not in TERMINAL:
            orchestrate.apply_async(kwargs={"look": run.id}, countdown=_AGAIN, queue=CONTROL, expires=every + _AGAIN)
            return
        selection = deployed.looked(run.report())
        for host, why in selection.errors.items():
            log.warning("orchestrate: host %s could not be looked at: %s", host, why)
        if selection.chosen:
            started = deployed.start(selection, Manner())
            log.info("orchestrate: run %s for %s", started.id, ", ".join(map(selection.name, selection.chosen)))
    except LongshoreError as error:
        log.warning("orchestrate: %s", error)
