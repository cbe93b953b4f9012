"""A plan as data: named steps, parameters, policies. YAML, JSON and Python build the same object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from longshore.orchestration.errors import PlanError, Problem, plain
from longshore.orchestration.language.durations import Duration, format_duration, parse_duration
from longshore.orchestration.language.expressions import Expression, as_data, as_text, of_step
from longshore.orchestration.language.guards import OnlyIf
from longshore.orchestration.language.params import Param
from longshore.orchestration.language.schedule import Scheduled, ScheduleName
from longshore.orchestration.language.targets import HostFilter
from longshore.orchestration.operations import Retry
from longshore.orchestration.plans.steps import Inside, OnError, OnNoHost, Step, UndoSpec, When, _as_target, _Model

if TYPE_CHECKING:
    from celery import Signature


OnFailure = Literal["undo", "keep"]
OnUnknown = Literal["fail", "ask"]


class Concurrency(_Model):
    """Runs that must not be live at the same time, of whatever plans."""

    key: str = Field(min_length=1, description="What they have in common; may use params")
    limit: Annotated[int, Field(ge=1)] = Field(1, description="How many of them may be live")
    on_limit: Literal["queue", "skip", "cancel_running"] = Field(
        "queue",
        description="What becomes of one more: it waits, it is not run, or it takes the place of those that run",
    )


class Plan(_Model):
    """The whole procedure. `check()` says whether it can be run."""

    name: str = Field(description="The plan's name")
    description: str = Field("", description="For people")
    labels: dict[str, str] = Field(default_factory=dict, description="For people and for searching")
    params: dict[str, Param] = Field(default_factory=dict, description="Typed inputs")
    on_error: OnError = Field("stop", description="What a step's final failure does, unless the step says otherwise")
    on_failure: OnFailure = Field("undo", description="Whether a run that is ended is taken back or kept as it is")
    on_unknown: OnUnknown = Field(
        "fail", description="Whether a step that may have happened counts as failed, or a person is asked about it"
    )
    target: Annotated[str, BeforeValidator(_as_target)] = Field("_any", description="Where its steps run")
    sequential: bool = Field(default=False, description="Each step comes after the one before it")
    retry: Retry | None = Field(None, description="When failed attempts are tried again, for all steps")
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="Time of the whole run; running out of it is a failure"
    )
    concurrency: Concurrency | None = Field(None, description="Which runs must not be live at the same time")
    schedules: dict[ScheduleName, Scheduled] = Field(
        default_factory=dict,
        description="When it starts by itself, if it is a stored plan (LONGSHORE_PLANS)",
    )
    steps: dict[str, Step] = Field(default_factory=dict, description="The steps by name")

    #: Folder that a step's relative `source` is found in.
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

    def step(self, name: str, op: str, /, **params: Any) -> StepHandle:
        """Add a step; keywords are its parameters. PlanError if the name is taken."""
        if name in self.steps:
            raise PlanError([Problem("there is a step of this name already", step=name)])
        after = [list(self.steps)[-1]] if self.sequential and self.steps else []
        self.steps[name] = Step(op=op, with_=as_data(params), after=after)
        return StepHandle(self, name)

    def run_plan(self, name: str, plan: Plan | str, params: Mapping[str, Any] | None = None, /) -> StepHandle:
        """Add a step that runs another plan as a child: a plan, the name of a stored one, or its file."""
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
        """Add a step that waits for a person: `longshore runs approve RUN STEP`."""
        given: dict[str, Any] = {"message": message} if message else {}
        if timeout is not None:
            given["timeout"] = format_duration(parse_duration(timeout))
        if on_timeout != "fail":
            given["on_timeout"] = on_timeout
        return self.step(name, "approval.wait.execute", **given)

    def celery(
        self, name: str, signature: Signature[Any], /, *, timeout: float | str, undo: Signature[Any] | None = None
    ) -> StepHandle:
        """Add an existing Celery task as a step, run by its application's own workers, unchanged.

        `undo` is the signature that takes it back. `timeout` (an attempt's) is needed: a task that does not
        say how it ended in that time is `unknown`. See `longshore.orchestration.operations.celery_task`.
        """
        from longshore.orchestration.operations.celery_task import CELERY, as_params  # noqa: PLC0415 - only here

        back = as_params(undo) if undo is not None else None
        step = self.step(name, CELERY.name, **as_params(signature)).timeout(timeout)
        return step.undo(CELERY.name, **back) if back is not None else step

    @staticmethod
    def chain(*steps: StepHandle) -> None:
        """Make each step come after the one before it."""
        for before, step in pairwise(steps):
            step.after(before)

    # --- data -------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; `Plan.model_validate` reads it back without loss."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_yaml(self) -> str:
        data = self.to_dict()
        # PyYAML takes these for the end of a line, and writes them as they are.
        fragile = set("\x85\u2028\u2029\ufeff").intersection(json.dumps(data, ensure_ascii=False))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=not fragile)

    def digest(self, params: Mapping[str, Any], files: Mapping[str, str]) -> str:
        """What makes two starts the same: the normalised plan, its parameters, its files' contents."""
        data = self.to_dict()
        # The order of the steps is their numbering.
        order = list(data.get("steps", {}))
        body = json.dumps([data, order, dict(params), dict(files)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(body.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        # Where its file lies is no part of a plan.
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


class StepHandle:
    """A step under construction; each method changes it in its plan and returns the handle."""

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

    # --- what the step leaves, for the parameters and guards of others ------------------------------

    @property
    def status(self) -> Expression:
        return of_step(self.name).status

    @property
    def changed(self) -> Expression:
        return of_step(self.name).changed

    @property
    def data(self) -> Expression:
        return of_step(self.name).data

    @property
    def error(self) -> Expression:
        return of_step(self.name).error

    @property
    def hosts(self) -> Expression:
        return of_step(self.name).hosts

    @property
    def items(self) -> Expression:
        return of_step(self.name).items

    # --- guards ---------------------------------------------------------------------------------

    def when(self, condition: Expression | str, *, reason: str = "") -> Self:
        """Run only if this holds, too; `reason` is the report's, where it does not."""
        known = self.plan.steps[self.name].when
        return self._set(when=[*known, When(if_=as_text(condition), reason=reason)])

    def when_fact(self, condition: HostFilter | None = None, /, **conditions: Any) -> Self:
        """Do it only on those of its hosts that are like that: the keywords of `HostFilter`. A step that any worker may
        take is done if some host is.
        """
        return self._set(when_fact=condition or conditions)

    def only_if(self, *conditions: OnlyIf | str) -> Self:
        """Run only if the steps directly before it did this, too (`changed`, `failed`, …)."""
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

    # --- where, how often, and for what -----------------------------------------------------------

    def foreach(self, items: list[Any] | Expression | str) -> Self:
        """Do it for each item, at the same time; `item` is the item in its parameters."""
        return self._set(foreach=as_data(items))

    def inside(self, container: str | Expression) -> Self:
        """Do it inside a running container: command, file, node and network operations."""
        return self._set(in_=Inside(container=str(container)))

    def target(self, target: str | Expression) -> Self:
        """`_any` worker, `_all` hosts, one host by its name, or those with a label: `key:value`."""
        return self._set(target=str(target))

    def on_no_host(self, policy: OnNoHost) -> Self:
        """Where no host is meant by its target: `fail`, or `skip` the step."""
        return self._set(on_no_host=policy)

    def tolerate(self, number: int | str) -> Self:
        """So many of its items or hosts may fail: 2, or "10%"."""
        return self._set(tolerate=number)

    def max_parallel(self, number: int) -> Self:
        return self._set(max_parallel=number)

    def canary(self, number: int) -> Self:
        """So many of its items or hosts go first; if one of them fails, the rest is left alone."""
        return self._set(canary=number)

    def irreversible(self) -> Self:
        """The point of no return."""
        return self._set(irreversible=True)

    def after(self, *steps: StepHandle | str) -> Self:
        """Run after these, too."""
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
        """Try again up to `retries` times after the first try; without `initial`, at once."""
        policy = {"attempts": retries + 1, "initial": initial, "maximum": maximum, "jitter": jitter}
        return self._set(retry=policy)

    def on_error(self, policy: OnError) -> Self:
        return self._set(on_error=policy)

    def continue_on_error(self) -> Self:
        """Go on without what depends on it."""
        return self.on_error("continue")

    def timeout(self, duration: float | str) -> Self:
        """Per attempt."""
        return self._set(timeout=duration)

    def undo(self, op: str, /, **params: Any) -> Self:
        """Take it back with this operation; `undo("none")` says that nothing is to be taken back."""
        return self._set(undo="none" if op == "none" else UndoSpec(op=op, with_=as_data(params)))

    def always(self) -> Self:
        """Run it however the run ends."""
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
    """A plan of one step, called after its operation."""
    plan = Plan(operation[:64], target=target, labels={"operation": operation})
    step = plan.step("do", operation, **params)
    if inside is not None:
        step.inside(inside)
    if timeout is not None:
        step.timeout(timeout)
    return plan
