"""The coordinator of runs, and the Celery tasks that call it."""
