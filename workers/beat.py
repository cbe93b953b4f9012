"""Heartbeat file of beat: touched at each tick, for a health check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery.signals import after_task_publish

from longshore.orchestration.messaging.canvas import TICK
from longshore.orchestration.settings import get_settings


@after_task_publish.connect(sender=TICK)
def _touch_alive_file(**_: Any) -> None:
    if get_settings().alive_file:
        Path(get_settings().alive_file).touch()
