"""The library of a Celery application whose tasks run as steps: compensations of tasks, and canvases as runs."""

from longshore.orchestration.celery.durable import Durable, DurableResult, compensates, durable

__all__ = ["Durable", "DurableResult", "compensates", "durable"]
