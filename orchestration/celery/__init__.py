"""The library of a Celery application whose tasks run as steps.

`install` fences the tasks, `compensates` names their compensations, and `durable` runs a canvas as a plan.
"""

from longshore.orchestration.authoring.context import current_step
from longshore.orchestration.celery.durable import Durable, DurableResult, compensates, durable
from longshore.orchestration.celery.fencing import install

__all__ = ["Durable", "DurableResult", "compensates", "current_step", "durable", "install"]
