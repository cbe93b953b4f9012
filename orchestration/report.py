"""What became of a run: every step, in one of its states, none missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from longshore.orchestration import saga
from longshore.orchestration.compiled import CompiledPlan
from longshore.orchestration.keys import Field
from longshore.orchestration.saga import StepRecord
from longshore.orchestration.states import STEP_BAD, TERMINAL, Cause, RunState, StepState, UndoState


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorReport(_Part):
    """Why the run was ended: the step, if it was one."""

    step: str | None = None
    message: str


class UndoReport(_Part):
    """How taking a step back went. `duration_s` from its first claim to its outcome."""

    status: UndoState
    error: str | None = None
    attempts: int = 0
    duration_s: float | None = None
    task_ids: list[str] = []


class HostReport(_Part):
    """What a step did on one host."""

    host: str
    status: StepState
    changed: bool
    error: str | None = None
    data: dict[str, Any] = {}


class StepReport(_Part):
    """One step. `duration_s` from its first claim to its outcome, waits between attempts included."""

    name: str
    op: str
    level: int
    status: StepState
    changed: bool
    attempts: int
    duration_s: float | None = None
    task_ids: list[str] = []
    undo: UndoReport | None = None
    reason: str | None = None
    error: str | None = None
    data: dict[str, Any] = {}
    hosts: list[HostReport] = []


class Report(_Part):
    """The run's result. `exit_code` is what the command line returns for it; None while it goes on."""

    run_id: str
    plan: str
    state: RunState
    cause: Cause | None = None
    exit_code: int | None = None
    summary: str
    started_at: str | None = None
    duration_s: float | None = None
    actor: str = ""
    error: ErrorReport | None = None
    steps: list[StepReport]
    #: Steps whose effect stands although the run did not succeed.
    left_over: list[str] = []

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def step(self, name: str) -> StepReport:
        """One step's part; KeyError if the plan has no such step."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)


def build(run_id: str, plan: CompiledPlan, run: Mapping[str, str], steps: Mapping[str, str], now: int) -> Report:
    """The report of a run from its record; empty fields are a run that has not begun. `now` in ms."""
    state = RunState(run.get("state", "pending"))
    records: dict[int, StepRecord] = {}
    reports = []
    for step in plan.steps:
        record, report = _step(plan, step.index, steps)
        records[step.index] = record
        reports.append(report)
    left = saga.left_over(plan, state, records) if state in TERMINAL else []
    started, ended = _number(run, "started"), _number(run, "ended")
    error = None
    if run.get("err") or run.get("err_step"):
        name = plan.steps[int(run["err_step"])].name if run.get("err_step") else None
        error = ErrorReport(step=name, message=run.get("err", ""))
    else:
        error = next((ErrorReport(step=s.name, message=s.error) for s in reports if s.error), None)
    return Report(
        run_id=run_id,
        plan=plan.plan.name,
        state=state,
        cause=Cause(run["cause"]) if run.get("cause") else None,
        exit_code=_exit_code(plan, state, records, left) if state in TERMINAL else None,
        summary=summary(reports),
        started_at=_iso(started),
        duration_s=None if started is None else round(((ended or now) - started) / 1000, 3),
        actor=run.get("actor", ""),
        error=error,
        steps=reports,
        left_over=[plan.steps[i].name for i in left],
    )


def _exit_code(plan: CompiledPlan, state: RunState, records: Mapping[int, StepRecord], left: list[int]) -> int:
    """0 all as asked, 3 something stands or is left over, 1 failed and nothing does (SEMANTICS 6)."""
    always_failed = any(records[s.index].status in STEP_BAD for s in plan.steps if s.always)
    if left or always_failed or state in {RunState.PARTIAL, RunState.UNDO_FAILED}:
        return 3
    return 0 if state is RunState.SUCCEEDED else 1


def _step(plan: CompiledPlan, index: int, fields: Mapping[str, str]) -> tuple[StepRecord, StepReport]:
    step = plan.steps[index]

    def get(kind: str) -> str | None:
        return fields.get(f"{kind}:{index}")

    outcome = json.loads(get(Field.OUTCOME) or "{}")
    status = StepState(get(Field.STATUS) or "pending")
    undo = _undo(get)
    record = StepRecord(
        status=status,
        attempts=int(get(Field.ATTEMPTS) or 0),
        undo=undo.status if undo else None,
        reason=get(Field.REASON) or "",
        no_effect=bool(get(Field.NO_EFFECT)),
    )
    error, data = outcome.get("error"), outcome.get("data", {})
    changed = status is StepState.CHANGED
    host = outcome.get("host")
    report = StepReport(
        name=step.name,
        op=step.operation.name,
        level=step.level,
        status=status,
        changed=changed,
        attempts=record.attempts,
        duration_s=_span(get(Field.STARTED), get(Field.ENDED)),
        task_ids=(get(Field.TASK_IDS) or "").split(),
        undo=undo,
        reason=record.reason or None,
        error=error,
        data=data,
        hosts=[HostReport(host=host, status=status, changed=changed, error=error, data=data)] if host else [],
    )
    return record, report


def _undo(get: Any) -> UndoReport | None:
    status = get(f"u{Field.STATUS}")
    if not status:
        return None
    outcome = json.loads(get(f"u{Field.OUTCOME}") or "{}")
    return UndoReport(
        status=UndoState(status),
        error=outcome.get("error") or get(f"u{Field.REASON}"),
        attempts=int(get(f"u{Field.ATTEMPTS}") or 0),
        duration_s=_span(get(f"u{Field.STARTED}"), get(f"u{Field.ENDED}")),
        task_ids=(get(f"u{Field.TASK_IDS}") or "").split(),
    )


def summary(steps: list[StepReport]) -> str:
    """`5 steps, 2 changed, 1 failed; 2 undone`: what there is none of is left out."""
    counts = Counter(step.status for step in steps)
    parts = [f"{len(steps)} step{'' if len(steps) == 1 else 's'}"]
    parts += [f"{counts[state]} {state}" for state in StepState if counts[state]]
    undos = Counter(step.undo.status for step in steps if step.undo)
    taken_back = [f"{undos[state]} {state}" for state in UndoState if undos[state]]
    return ", ".join(parts) + (f"; {', '.join(taken_back)}" if taken_back else "")


def _number(fields: Mapping[str, str], name: str) -> int | None:
    return int(fields[name]) if fields.get(name) else None


def _span(begin: str | None, end: str | None) -> float | None:
    return round((int(end) - int(begin)) / 1000, 3) if begin and end else None


def _iso(ms: int | None) -> str | None:
    if ms is None:
        return None

    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
