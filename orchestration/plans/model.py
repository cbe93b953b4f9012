"""A plan as data: named steps, parameters and policies. YAML, JSON and Python build the same object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, Self, overload

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from longshore.orchestration.errors import PlanError, Problem, UsageError, plain
from longshore.orchestration.language.durations import Duration, format_duration, parse_duration
from longshore.orchestration.language.expressions import Expression, as_data, as_text, of_step
from longshore.orchestration.language.guards import OnlyIf
from longshore.orchestration.language.params import Param
from longshore.orchestration.language.schedule import Scheduled, ScheduleName
from longshore.orchestration.language.targets import HostFilter
from longshore.orchestration.operations import Retry, TypedOperation
from longshore.orchestration.operations.celery_task import CELERY, as_params
from longshore.orchestration.plans.steps import Inside, OnError, OnNoHost, Step, UndoSpec, When, _as_target, _Model

if TYPE_CHECKING:
    from celery import Signature


P = ParamSpec("P")

OnFailure = Literal["undo", "keep"]
OnUndoFailure = Literal["hold", "continue"]
OnUnknown = Literal["fail", "ask"]


class Concurrency(_Model):
    """A limit on the live runs that share a key, across plans."""

    key: str = Field(min_length=1, description="The key that the runs share; may use params")
    limit: Annotated[int, Field(ge=1)] = Field(1, description="The number of runs that may be live")
    on_limit: Literal["queue", "skip", "cancel_running"] = Field(
        "queue",
        description="At the limit a run waits, is not run, or cancels the live runs",
    )


class Plan(_Model):
    """A DAG of named steps with parameters and policies. `loading.validate` checks a plan before its run."""

    name: str = Field(description="The plan's name")
    description: str = Field("", description="For people")
    labels: dict[str, str] = Field(default_factory=dict, description="For people and for searching")
    params: dict[str, Param] = Field(default_factory=dict, description="Typed inputs")
    on_error: OnError = Field("stop", description="The effect of a step's final failure, for steps without on_error")
    on_failure: OnFailure = Field("undo", description="Whether a failed run is undone or keeps its effects")
    on_undo_failure: OnUndoFailure = Field(
        "hold",
        description="Whether a failed undo holds back the undos of the steps that its step depends on",
    )
    on_unknown: OnUnknown = Field(
        "fail", description="Whether a step of unknown outcome counts as failed, or a person decides about it"
    )
    target: Annotated[str, BeforeValidator(_as_target)] = Field("_any", description="The hosts of its steps")
    sequential: bool = Field(default=False, description="Each step depends on the previous one")
    retry: Retry | None = Field(None, description="The retries of failed attempts, for all steps")
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(None, description="Time limit of the whole run")
    concurrency: Concurrency | None = Field(None, description="A limit on the live runs that share a key")
    schedules: dict[ScheduleName, Scheduled] = Field(
        default_factory=dict,
        description="The schedules of a stored plan (LONGSHORE_PLANS)",
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
        """Add a step; keywords are the parameters of its operation, which is given by its name or as the function.

        For a function, type checkers know the parameters; see `longshore.orchestration.template` for templates in
        their place. Raises PlanError for a name in use, and for a parameter of a function that is missing or unknown.
        """
        if name in self.steps:
            raise PlanError([Problem("the plan has a step of this name", step=name)])
        op, params = _named(name, op, args, params)
        after = [list(self.steps)[-1]] if self.sequential and self.steps else []
        self.steps[name] = Step(op=op, with_=as_data(params), after=after)
        return StepHandle(self, name)

    def run_plan(self, name: str, plan: Plan | str, params: Mapping[str, Any] | None = None, /) -> StepHandle:
        """Add a step that runs another plan as a child run: a plan, the name of a stored one, or its file."""
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
        """Add a step that waits for an approval: `longshore runs approve RUN STEP`."""
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
        """Add an existing Celery task as a step; the application's own workers run the task unchanged.

        `undo` is the signature of the compensation. The `timeout` of an attempt is required: a task without a result
        in that time is `unknown`. An `idempotent` task runs again after the loss of its worker. See
        `longshore.orchestration.operations.celery_task`, and `longshore.orchestration.celery.install`.
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
        timeout: float | str = "1h",
    ) -> Self:
        """A plan of the tasks of a Celery canvas of any shape; the application's own workers run them unchanged.

        `args` are those of `signature.delay`. The result of a task becomes the first argument of the next one, as
        Celery does it. Countdowns and etas become steps that wait without a worker; `timeout` is that of each task.
        `undo` maps a task, or its name, to its compensation: a task, which is called with the same arguments; a
        signature, whose templates may use `data.result`; or "none". Compensations of
        `longshore.orchestration.celery.compensates` need no entry.

        Raises UsageError for an option that a step cannot keep, for an argument that is not JSON, and for a name in
        `undo` that no task has.
        """
        from longshore.orchestration.operations.canvas import convert  # noqa: PLC0415 - Celery is imported only here

        found = convert(signature, args, undo).steps
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
        """The plan as JSON types; `Plan.model_validate` restores it without loss."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_yaml(self) -> str:
        data = self.to_dict()
        # PyYAML writes these characters unescaped and reads them as line ends.
        fragile = set("\x85\u2028\u2029\ufeff").intersection(json.dumps(data, ensure_ascii=False))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=not fragile)

    def digest(self, params: Mapping[str, Any], files: Mapping[str, str]) -> str:
        """SHA-256 of the normalised plan, its parameters and its files' contents; equal digests mean equal starts."""
        return digest_of(canonical_text(self.to_dict()), params, files)

    def __eq__(self, other: object) -> bool:
        # The folder of a plan's file is no part of the plan.
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def _named(
    step: str, op: str | TypedOperation[Any], args: tuple[Any, ...], params: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of an operation. Raises PlanError."""
    if isinstance(op, TypedOperation):
        try:
            return op.name, op.bind(*args, **params)
        except UsageError as error:
            raise PlanError([Problem(str(error), step=step)]) from None
    if not isinstance(op, str):
        why = f"{op!r} is no operation: decorate the function with @operation, or use Plan.celery for a Celery task"
        raise PlanError([Problem(why, step=step)])
    if args:
        raise PlanError([Problem(f"{op}: give the parameters by name", step=step)])
    return op, params


def canonical_text(plan: Mapping[str, Any]) -> str:
    """The text of a plan given as JSON types: equal for equal plans."""
    # The order of the steps defines their indices, and sort_keys would lose the order.
    return json.dumps([plan, list(plan.get("steps", {}))], sort_keys=True, ensure_ascii=False)[1:-1]


def digest_of(canonical: str, params: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The digest of a start, from the canonical text of its plan; see `Plan.digest`."""
    inputs = json.dumps([dict(params), dict(files)], sort_keys=True, ensure_ascii=False)[1:-1]
    return hashlib.sha256(f"[{canonical}, {inputs}]".encode()).hexdigest()


class StepHandle:
    """A step under construction; each method changes the step in its plan and returns the handle."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.name = name

    def _set(self, **changes: Any) -> Self:
        step = self.plan.steps[self.name]
        written = {key: getattr(step, key) for key in type(step).model_fields} | changes
        try:
            self.plan.steps[self.name] = Step.model_validate(written)
        except ValidationError as error:
            item = error.errors()[0]
            where, why = ".".join(map(str, item["loc"][:1])), plain(item["msg"])
            raise PlanError([Problem(f"{where}: {why}", step=self.name)]) from None
        return self

    # --- outcome of the step, for parameters and guards of later steps ------------------------------

    def _outcome(self, name: str) -> Expression:
        found: Expression = getattr(of_step(self.name), name)
        return found

    @property
    def status(self) -> Expression:
        return self._outcome("status")

    @property
    def changed(self) -> Expression:
        return self._outcome("changed")

    @property
    def data(self) -> Any:
        """The data of the step as an Expression; type checkers accept it and its parts as any type."""
        return of_step(self.name).data

    @property
    def error(self) -> Expression:
        return self._outcome("error")

    @property
    def hosts(self) -> Expression:
        return self._outcome("hosts")

    @property
    def items(self) -> Expression:
        return self._outcome("items")

    # --- guards ---------------------------------------------------------------------------------

    def when(self, condition: Expression | str, *, reason: str = "") -> Self:
        """Add a condition for the step to run; `reason` is the skip reason in the report."""
        known = self.plan.steps[self.name].when
        return self._set(when=[*known, When(if_=as_text(condition), reason=reason)])

    def when_fact(self, condition: HostFilter | None = None, /, **conditions: Any) -> Self:
        """Run the step only on the hosts of its target that match the keywords of `HostFilter`.

        A step with the target `_any` runs if some host matches.
        """
        return self._set(when_fact=condition or conditions)

    def only_if(self, *conditions: OnlyIf | str) -> Self:
        """Add conditions on the outcomes of the direct dependencies (`changed`, `failed`, …)."""
        known = self.plan.steps[self.name].only_if
        return self._set(only_if=[*known, *(word for word in conditions if word not in known)])

    def only_if_changed(self) -> Self:
        return self.only_if(OnlyIf.CHANGED)

    def only_if_all_changed(self) -> Self:
        return self.only_if(OnlyIf.ALL_CHANGED)

    def only_if_failed(self) -> Self:
        return self.only_if(OnlyIf.FAILED)

    def only_if_any_host_failed(self) -> Self:
        return self.only_if(OnlyIf.ANY_HOST_FAILED)

    def only_if_all_hosts_failed(self) -> Self:
        return self.only_if(OnlyIf.ALL_HOSTS_FAILED)

    def only_if_any_host_changed(self) -> Self:
        return self.only_if(OnlyIf.ANY_HOST_CHANGED)

    def only_if_all_hosts_changed(self) -> Self:
        return self.only_if(OnlyIf.ALL_HOSTS_CHANGED)

    def only_if_any_host_skipped(self) -> Self:
        return self.only_if(OnlyIf.ANY_HOST_SKIPPED)

    # --- targets, items and policies ----------------------------------------------------------------

    def foreach(self, items: list[Any] | Expression | str) -> Self:
        """Run the step for each item, concurrently; parameters read the item as `item`."""
        return self._set(foreach=as_data(items))

    def inside(self, container: str | Expression) -> Self:
        """Run the step inside a running container: command, file, node and network operations."""
        return self._set(in_=Inside(container=str(container)))

    def target(self, target: str | Expression) -> Self:
        """Set the target: `_any` worker, `_all` hosts, one host by its name, or hosts with a label, `key:value`."""
        return self._set(target=str(target))

    def on_no_host(self, policy: OnNoHost) -> Self:
        """Set the policy for a target without hosts: `fail`, or `skip` the step."""
        return self._set(on_no_host=policy)

    def tolerate(self, number: int | str) -> Self:
        """Set how many items or hosts may fail: 2, or "10%"."""
        return self._set(tolerate=number)

    def max_parallel(self, number: int) -> Self:
        return self._set(max_parallel=number)

    def canary(self, number: int) -> Self:
        """Run so many items or hosts first; if one of them fails, the others do not run."""
        return self._set(canary=number)

    def irreversible(self) -> Self:
        """Mark the step as the point of no return: once it has succeeded, the run is not undone."""
        return self._set(irreversible=True)

    def after(self, *steps: StepHandle | str) -> Self:
        """Add dependencies."""
        known = self.plan.steps[self.name].after
        added = [step if isinstance(step, str) else step.name for step in steps]
        return self._set(after=[*known, *(name for name in added if name not in known)])

    def retry(
        self,
        retries: int,
        *,
        initial: float | str = 0,
        maximum: float | str = 30,
        jitter: bool = True,
    ) -> Self:
        """Retry up to `retries` times after the first attempt; without `initial`, immediately.

        Every error is retried that is not marked permanent: with `Permanent` or `Preflight` in an own operation or a
        Celery task, and by each operation of the catalogue. Without this call, only temporary errors are retried.
        """
        policy = {"attempts": retries + 1, "initial": initial, "maximum": maximum, "jitter": jitter}
        return self._set(retry=policy)

    def on_error(self, policy: OnError) -> Self:
        return self._set(on_error=policy)

    def continue_on_error(self) -> Self:
        """Continue the run without the dependent steps if this step fails."""
        return self.on_error("continue")

    def timeout(self, duration: float | str) -> Self:
        """Limit the time of each attempt."""
        return self._set(timeout=duration)

    @overload
    def undo(self, op: str, /, **params: Any) -> Self: ...

    @overload
    def undo(self, op: TypedOperation[P], /, *args: P.args, **kwargs: P.kwargs) -> Self: ...

    def undo(self, op: str | TypedOperation[Any], /, *args: Any, **params: Any) -> Self:
        """Set the compensation; `undo("none")` declares that the step needs none. Raises PlanError as `Plan.step`."""
        op, params = _named(self.name, op, args, params)
        return self._set(undo="none" if op == "none" else UndoSpec(op=op, with_=as_data(params)))

    def always(self) -> Self:
        """Run the step whether the run succeeds or not."""
        return self._set(always=True)

    def describe(self, text: str) -> Self:
        return self._set(description=text)


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
