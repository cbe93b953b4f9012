"""Operations that wait without a worker for an external end: an approval, a time, a child run, a task of an
application.

`park` starts the external work and returns its wait; `longshore.tasks.control.external_waits` completes the step.
"""

from __future__ import annotations

import hashlib
from typing import Any

from longshore.orchestration.client.request import shared
from longshore.orchestration.errors import LongshoreError, OperationError, Preflight
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.language.params import resolve
from longshore.orchestration.messaging.step_header import StepHeader
from longshore.orchestration.operations.approval import APPROVAL, ApprovalParams
from longshore.orchestration.operations.celery_task import CELERY, TaskParams
from longshore.orchestration.operations.subplan import RUN, RunParams
from longshore.orchestration.operations.timer import TIMER, TimerParams
from longshore.orchestration.plans import subplans
from longshore.orchestration.plans.compiled import index_of
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.states import RunState
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.records import SCHEMA_VERSION
from longshore.tasks.external_wait import FOR_EVER, ExternalWait, WaitContext, WaitingImplementation
from longshore.tasks.implementation import Context, Prediction, implements
from longshore.tasks.loaded_runs import Loaded


@implements(APPROVAL)
class Approval(WaitingImplementation[ApprovalParams]):
    """Waits for an approval: `longshore runs approve RUN STEP [--reject]`."""

    def park(self, place: WaitContext, params: ApprovalParams) -> ExternalWait:
        seconds = params.timeout if place.timeout is None else min(place.timeout, params.timeout)
        info = {"on_timeout": params.on_timeout, "seconds": seconds}
        return ExternalWait(seconds, info, f"an approval{f': {params.message}' if params.message else ''}")

    def predict(self, ctx: Context, params: ApprovalParams) -> Prediction:
        return Prediction(f"would wait for an approval, at most {format_duration(params.timeout)}", changed=False)


@implements(TIMER)
class Timer(WaitingImplementation[TimerParams]):
    """Waits for a time; a sweep ends the step."""

    def park(self, place: WaitContext, params: TimerParams) -> ExternalWait:
        return ExternalWait(params.seconds(), {}, "its time")

    def predict(self, ctx: Context, params: TimerParams) -> Prediction:
        return Prediction(f"would wait {format_duration(round(params.seconds(), 3))}", changed=False)


@implements(RUN)
class SubPlan(WaitingImplementation[RunParams]):
    """Starts a child run and waits for its end."""

    def park(self, place: WaitContext, params: RunParams) -> ExternalWait:
        plan, body = _child(place.loaded, place.plan.steps[index_of(place.step_id)].name, params)
        body["parent"] = {
            "run": place.run_id,
            "step": place.step_id,
            "line": [*place.loaded.admission.parents, place.run_id],
        }
        body["instance_id"] = f"{place.loaded.instance_id}.{place.step_id}"
        child_id = child_run(place.run_id, place.name)
        state = place.store.state(child_id)
        if place.epoch and state in {RunState.UNDONE, RunState.UNDO_FAILED}:
            # An undone child is replaced by a new run.
            child_id = child_run(place.run_id, f"{place.name}.{place.epoch}")
            state = place.store.state(child_id)
        existing = Admission(place.store).submit(child_id, body, bounded=False)
        ours = (body["digest"], body["instance_id"])
        if existing is not None and (existing["digest"], existing.get("instance_id")) != ours:
            raise OperationError(f"another run has the child's run id {child_id}", remedy="start under a new run id")
        info: dict[str, Any] = {"child": child_id}
        if place.epoch and state in {RunState.FAILED, RunState.PARTIAL, RunState.CANCELLED}:
            info["resumed"] = self._resumed(place, child_id)
        place.canvas(child_id, None).send_start(plan.name)
        return ExternalWait(place.timeout or FOR_EVER, info, f"run {child_id}")

    @staticmethod
    def _resumed(place: WaitContext, child_id: str) -> str:
        """Resume the child like its parent, and return the command's id."""
        return place.store.command(child_id, "resume", reason=f"run {place.run_id} was resumed")

    def park_undo(self, place: WaitContext, params: RunParams, info: dict[str, Any]) -> ExternalWait | None:
        child_id = str(info["child"]) if info else child_run(place.run_id, place.name)
        fields = place.store.fields(child_id)
        if not fields and place.store.body(child_id) is None:
            return None
        # The undo of the child is requested after this step is parked, and again by each later delivery.
        epoch = int(fields.get("epoch", 0))
        seconds = place.store.settings.undo_timeout
        return ExternalWait(seconds, {"child": child_id, "epoch": epoch}, f"the undo of run {child_id}")

    def predict(self, ctx: Context, params: RunParams) -> Prediction:
        name = params.plan if isinstance(params.plan, str) else params.plan.get("name", "")
        return Prediction(f"would run the plan {name}", changed=None, undo="undo the child run")


def child_run(run_id: str, name: str) -> str:
    """The id of a child run: the parent's id and the step's name, shortened to the maximum length."""
    plain = f"{run_id}.{name}"
    if len(plain) <= 128:
        return plain
    return f"{plain[:111]}-{hashlib.sha256(plain.encode()).hexdigest()[:16]}"


def _child(loaded: Loaded, step: str, params: RunParams) -> tuple[Plan, dict[str, Any]]:
    """The child's plan as of the start of its parent, and its request."""
    plan, kept = subplans.read(loaded.contents, step)
    try:
        values = resolve(plan.params, params.params)
    except LongshoreError as error:
        raise Preflight(str(error)) from None
    return plan, {
        "v": SCHEMA_VERSION,
        "plan": kept["plan"],
        "params": values,
        "files": kept["files"],
        "digest": plan.digest(values, kept["files"]),
        "actor": loaded.actor,
        # A step of the child can print a secret that a step of its parent has used.
        "secrets": sorted(loaded.secrets),
    } | shared(plan, values)


@implements(CELERY)
class ForeignTask(WaitingImplementation[TaskParams]):
    """Enqueues an application's task with a callback message for its end, and waits for the end."""

    def park(self, place: WaitContext, params: TaskParams) -> ExternalWait:
        # A command that repeats an undo counts its attempts anew, and workers drop the message of a revoked id.
        again = f"-{place.epoch}" if place.side and place.epoch else ""
        task_id = f"{place.run_id}.{place.name}{'@undo' if place.side else ''}.{place.attempt}{again}"
        seconds = place.timeout or place.store.settings.step_timeout
        header = StepHeader.of(place.plan, place.run_id, place.step_id, place.side, place.fence, place.attempt, seconds)
        place.canvas(place.run_id, None).send_task(params, task_id, header)
        info: dict[str, Any] = {
            "task": task_id, "seconds": seconds, "fenced": params.fenced, "attempt": place.attempt,
        }  # fmt: skip
        if params.fenced:
            # The record refuses a second delivery, so that a lost message can be sent again.
            info["message"] = params.model_dump(mode="json", exclude_defaults=True)
        return ExternalWait(seconds, info, f"task {params.task}")

    def predict(self, ctx: Context, params: TaskParams) -> Prediction:
        return Prediction(f"would enqueue task {params.task} in queue {params.queue}", changed=None)
