"""What became of a job: how the work ended, and whether the stack is up again. The one does not tell of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from longshore.orchestration.plans.labels import JOB_LABEL, RECONSTRUCTED_LABEL
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.states import STEP_BAD, STEP_FINAL, STEP_GOOD, TERMINAL, Cause, RunState, StepState

if TYPE_CHECKING:
    from longshore.orchestration.runs.step_report import StepReport

#: How the work ended.
Result = Literal["succeeded", "failed", "timed_out", "cancelled"]
#: How the stack stands: as it did before, not touched, left stopped as asked, or not all of it up.
Restart = Literal["healthy", "not_needed", "kept_stopped", "failed"]


class JobReport(BaseModel):
    """The part of a report that only a job has. What is not known yet is null."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    result: Result | None = None
    restart: Restart | None = None
    #: Containers that ran before, and are not well.
    down: list[str] = []
    #: The worker container, and how it ended.
    worker: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    #: Whether the record was made again out of the labels of the worker.
    reconstructed: bool = False

    @property
    def exit(self) -> int:
        """The exit code of a run that has ended: 3 where the stack is not fully up, whatever became of the work."""
        if self.restart in {"failed", None}:
            return 3
        return 0 if self.result in {"succeeded", None} else 1


def outcome(plan: Plan, state: RunState, cause: Cause | None, steps: Sequence[StepReport]) -> JobReport | None:
    """Of the run of a job; None of any other."""
    found = {step.op.split(".")[1]: step for step in steps if step.op.startswith("job.")}
    if JOB_LABEL not in plan.labels or "remove" not in found or not {"healthy", "work"} & found.keys():
        return None
    if "work" not in found:  # only the stack is brought up, once more
        name = plan.labels[JOB_LABEL]
        return JobReport(name=name, restart=_restart(found, state, touched=True), down=_down(found))
    work = found["work"]
    return JobReport(
        name=plan.labels[JOB_LABEL],
        result=_result(work, state, cause),
        restart=_restart(found, state, touched=found["stop"].attempts > 0 or RECONSTRUCTED_LABEL in plan.labels),
        down=_down(found),
        worker=found["worker"].data.get("name") if "worker" in found else None,
        exit_code=work.data.get("exit_code"),
        oom_killed=bool(work.data.get("oom_killed")),
        reconstructed=RECONSTRUCTED_LABEL in plan.labels,
    )


def _result(work: StepReport, state: RunState, cause: Cause | None) -> Result | None:
    if work.status in STEP_GOOD:
        return "succeeded"
    if work.data.get("timed_out"):
        return "timed_out"
    if work.status is StepState.CANCELLED or (state in TERMINAL and cause is Cause.CANCEL):
        return "cancelled"
    return "failed" if work.status in STEP_BAD or state in TERMINAL else None


def _restart(found: Mapping[str, StepReport], state: RunState, *, touched: bool) -> Restart | None:
    if "start" not in found:
        return ("kept_stopped" if touched else "not_needed") if state in TERMINAL else None
    ends = [found["start"], found["healthy"]]
    if any(step.status in STEP_BAD for step in ends):
        return "failed"
    if all(step.status in STEP_FINAL for step in ends):
        return "healthy" if touched else "not_needed"
    return None


def _down(found: Mapping[str, StepReport]) -> list[str]:
    data: dict[str, Any] = found["healthy"].data if "healthy" in found else {}
    if "down" not in data and "start" in found:
        data = found["start"].data
    return list(data.get("down", ()))
