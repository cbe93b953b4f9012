"""The doers: the Celery app, its queues, the sweeper, the embedded server.

`celery -A longshore.workers worker` starts one; in a checkout, `celery -A workers worker` too.
"""

from longshore.workers.app import app

__all__ = ["app"]
