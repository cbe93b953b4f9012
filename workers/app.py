"""The Celery app, as `celery -A longshore.workers worker` loads it."""

from __future__ import annotations

import gc
import importlib
from typing import Any

from celery import Celery
from celery.signals import worker_before_create_process

from longshore.orchestration.operations.base import load_own
from longshore.workers import beat, host_agent, logging, transport  # noqa: F401 - connect Celery's signals
from longshore.workers.sweeper import Sweeper


def make_app() -> Celery:
    """Create an installation's app, with all tasks."""
    transport.use()
    app = Celery("longshore")
    app.config_from_object("longshore.workers.celeryconfig")
    app.steps["worker"].add(Sweeper)
    _import_operations()
    return app


@worker_before_create_process.connect
def _share_memory(**_: Any) -> None:
    """Exempt the objects of the main process from garbage collection, which would copy their pages in each child."""
    gc.collect()
    gc.freeze()


def _import_operations() -> None:
    """Import the catalogue's implementations and the application's own operations."""
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
