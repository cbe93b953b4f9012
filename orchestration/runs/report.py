"""The report of a run: its state, and that of every step of its plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from longshore.orchestration import saga
from longshore.orchestration.errors import DecodeError
from longshore.orchestration.language.quantities import quantity
from longshore.orchestration.plans.compiled import CompiledPlan, StepId
from longshore.orchestration.runs import stack_outcome as deployed
from longshore.orchestration.runs.doubt import in_doubt
from longshore.orchestration.runs.job_outcome import JobReport, outcome
from longshore.orchestration.runs.production import standings
from longshore.orchestration.runs.step_report import (
    ErrorReport,
    HostReport,
    ItemReport,
    StepReport,
    T,
    UndoReport,
    _Part,
)
from longshore.orchestration.runs.styles import style_of
from longshore.orchestration.states import STEP_BAD, TERMINAL, UNDO_FINAL, Cause, RunState, StepState, UndoState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.transitions import StepRecord

if TYPE_CHECKING:
    from longshore.orchestration.store.run_store import Store


class Report(_Part):
    """The state of a run and of its steps.

    * `run_id`, `plan`, `params`, `actor` – the run, the name of its plan, its parameters, and the person who started it
    * `state`, `cause` – the state, and the reason why the run left `running` early
    * `exit_code` – the exit code of `longshore run`; None while the run is live
    * `summary` – the outcome in a few words
    * `started_at`, `duration_s` – the start, and the seconds until the end or until now
    * `error` – the error of the run, with the name of the step
    * `steps` – the StepReports, in the order of the plan
    * `left_over` – the steps whose effect remains, although the run did not succeed
    * `in_doubt` – the effects that may exist, although the run did not succeed
    * `production` – for each project, a sentence on the version that runs after a failure
    * `job` – the outcome of a job; None for other runs
    """

    run_id: str
    plan: str
    #: The parameters of the run, without plaintext secrets, and with long values shortened.
    params: dict[str, Any] = {}
    state: RunState
    cause: Cause | None = None
    exit_code: int | None = None
    summary: str
    started_at: str | None = None
    duration_s: float | None = None
    actor: str = ""
    error: ErrorReport | None = None
    steps: list[StepReport]
    #: Steps whose effect remains although the run did not succeed.
    left_over: list[str] = []
    #: Steps that were stopped, may have had an effect, and have no compensation; and possible effects of lost attempts
    #: that could be neither fenced nor compared with receipts.
    in_doubt: list[str] = []
    #: Which version of each project runs after a failure, in a sentence each; projects that are down come first.
    production: list[str] = []
    #: The outcome of a job; None for any other run.
    job: JobReport | None = None

    @model_serializer(mode="wrap")
    def _without_what_it_is_not(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in ("job", "production"):
            if not written.get(name, ...):
                del written[name]
        return written

    @property
    def ended(self) -> bool:
        """Whether the run has ended. An operator can still undo or resume an ended run."""
        return self.state in TERMINAL

    def step(self, name: str) -> StepReport:
        """The report of one step. Raises KeyError if the plan has no such step."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def decode(self, name: str, model: type[T]) -> T:
        """The data of one step as the type `model`.

        Raises DecodeError if the plan has no such step, or the data does not match the type.
        """
        try:
            return self.step(name).decode(model)
        except KeyError:
            raise DecodeError(
                f"no result for {name!r}: run {self.run_id} has no such step",
                remedy=f"name one of its steps: {', '.join(step.name for step in self.steps)}",
            ) from None


def read(store: Store, run_id: str, plan: CompiledPlan, indices: Sequence[int]) -> dict[int, StepReport]:
    """The reports of some steps of a run, by index, without reading the others."""
    fields = store.steps_hash(run_id, indices)
    return {i: _step(plan, i, fields)[1] for i in indices}


def build(run_id: str, plan: CompiledPlan, run: Mapping[str, str], steps: Mapping[str, str], now: int) -> Report:
    """The report of a run from its record; empty fields describe a run that has not begun. `now` is in ms."""
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
    elif state is not RunState.SUCCEEDED:
        error = next((ErrorReport(step=s.name, message=s.error) for s in reports if s.error), None)
    if run.get("hold_reason") and (state is RunState.SUSPENDED or (error is None and state is RunState.PENDING)):
        error = ErrorReport(message=run["hold_reason"])
    cause = Cause(run["cause"]) if run.get("cause") else None
    job = outcome(plan.plan, state, cause, reports)
    doubtful = in_doubt(plan, state, records) if state in TERMINAL else []
    unconfirmed = run.get("doubts", "").splitlines()
    code = _exit_code(plan, state, records, [*left, *doubtful, *unconfirmed]) if state in TERMINAL else None
    untouched = state in {RunState.FAILED, RunState.CANCELLED} and not unconfirmed and saga.has_no_effect(plan, records)
    untouched = untouched and not any(step.changed for step in reports)
    if code is not None:
        code = deployed.exit_code(plan.plan.labels, state, cause, reports) or code
    return Report(
        run_id=run_id,
        plan=plan.plan.name,
        params=json.loads(run.get("params", "{}")),
        state=state,
        cause=cause,
        exit_code=job.exit if job is not None and code is not None else code,
        summary="; ".join(
            [
                *([job.summary] if job is not None and code is not None else []),
                *(["nothing was changed"] if untouched else []),
                summary(reports),
            ]
        ),
        started_at=_iso(started),
        duration_s=None if started is None else round(((ended or now) - started) / 1000, 3),
        actor=run.get("actor", ""),
        error=error,
        steps=reports,
        left_over=_names(plan, left, steps),
        in_doubt=_names(plan, doubtful, steps) + unconfirmed,
        production=standings(reports) if state in TERMINAL and state is not RunState.SUCCEEDED else [],
        job=job,
    )


def _names(plan: CompiledPlan, ids: Sequence[StepId], fields: Mapping[str, str]) -> list[str]:
    """The names of steps and units; of a unit, with its host."""
    hosts = [fields.get(f"{Field.HOST}:{i}") if isinstance(i, str) else None for i in ids]
    return [plan.name_of(i) + (f" on {host}" if host else "") for i, host in zip(ids, hosts, strict=True)]


def _exit_code(plan: CompiledPlan, state: RunState, records: Mapping[int, StepRecord], left: Sequence[StepId]) -> int:
    """0 for success, 3 where an effect remains or is in doubt, 1 for a failure without either."""
    always_failed = any(records[s.index].status in STEP_BAD for s in plan.steps if s.always)
    if left or always_failed or state in {RunState.PARTIAL, RunState.UNDO_FAILED}:
        return 3
    return 0 if state is RunState.SUCCEEDED else 1


def _step(plan: CompiledPlan, index: int, fields: Mapping[str, str]) -> tuple[StepRecord, StepReport]:
    step = plan.steps[index]
    units = [_unit(fields, f"{index}.{n}") for n in range(int(fields.get(f"{Field.UNITS}:{index}", 0)))]
    record, done = _unit(fields, index)
    hosts, data, error = done.hosts, done.part.data, done.part.error
    if step.step.foreach is not None:
        data = {"results": []}
    if units:
        hosts = _by_host(units)
        # A fan-out over hosts only: each host has its own data, and the step has none.
        data = {"results": [unit.part.data for _, unit in units]} if step.step.foreach is not None else {}
        error = fields.get(f"{Field.ERROR}:{index}")
        record = replace(record, units=tuple(unit for unit, _ in units))
    report = StepReport(
        name=step.name,
        op=step.operation.name,
        level=step.level,
        status=record.status,
        changed=record.status is StepState.CHANGED or done.changed or any(unit.part.changed for _, unit in units),
        attempts=record.attempts,
        duration_s=done.part.duration_s,
        task_ids=done.part.task_ids or [task for _, unit in units for task in unit.part.task_ids],
        undo=_undo_of([unit.part.undo for _, unit in units if unit.part.undo]) if units else done.part.undo,
        reason=done.part.reason,
        error=error,
        data=data,
        hosts=hosts,
        items=[unit.part for _, unit in units],
    )
    return record, report


@dataclass(frozen=True)
class _Done:
    """The recorded result of a step or a unit."""

    part: ItemReport
    hosts: list[HostReport]
    #: Whether there was a change, also of a step that failed afterwards.
    changed: bool


def _is_reverted(data: Any) -> bool:
    """Whether the data of an error says that the operation has reverted what it had done."""
    return isinstance(data, Mapping) and data.get("reverted") is True


def _unit(fields: Mapping[str, str], step_id: StepId) -> tuple[StepRecord, _Done]:
    def get(kind: str) -> str | None:
        return fields.get(f"{kind}:{step_id}")

    outcome = json.loads(get(Field.OUTCOME) or "{}")
    outcome |= json.loads(get("bulk") or "{}")
    status = StepState(get(Field.STATUS) or "pending")
    undo = _undo(get)
    record = StepRecord(
        status=status,
        attempts=int(get(Field.ATTEMPTS) or 0),
        undo=undo.status if undo else None,
        reason=get(Field.REASON) or "",
        no_effect=bool(get(Field.NO_EFFECT)),
        live_message=bool(outcome.get("live_message")),
        reverted=_is_reverted(outcome.get("data")),
        tainted=bool(get(Field.TAINTED)),
    )
    changed = status is StepState.CHANGED or bool(outcome.get("changed"))
    part = ItemReport(
        item=json.loads(get(Field.ITEM) or "null"),
        host=outcome.get("host") or get(Field.HOST) or None,
        status=status,
        changed=changed,
        attempts=record.attempts,
        duration_s=_span(get(Field.STARTED), get(Field.ENDED)),
        task_ids=(get(Field.TASK_IDS) or "").split(),
        undo=undo,
        reason=_waits_for(get) if status is StepState.WAITING else get("pending_reason") or record.reason or None,
        error=outcome.get("error"),
        data=outcome.get("data", {}),
    )
    own = [HostReport.model_validate(host) for host in outcome.get("hosts", [])]
    if not own and outcome.get("host"):
        own = [_host(part)]
    return record, _Done(part, own, changed)


def _waits_for(get: Callable[[str], str | None]) -> str | None:
    wait = json.loads(get(Field.PARKED) or "{}")
    what = wait.get("what")
    if wait.get("fenced") and not (get(Field.BEGUN) or "").startswith(f"{get(Field.FENCE)} "):
        return f"waits: no worker of the application has begun {what}"
    return f"waits for {what}" if what else None


def _host(part: ItemReport) -> HostReport:
    return HostReport(
        host=part.host or "", status=part.status, changed=part.changed, error=part.error, reason=part.reason,
        data=part.data,
    )  # fmt: skip


def _by_host(units: Sequence[tuple[StepRecord, _Done]]) -> list[HostReport]:
    """One entry for each host, in order of first appearance: its worst status, and whether any item changed it."""
    found: dict[str, list[HostReport]] = {}
    for _, unit in units:
        for host in unit.hosts or ([_host(unit.part)] if unit.part.host else []):
            found.setdefault(host.host, []).append(host)
    return [_worst(parts) for parts in found.values()]


#: States by severity, the worst last.
_BADNESS = [
    StepState.UNCHANGED, StepState.SKIPPED, StepState.NOT_RUN, StepState.CHANGED, StepState.CANCELLED,
    StepState.UNKNOWN, StepState.FAILED,
]  # fmt: skip


def _worst(parts: list[HostReport]) -> HostReport:
    worst = max(parts, key=lambda part: _BADNESS.index(part.status) if part.status in _BADNESS else -1)
    return worst.model_copy(update={"changed": any(part.changed for part in parts)})


def _undo_of(undos: list[UndoReport]) -> UndoReport | None:
    """The undos of the units of a step as one, with the worst status."""
    if not undos:
        return None
    order = [
        UndoState.UNDO_FAILED,
        UndoState.HELD_BACK,
        UndoState.NOT_UNDOABLE,
        *(s for s in UndoState if s not in UNDO_FINAL),
    ]
    status = next((s for s in order if any(undo.status is s for undo in undos)), UndoState.UNDONE)
    return UndoReport(
        status=status,
        error=next((undo.error for undo in undos if undo.status is status and undo.error), None),
        attempts=max(undo.attempts for undo in undos),
        duration_s=max((undo.duration_s for undo in undos if undo.duration_s is not None), default=None),
        task_ids=[task for undo in undos for task in undo.task_ids],
    )


def _undo(get: Any) -> UndoReport | None:
    status = get(f"u{Field.STATUS}")
    if not status:
        return None
    outcome = json.loads(get(f"u{Field.OUTCOME}") or "{}")
    return UndoReport(
        status=UndoState(status),
        error=outcome.get("error") or get(f"u{Field.REASON}"),
        reason=get("upending_reason"),
        attempts=int(get(f"u{Field.ATTEMPTS}") or 0),
        duration_s=_span(get(f"u{Field.STARTED}"), get(f"u{Field.ENDED}")),
        task_ids=(get(f"u{Field.TASK_IDS}") or "").split(),
        standing=outcome.get("standing", []),
    )


def summary(steps: list[StepReport]) -> str:
    """The counts of states, as in `5 steps, 2 changed, 1 failed; 2 undone`; zero counts are omitted."""
    counts = Counter(step.status for step in steps)
    parts = [quantity(len(steps), "step")]
    parts += [f"{counts[state]} {style_of(state).label}" for state in StepState if counts[state]]
    undos = Counter(step.undo.status for step in steps if step.undo)
    undone = [f"{undos[state]} {style_of(state).label}" for state in UndoState if undos[state]]
    return ", ".join(parts) + (f"; {', '.join(undone)}" if undone else "")


def _number(fields: Mapping[str, str], name: str) -> int | None:
    return int(fields[name]) if fields.get(name) else None


def _span(begin: str | None, end: str | None) -> float | None:
    return round((int(end) - int(begin)) / 1000, 3) if begin and end else None


def _iso(ms: int | None) -> str | None:
    if ms is None:
        return None

    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
