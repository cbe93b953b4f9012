"""Log format of workers and beats, from the settings; an application's own logging stays unchanged."""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger, task_postrun

from longshore.orchestration.monitoring import logs
from longshore.orchestration.settings import get_settings
from longshore.tasks.attempts import run_secrets


@task_postrun.connect
def _reset_context(**_: Any) -> None:
    logs.begin()


@after_setup_logger.connect
@after_setup_task_logger.connect
def _set_format(logger: logging.Logger | None = None, **_: Any) -> None:
    if logger is not None:
        # What an application's operation prints or logs may hold a secret.
        logs.configure(logger, get_settings().log_format, get_settings().host, run_secrets.redact)
