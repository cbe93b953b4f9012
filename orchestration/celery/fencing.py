"""Fenced tasks: a worker of the application asks the record before it begins a task that runs for a step.

A task that no step has sent runs as before.
"""

from __future__ import annotations

import logging
import os
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery, Task
from celery.signals import task_postrun, worker_init
from celery.states import IGNORED, REJECTED, RETRY

from longshore.orchestration.celery.delivery import TaskDelivery, running
from longshore.orchestration.errors import ConfigError
from longshore.orchestration.messaging import step_header
from longshore.orchestration.operations.celery_task import FENCED
from longshore.orchestration.settings import Settings, load_settings
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: The settings that each installed app was given.
_installed: WeakKeyDictionary[Celery, Settings | None] = WeakKeyDictionary()
#: The store of each installed app in this process: a connection must not be shared over a fork.
_stores: dict[tuple[int, int], Store] = {}
#: How a delivery releases its lease in states in which the task has not ended for good.
_RELEASES: dict[str | None, str] = {RETRY: "", IGNORED: "", REJECTED: "again", None: ""}


def install(app: Celery, settings: Settings | None = None) -> None:
    """Fence the tasks of a Celery app: a worker runs the task of a step only if the record still expects the attempt.

    Before the task of a step, the application worker reads the record of the run. If the attempt has expired, was
    superseded or was cancelled, the worker acknowledges the message and does not run the task.

    While the task runs:

    * The worker holds a lease. If the worker is lost, Longshore notices the loss when the lease expires.
    * `current_step()` returns the context of the step.
    * The output, the log records and the error of the task are stored with the step.

    Without `settings`, the settings of the environment apply, with the Redis and the name space of the app's broker. A
    worker whose broker is not a single Redis does not start.
    """
    _installed[app] = settings
    setattr(app, FENCED, True)


def settings_of(app: Celery, given: Settings | None = None) -> Settings:
    """The settings of an application's workers. Raises ConfigError where the app's broker is no Redis."""
    if given is not None:
        return given
    found = load_settings()
    if found.redis_url is not None:
        return found
    url = str(app.conf.broker_url or "")
    if url.startswith("redis+socket://"):
        url = f"unix://{url.removeprefix('redis+socket://')}"
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError(
            "the broker of the application is not a single Redis", remedy="set LONGSHORE_REDIS_URL to Longshore's Redis"
        )
    prefix = str((app.conf.broker_transport_options or {}).get("global_keyprefix") or "").removesuffix(":")
    named = {"namespace": prefix} if prefix and not os.environ.get("LONGSHORE_NAMESPACE") else {}
    return load_settings(redis_url=url, **named)


class _FencedTask(Task):  # type: ignore[type-arg]
    """The first base of the class of every task of an installed app."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        header = step_header.read(request)
        # A task that calls itself as a function is inside of its delivery already.
        if header is None or request.id in running:
            return super().__call__(*args, **kwargs)
        with TaskDelivery(_store(self.app), header, request):
            return super().__call__(*args, **kwargs)


def _store(app: Celery) -> Store:
    place = (os.getpid(), id(app))
    if place not in _stores:
        _stores[place] = Store(settings_of(app, _installed.get(app)))
    return _stores[place]


@worker_init.connect
def _fence_tasks(sender: Any = None, **_: Any) -> None:
    """Give each task its fenced class, before Celery builds the functions that run the tasks."""
    app: Celery | None = getattr(sender, "app", None)
    if app is None or app not in _installed:
        return
    try:
        settings_of(app, _installed[app])
    except ConfigError as error:
        log.critical("this worker does not start: %s", error)
        raise SystemExit(2) from None
    for name, task in app.tasks.items():
        if not name.startswith("celery.") and not isinstance(task, _FencedTask):
            own = type(task)
            named = {"__module__": own.__module__, "__doc__": own.__doc__, "abstract": True}
            task.__class__ = type(str(own.__name__), (_FencedTask, own), named)


@task_postrun.connect
def _end_delivery(task_id: str = "", state: str | None = None, **_: Any) -> None:
    """End the delivery of a task: Celery has sent the message of its end before this signal."""
    delivery = running.pop(task_id, None)
    if delivery is not None:
        delivery.end(_RELEASES.get(state, "ended"))
