"""The outcome of a job: the result of its work, and separately the state of its stack afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from longshore.orchestration.plans.labels import JOB_LABEL, RECONSTRUCTED_LABEL
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.states import STEP_BAD, STEP_FINAL, STEP_GOOD, TERMINAL, Cause, RunState, StepState

if TYPE_CHECKING:
    from longshore.orchestration.runs.step_report import StepReport

#: The result of the work.
Result = Literal["succeeded", "failed", "timed_out", "cancelled"]
#: The state of the stack: running as before, not touched, left stopped as requested, or not fully up.
Restart = Literal["healthy", "not_needed", "kept_stopped", "failed"]


class JobReport(BaseModel):
    """The part of a report that only the run of a job has. Values that are not known yet are null."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    result: Result | None = None
    restart: Restart | None = None
    #: Containers that ran before and are not healthy now.
    down: list[str] = []
    #: The name, exit code and OOM flag of the job container.
    worker: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    #: Whether the record was reconstructed from the labels of the job container.
    reconstructed: bool = False

    @property
    def exit(self) -> int:
        """The exit code of an ended run: 3 where the stack is not fully up, whatever the result of the work."""
        if self.restart in {"failed", None}:
            return 3
        return 0 if self.result in {"succeeded", None} else 1

    @property
    def summary(self) -> str:
        """The result of the work and the state of the stack, in one line."""
        stack = {
            "healthy": "the stack is up again",
            "not_needed": "the stack was not touched",
            "kept_stopped": "the stack is left stopped, as asked",
            "failed": f"the stack is not fully up: {', '.join(self.down) or 'see the step start'}",
        }
        parts = [str(self.result or "not ended")] if self.result or not self.restart else []
        parts += [stack[self.restart]] if self.restart else []
        return f"job {self.name}: {'; '.join(parts)}"


def outcome(plan: Plan, state: RunState, cause: Cause | None, steps: Sequence[StepReport]) -> JobReport | None:
    """The outcome of the run of a job; None for any other run."""
    found = {step.op.split(".")[1]: step for step in steps if step.op.startswith("job.")}
    if JOB_LABEL not in plan.labels or "remove" not in found or not {"healthy", "work"} & found.keys():
        return None
    if "work" not in found:  # the run starts the stack only
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
