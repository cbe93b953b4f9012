"""The library of a Celery application whose tasks run as steps: `install`, one line in the application."""

from longshore.orchestration.authoring.context import current_step
from longshore.orchestration.celery.fencing import install

__all__ = ["current_step", "install"]
