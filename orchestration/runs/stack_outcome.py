"""How the run of an orchestration ends: which stacks were brought right, and its exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longshore.orchestration.operations.stacks import RESTART
from longshore.orchestration.plans.labels import ORCHESTRATE_LABEL
from longshore.orchestration.states import STEP_GOOD, Cause, RunState, UndoState

if TYPE_CHECKING:
    from longshore.orchestration.runs.step_report import StepReport


@dataclass(frozen=True)
class StackOutcomes:
    """Names of the steps of stacks: those that are right, and why the others are not."""

    right: tuple[str, ...] = ()
    wrong: dict[str, str] = field(default_factory=dict)


def stacks_of(steps: Sequence[StepReport]) -> StackOutcomes:
    mine = [step for step in steps if step.op == RESTART.name]
    right = [s for s in mine if s.status in STEP_GOOD and (s.undo is None or s.undo.status is not UndoState.UNDONE)]
    return StackOutcomes(
        tuple(step.name for step in right), {step.name: _why(step) for step in mine if step not in right}
    )


def _why(step: StepReport) -> str:
    taken_back = "taken back" if step.status in STEP_GOOD else ""
    return taken_back or step.error or step.reason or str(step.status)


def exit_code(
    labels: Mapping[str, str], state: RunState, cause: Cause | None, steps: Sequence[StepReport]
) -> int | None:
    """That of such a run, where it is another than that of any: what was done is kept, and no stack got right, which is
    something left over.
    """
    if labels.get(ORCHESTRATE_LABEL) != "keep" or state is not RunState.FAILED or cause is Cause.CANCEL:
        return None
    return 3 if stacks_of(steps).wrong else None
