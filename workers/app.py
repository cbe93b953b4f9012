"""The Celery app: `celery -A longshore.workers worker` is all that is needed."""

from __future__ import annotations

import importlib
from typing import Any

from celery import Celery
from celery.signals import celeryd_after_setup
from kombu import Queue

from longshore.orchestration.operations.base import load_own
from longshore.tasks.attempt import hostname
from longshore.workers import transport
from longshore.workers.queues import at_this_host
from longshore.workers.sweeper import Sweeper


def make_app() -> Celery:
    """The app of an installation, with all tasks."""
    transport.use()
    app = Celery("longshore")
    app.config_from_object("longshore.workers.celeryconfig")
    app.steps["worker"].add(Sweeper)
    _import_operations()
    return app


def _import_operations() -> None:
    """The catalogue's implementations, and the application's own operations."""
    importlib.import_module("longshore.tasks.messages")
    for module in ("noop", "command", "file", "node", "network", "http", "docker", "compose", "waiting"):
        importlib.import_module(f"longshore.tasks.{module}")
    load_own()


@celeryd_after_setup.connect
def _consume_this_hosts_queues(sender: str, instance: Any, **_: Any) -> None:
    """Beside each queue that the worker was given, the one that is this host's alone."""
    queues = instance.app.amqp.queues
    for name in at_this_host(list(queues.consume_from), hostname(sender)):
        queues.select_add(Queue(name, routing_key=name))


app = make_app()
