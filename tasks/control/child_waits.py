"""Settle the wait of a step for its child run: by the child's end, an abort of the parent, or a time limit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from longshore.orchestration import saga
from longshore.orchestration.plans.compiled import CompiledStep, StepId
from longshore.orchestration.runs import report
from longshore.orchestration.settings import MAX_DATA_BYTES
from longshore.orchestration.states import TERMINAL, RunState, StepState, UndoState
from longshore.orchestration.store.records import stream_order
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.external_wait import MakeCanvas
from longshore.tasks.loaded_runs import Plans


class End(Protocol):
    """Records the outcome of the waiting step; returns whether the run can continue."""

    def __call__(self, status: str, *, error: str = "", data: Any = None, no_effect: bool = False) -> bool: ...


@dataclass(frozen=True)
class ChildWait:
    """The wait of one step, or of its compensation (`side` is 'u'), for a child run. `late`: past its time limit."""

    store: Store
    plans: Plans
    canvas: MakeCanvas
    run_id: str
    run: RunRecord
    step: CompiledStep
    step_id: StepId
    side: str
    late: bool
    _end: End

    def settle(self, info: dict[str, Any]) -> bool:
        """Record the end of the child run, or have the child end; return whether the parent can continue."""
        child_id = str(info["child"])
        fields = self.store.fields(child_id)
        state = RunState(fields.get("state", "pending"))
        if self.side:
            return self._undone(child_id, state, fields, int(info.get("epoch", 0)))
        if stream_order(str(info.get("resumed", ""))) > stream_order(fields.get("last_command", "0-0")):
            return False  # the child has not processed its resume yet
        if state in TERMINAL:
            return self._ended(child_id, state)
        # Only an abort of the parent, or the step's time limit, ends a child.
        aborting = self.run.state is RunState.ABORTING and not self.step.always
        if aborting or self.late:
            why = "the parent run is ending" if aborting else "the step exceeded its time limit"
            self._ask(child_id, "cancel", why, fields, keep=aborting and self.run.keep)
        return False

    def _ask(self, child_id: str, kind: str, why: str, fields: dict[str, str], *, keep: bool = False) -> None:
        """Send the child a command, once for each state that it answers from.

        The note is written after the command: a repeated command does no harm.
        """
        mark = f"pc:{self.step_id}:{kind}:{fields.get('state', '')}:{fields.get('last_command', '')}"
        if not self.store.has_mark(self.run_id, mark):
            self.store.command(child_id, kind, reason=why, keep=keep)
            self.canvas(child_id, None).send_advance(fields.get("plan", child_id))
            self.store.set_mark(self.run_id, mark)

    def _report(self, child_id: str) -> report.Report:
        run, steps = self.store.everything(child_id)
        return report.build(child_id, self.plans.get(child_id).plan, run, steps, self.store.now())

    def _ended(self, child_id: str, state: RunState) -> bool:
        done = self._report(child_id)
        data = {
            "run_id": child_id,
            "state": str(state),
            "summary": done.summary,
            "steps": {step.name: step.data for step in done.steps if step.data},
        }
        if len(json.dumps(data)) > MAX_DATA_BYTES:
            data["steps"] = {}
        if state is RunState.SUCCEEDED:
            changed = any(step.changed for step in done.steps)
            return self._end(StepState.CHANGED if changed else StepState.UNCHANGED, data=data)
        # A child that failed before its first change has nothing to undo.
        untouched = state in {RunState.FAILED, RunState.CANCELLED} and done.exit_code == 1
        if self.run.state is RunState.ABORTING:
            error = f"run {child_id} ended {state}"
            return self._end(StepState.CANCELLED, data=data, error=error, no_effect=untouched)
        why = f"{f'step {done.error.step}: ' if done.error.step else ''}{done.error.message}" if done.error else ""
        why = "exceeded its time limit" if self.late else why
        error = f"run {child_id} ended {state}: {why}"
        return self._end(StepState.FAILED, data=data, error=error, no_effect=untouched)

    def _undone(self, child_id: str, state: RunState, fields: dict[str, str], asked_at: int) -> bool:
        why = f"the parent run {self.run_id} is undone"
        if state is RunState.UNDONE:
            done = self._report(child_id)
            if not done.left_over and not done.in_doubt:
                return self._end(UndoState.UNDONE)
            # Every compensation of the child has succeeded, and these steps have none.
            found = {"left over": done.left_over, "in doubt": done.in_doubt}
            why = "; ".join(f"{what} in run {child_id}: {', '.join(names)}" for what, names in found.items() if names)
            return self._end(UndoState.NOT_UNDOABLE, error=why)
        if state is RunState.UNDO_FAILED and int(fields.get("epoch", 0)) > asked_at:
            return self._end(UndoState.UNDO_FAILED, error=f"the undo of run {child_id} failed")
        if state in TERMINAL and fields.get("answer") == saga.PAST_RETURN:
            return self._end(UndoState.UNDO_FAILED, error=f"run {child_id}: {saga.PAST_RETURN}")
        if self.late:
            return self._end(UndoState.UNDO_FAILED, error=f"run {child_id} was not undone in time")
        # A child that is still live, because its parent's worker died while starting it, is cancelled first.
        self._ask(child_id, "undo" if state in TERMINAL else "cancel", why, fields)
        return False
