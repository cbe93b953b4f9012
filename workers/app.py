"""The Celery app: `celery -A longshore.workers worker` is all that is needed."""

from __future__ import annotations

import importlib

from celery import Celery

from longshore.orchestration.operations.base import load_own
from longshore.workers import beat, host_agent, logging, transport  # noqa: F401 - they hear Celery's signals
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
    importlib.import_module("longshore.tasks.control.celery_tasks")
    importlib.import_module("longshore.tasks.control.ticks")
    importlib.import_module("longshore.tasks.control.notifications")
    for module in (
        "noop",
        "command",
        "file",
        "node",
        "network",
        "http",
        "docker",
        "compose",
        "cache",
        "stacks",
        "jobs",
        "waiting",
    ):
        importlib.import_module(f"longshore.tasks.operations.{module}")
    load_own()


app = make_app()
