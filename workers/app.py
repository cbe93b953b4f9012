"""The Celery app: `celery -A longshore.workers worker` is all that is needed."""

from __future__ import annotations

import importlib
import importlib.metadata

from celery import Celery

from longshore.orchestration.settings import Settings, get_settings
from longshore.workers.sweeper import Sweeper


def make_app(settings: Settings) -> Celery:
    """The app of an installation, with all tasks."""
    app = Celery("longshore")
    app.config_from_object("longshore.workers.celeryconfig")
    app.steps["worker"].add(Sweeper)
    _import_operations(settings)
    return app


def _import_operations(settings: Settings) -> None:
    """The catalogue's implementations, and the application's own operations."""
    importlib.import_module("longshore.tasks.messages")
    for module in ("noop", "command", "file", "docker", "compose"):
        importlib.import_module(f"longshore.tasks.{module}")
    for entry in importlib.metadata.entry_points(group="longshore.operations"):
        entry.load()
    for name in filter(None, (part.strip() for part in settings.imports.split(","))):
        importlib.import_module(name)


app = make_app(get_settings())
