"""The outcome of an orchestration: which stacks it restarted, and its exit code."""

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
    """The steps of stacks by outcome: names of those that succeeded, and reasons for the others."""

    up_to_date: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


def stacks_of(steps: Sequence[StepReport]) -> StackOutcomes:
    """The outcomes of the steps that restart stacks."""
    mine = [step for step in steps if step.op == RESTART.name]
    good = [s for s in mine if s.status in STEP_GOOD and (s.undo is None or s.undo.status is not UndoState.UNDONE)]
    return StackOutcomes(
        tuple(step.name for step in good), {step.name: _why(step) for step in mine if step not in good}
    )


def _why(step: StepReport) -> str:
    undone = "undone" if step.status in STEP_GOOD else ""
    return undone or step.error or step.reason or str(step.status)


def exit_code(
    labels: Mapping[str, str], state: RunState, cause: Cause | None, steps: Sequence[StepReport]
) -> int | None:
    """The exit code of an orchestration where it differs from that of any run, else None.

    A failed orchestration that keeps its effects exits with 3 where a stack did not succeed: its effects are left over.
    """
    if labels.get(ORCHESTRATE_LABEL) != "keep" or state is not RunState.FAILED or cause is Cause.CANCEL:
        return None
    return 3 if stacks_of(steps).failed else None
