"""The header of an application's task that runs for a step: which attempt sent its message.

The header holds ids and names only, and no right: the record decides whether the attempt is still live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from longshore.orchestration.plans.compiled import CompiledPlan, StepId, index_of

#: The name of the header. Celery copies it to the message of a task's own retry.
FIELD = "longshore_step"


@dataclass(frozen=True)
class StepHeader:
    """The attempt of a step, or of its compensation (`side` is 'u'), that sent the message of a task."""

    run_id: str
    step_id: StepId
    side: str
    fence: str
    attempt: int
    #: The names of the step and of its plan.
    step: str
    plan: str
    #: Seconds from the message to the time limit of the attempt.
    seconds: float
    always: bool = False

    @classmethod
    def of(
        cls, plan: CompiledPlan, run_id: str, step_id: StepId, side: str, fence: str, attempt: int, seconds: float
    ) -> StepHeader:
        """The header of an attempt at a step of the plan."""
        always = plan.steps[index_of(step_id)].always
        return cls(run_id, step_id, side, fence, attempt, plan.name_of(step_id), plan.plan.name, seconds, always=always)

    def as_headers(self) -> dict[str, Any]:
        return {FIELD: asdict(self)}


def read(request: Any) -> StepHeader | None:
    """The header in Celery's request of a task; None for a task that no step has sent, and for an unreadable one."""
    found = request.get(FIELD)
    if not isinstance(found, Mapping):
        return None
    try:
        return StepHeader(**found)
    except TypeError:
        return None
