"""Celery workers: the app, its queues and transport, the sweeper, the embedded server.

`celery -A longshore.workers worker` starts a worker; in a checkout, `celery -A workers worker` does too.
"""

from longshore.workers.app import app

__all__ = ["app"]
