"""A plan as data: named steps, parameters and policies. YAML, JSON and Python build the same object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, Self, overload

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    model_validator,
)

from longshore.orchestration.errors import PlanError, Problem
from longshore.orchestration.language.durations import Duration, format_duration, parse_duration
from longshore.orchestration.language.expressions import as_data
from longshore.orchestration.language.params import Param
from longshore.orchestration.language.schedule import Scheduled, ScheduleName
from longshore.orchestration.operations import Retry, TypedOperation
from longshore.orchestration.operations.celery_task import CELERY, as_params
from longshore.orchestration.plans.handles import StepHandle, named_operation
from longshore.orchestration.plans.steps import OnError, Step, _as_target, _Model

if TYPE_CHECKING:
    from celery import Signature


P = ParamSpec("P")

OnFailure = Literal["undo", "keep"]
OnUndoFailure = Literal["hold", "continue"]
OnUnknown = Literal["fail", "ask"]


class Concurrency(_Model):
    """A limit on the runs with the same key, of one or several plans."""

    key: str = Field(min_length=1, description="The key; may use `params`, such as deploy-{{ params.app }}")
    limit: Annotated[int, Field(ge=1)] = Field(
        1, description="The most runs with the key that are admitted and have not ended"
    )
    on_limit: Literal["queue", "skip", "cancel_running"] = Field(
        "queue",
        description="At the limit, a new run waits (queue), ends `cancelled` at once (skip), or cancels the admitted "
        "runs with the key and waits for their end (cancel_running)",
    )


class Plan(_Model):
    """A DAG of named steps with parameters. `validate` checks a plan before its run."""

    name: str = Field(description="The name of the plan")
    description: str = Field("", description="A description for people")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Keys with values, by which people find the runs of the plan"
    )
    params: dict[str, Param] = Field(default_factory=dict, description="The parameters of the plan by name")
    on_error: OnError = Field(
        "stop",
        description="The `on_error` of steps that do not set it. stop: after a failed step (except an `always` step), "
        "only `always` steps begin, and `on_failure` applies. continue: only the steps that depend on the failed step "
        "are skipped",
    )
    on_failure: OnFailure = Field(
        "undo",
        description="Whether the effects of the run are undone or kept, after a cancellation, the time limit of the "
        "run, or a failure with `on_error: stop`",
    )
    on_undo_failure: OnUndoFailure = Field(
        "hold",
        description="If the undo of a step fails, the effects of its dependencies are kept (hold) or undone (continue)",
    )
    on_unknown: OnUnknown = Field(
        "fail",
        description="fail: a step of unknown outcome counts as failed. ask: the run is suspended until a person "
        "decides about the step, at most for LONGSHORE_ASK_TIMEOUT",
    )
    target: Annotated[str, BeforeValidator(_as_target)] = Field(
        "_any", description="The `target` of steps that do not set it"
    )
    sequential: bool = Field(default=False, description="Whether each step depends on the step before it")
    retry: Retry | None = Field(
        None,
        description="The `retry` of steps that do not set it. By default, the operation defines the retries, and only "
        "temporary errors are retried",
    )
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None,
        description="Time limit of the run, from the opening of its first level. At the limit, running steps are asked "
        "to stop, only `always` steps begin, and `on_failure` applies. A resume of the ended run starts the time "
        "again. No limit by default",
    )
    concurrency: Concurrency | None = Field(None, description="A limit on the runs with the same key")
    schedules: dict[ScheduleName, Scheduled] = Field(
        default_factory=dict,
        description="The schedules by name. Ignored unless the plan is in a folder of LONGSHORE_PLANS, or is provided "
        "by a package (entry point `longshore.plans`)",
    )
    steps: dict[str, Step] = Field(default_factory=dict, description="The steps by name")

    #: Folder to which the relative `source` of a step refers.
    _base_dir: str = PrivateAttr(default=".")

    def __init__(self, name: str | None = None, /, **data: Any) -> None:
        super().__init__(**({"name": name} if name is not None else {}), **data)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.sequential and self.steps:
            names = list(self.steps)
            for before, name in pairwise(names):
                step = self.steps[name]
                if before not in step.after:
                    self.steps[name] = step.model_copy(update={"after": [*step.after, before]})
        return self

    # --- building in Python ---------------------------------------------------------------------

    @overload
    def step(self, name: str, op: str, /, **params: Any) -> StepHandle: ...

    @overload
    def step(self, name: str, op: TypedOperation[P], /, *args: P.args, **kwargs: P.kwargs) -> StepHandle: ...

    def step(self, name: str, op: str | TypedOperation[Any], /, *args: Any, **params: Any) -> StepHandle:
        """Add a step. `op` is the name of the operation, or the operation itself; keywords are its parameters.

        For an operation itself, such as a function with `@operation`, type checkers know the parameters. Wrap templates
        in `template(…)` then. Raises PlanError if the name is in use, and for missing or unknown parameters.
        """
        if name in self.steps:
            raise PlanError([Problem("the plan has a step of this name", step=name)])
        op, params = named_operation(name, op, args, params)
        after = [list(self.steps)[-1]] if self.sequential and self.steps else []
        self.steps[name] = Step(op=op, with_=as_data(params), after=after)
        return StepHandle(self, name)

    def run_plan(self, name: str, plan: Plan | str, params: Mapping[str, Any] | None = None, /) -> StepHandle:
        """Add a step that runs another plan as a child run. `plan` is a Plan, the name of a stored plan, or a path."""
        inline = plan.to_dict() if isinstance(plan, Plan) else plan
        given = {"params": dict(params)} if params else {}
        return self.step(name, "plan.run.execute", plan=inline, **given)

    def approval(
        self,
        name: str,
        message: str = "",
        /,
        *,
        timeout: float | str | None = None,
        on_timeout: Literal["fail", "approve"] = "fail",
    ) -> StepHandle:
        """Add a step that waits for an approval (`longshore runs approve RUN STEP`).

        `on_timeout` decides whether the step fails or is approved after `timeout`, by default 24 hours.
        """
        given: dict[str, Any] = {"message": message} if message else {}
        if timeout is not None:
            given["timeout"] = format_duration(parse_duration(timeout))
        if on_timeout != "fail":
            given["on_timeout"] = on_timeout
        return self.step(name, "approval.wait.execute", **given)

    def celery(
        self,
        name: str,
        signature: Signature[Any],
        /,
        *,
        timeout: float | str,
        undo: Signature[Any] | None = None,
        idempotent: bool = False,
    ) -> StepHandle:
        """Add a Celery task of the application as a step. The application's workers run the task unchanged.

        `undo` is the signature of the compensation. `timeout` limits each attempt; a task that has not ended in this
        time is `unknown`. With `idempotent`, the task runs again after the loss of its worker, if the application calls
        `install`.
        """
        back = as_params(undo) if undo is not None else None
        params = as_params(signature) | ({"idempotent": True} if idempotent else {})
        step = self.step(name, CELERY.name, **params).timeout(timeout)
        return step.undo(CELERY.name, **back) if back is not None else step

    @classmethod
    def from_canvas(
        cls,
        signature: Signature[Any],
        /,
        *,
        args: Sequence[Any] = (),
        name: str = "",
        undo: Mapping[Any, Any] | None = None,
        idempotent: Collection[Any] = (),
        timeout: float | str = "1h",
    ) -> Self:
        """A plan with the tasks of a Celery canvas as steps. The application's workers run the tasks unchanged.

        The result of a task becomes the first argument of the next task, as in Celery. A countdown or eta becomes a
        step that waits without a worker.

        * `args` – the arguments of `signature.delay`
        * `name` – the name of the plan; by default, the names of its tasks
        * `undo` – for each task or its name, the compensation: a task, which gets the same arguments; a signature,
          whose templates may use `data.result`; or "none". Compensations of `compensates` need no entry.
        * `idempotent` – tasks or their names. In an application that calls `install`, they run again after the loss of
          their worker.
        * `timeout` – the time limit of each task

        Raises UsageError if a task has an option that a step cannot keep, or an argument that is not JSON; and for a
        name in `undo` or `idempotent` that no task has.
        """
        from longshore.orchestration.operations.canvas import convert  # noqa: PLC0415 - Celery is imported only here

        found = convert(signature, args, undo, idempotent).steps
        plan = cls(name or "-".join(dict.fromkeys(step.name for step in found))[:48].rstrip("-") or "canvas")
        for each in found:
            step = plan.step(each.name, each.op, **each.params).after(*each.after)
            if "task" in each.params:
                step.timeout(timeout)
            if each.undo is not None:
                step.undo("none") if each.undo == "none" else step.undo(each.op, **each.undo)
        return plan

    @staticmethod
    def chain(*steps: StepHandle) -> None:
        """Make each step depend on the previous one."""
        for before, step in pairwise(steps):
            step.after(before)

    # --- data -------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The plan as a mapping of JSON types. `Plan.model_validate` restores the plan."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_yaml(self) -> str:
        """The plan as YAML text."""
        data = self.to_dict()
        # PyYAML writes these characters unescaped and reads them as line ends.
        fragile = set("\x85\u2028\u2029\ufeff").intersection(json.dumps(data, ensure_ascii=False))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=not fragile)

    def digest(self, params: Mapping[str, Any], files: Mapping[str, str]) -> str:
        """The SHA-256 of the plan, its parameters and the contents of its files. Equal starts have equal digests."""
        return digest_of(canonical_text(self.to_dict()), params, files)

    def __eq__(self, other: object) -> bool:
        # The folder of a plan's file is no part of the plan.
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def canonical_text(plan: Mapping[str, Any]) -> str:
    """The text of a plan given as JSON types: equal for equal plans."""
    # The order of the steps defines their indices, and sort_keys would lose the order.
    return json.dumps([plan, list(plan.get("steps", {}))], sort_keys=True, ensure_ascii=False)[1:-1]


def digest_of(canonical: str, params: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The digest of a start, from the canonical text of its plan; see `Plan.digest`."""
    inputs = json.dumps([dict(params), dict(files)], sort_keys=True, ensure_ascii=False)[1:-1]
    return hashlib.sha256(f"[{canonical}, {inputs}]".encode()).hexdigest()


def single(
    operation: str,
    params: Mapping[str, Any],
    *,
    target: str = "_any",
    inside: str | None = None,
    timeout: float | str | None = None,
) -> Plan:
    """A plan of one step, with the operation as its name."""
    plan = Plan(operation[:64], target=target, labels={"operation": operation})
    step = plan.step("do", operation, **params)
    if inside is not None:
        step.inside(inside)
    if timeout is not None:
        step.timeout(timeout)
    return plan
