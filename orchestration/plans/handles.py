"""Building of a step in Python: order, guards, targets, policies and compensation, by chained calls."""

from __future__ import annotations

from typing import Any, ParamSpec, Protocol, Self, overload

from pydantic import ValidationError

from longshore.orchestration.errors import PlanError, Problem, UsageError, plain
from longshore.orchestration.language.expressions import Expression, as_data, as_text, of_step
from longshore.orchestration.language.guards import OnlyIf
from longshore.orchestration.language.targets import HostFilter
from longshore.orchestration.operations import TypedOperation
from longshore.orchestration.plans.steps import Inside, OnError, OnNoHost, Step, UndoSpec, When

P = ParamSpec("P")


class Steps(Protocol):
    """A plan under construction, as its handles see it."""

    steps: dict[str, Step]


def named_operation(
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


class StepHandle:
    """A step of a plan under construction; the return value of `Plan.step` and similar methods.

    Each method changes the step in its plan and returns the handle, so that calls can be chained:
    `plan.step("ship", "noop.execute").after(charge).retry(2)`. The properties are expressions of the outcome of the
    step, for parameters and guards of later steps.
    """

    def __init__(self, plan: Steps, name: str) -> None:
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
        """The status of the step as an Expression, such as `changed`."""
        return self._outcome("status")

    @property
    def changed(self) -> Expression:
        """Whether the step is changed, as an Expression."""
        return self._outcome("changed")

    @property
    def data(self) -> Any:
        """The data of the step as an Expression. `step.data.result` is the value that a Celery task returned.

        Type checkers accept the expression for a parameter of any type.
        """
        return of_step(self.name).data

    @property
    def error(self) -> Expression:
        """The error of the step as an Expression."""
        return self._outcome("error")

    @property
    def hosts(self) -> Expression:
        """The results of the step by host, as an Expression."""
        return self._outcome("hosts")

    @property
    def items(self) -> Expression:
        """The results of the step by item, as an Expression."""
        return self._outcome("items")

    # --- guards ---------------------------------------------------------------------------------

    def when(self, condition: Expression | str, *, reason: str = "") -> Self:
        """Run the step only if this condition also holds. `reason` is the reason of the skip in the report."""
        known = self.plan.steps[self.name].when
        return self._set(when=[*known, When(if_=as_text(condition), reason=reason)])

    def when_fact(self, condition: HostFilter | None = None, /, **conditions: Any) -> Self:
        """Run the step only on the hosts of its target that match the keywords of `HostFilter`.

        A step with the target `_any` runs on any host if at least one host matches.
        """
        return self._set(when_fact=condition or conditions)

    def only_if(self, *conditions: OnlyIf | str) -> Self:
        """Add conditions on the outcomes of the direct dependencies (`changed`, `failed`, …)."""
        known = self.plan.steps[self.name].only_if
        return self._set(only_if=[*known, *(word for word in conditions if word not in known)])

    def only_if_changed(self) -> Self:
        """Run the step only if a direct dependency changed."""
        return self.only_if(OnlyIf.CHANGED)

    def only_if_all_changed(self) -> Self:
        """Run the step only if all direct dependencies changed."""
        return self.only_if(OnlyIf.ALL_CHANGED)

    def only_if_failed(self) -> Self:
        """Run the step only if a direct dependency failed."""
        return self.only_if(OnlyIf.FAILED)

    def only_if_any_host_failed(self) -> Self:
        """Run the step only if a direct dependency failed on any host."""
        return self.only_if(OnlyIf.ANY_HOST_FAILED)

    def only_if_all_hosts_failed(self) -> Self:
        """Run the step only if a direct dependency failed on all hosts."""
        return self.only_if(OnlyIf.ALL_HOSTS_FAILED)

    def only_if_any_host_changed(self) -> Self:
        """Run the step only if a direct dependency changed on any host."""
        return self.only_if(OnlyIf.ANY_HOST_CHANGED)

    def only_if_all_hosts_changed(self) -> Self:
        """Run the step only if a direct dependency changed on all hosts."""
        return self.only_if(OnlyIf.ALL_HOSTS_CHANGED)

    def only_if_any_host_skipped(self) -> Self:
        """Run the step only if a direct dependency was skipped on any host."""
        return self.only_if(OnlyIf.ANY_HOST_SKIPPED)

    # --- targets, items and policies ----------------------------------------------------------------

    def foreach(self, items: list[Any] | Expression | str) -> Self:
        """Run the step for each item, concurrently. Templates read the item as `item`."""
        return self._set(foreach=as_data(items))

    def inside(self, container: str | Expression) -> Self:
        """Run the step inside a running container: for `command`, `file`, `node` and `network` operations."""
        return self._set(in_=Inside(container=str(container)))

    def target(self, target: str | Expression) -> Self:
        """Set the target: `_any` host, `_all` hosts, the name of a host, or a label `key:value` of hosts."""
        return self._set(target=str(target))

    def on_no_host(self, policy: OnNoHost) -> Self:
        """Set whether the step fails (`fail`) or is skipped (`skip`) if the target has no host."""
        return self._set(on_no_host=policy)

    def tolerate(self, number: int | str) -> Self:
        """Set how many items or hosts may fail while the step succeeds: 2, or "10%"."""
        return self._set(tolerate=number)

    def max_parallel(self, number: int) -> Self:
        """Limit how many items or hosts run at the same time."""
        return self._set(max_parallel=number)

    def canary(self, number: int) -> Self:
        """Run this number of items or hosts first. If one of them fails, the others do not run."""
        return self._set(canary=number)

    def irreversible(self) -> Self:
        """Mark the step as the point of no return: after the step has succeeded, the run is not undone."""
        return self._set(irreversible=True)

    def after(self, *steps: StepHandle | str) -> Self:
        """Begin the step after these steps, given as handles or names."""
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
        """Retry up to `retries` times after the first attempt: `retry(2)` allows three attempts.

        The first delay is `initial`. Each further delay is twice as long, up to `maximum`. By default, retries are
        immediate.

        Without this call, most operations are retried after temporary errors only. With this call, an attempt also
        follows after these errors:

        * built-in operations – an exit code or HTTP status that is not a success, and an exceeded time limit
        * operations and Celery tasks of your own – every exception, except `Permanent`, `Preflight`, `InDoubt` and
          `StepCancelled`
        """
        policy = {"attempts": retries + 1, "initial": initial, "maximum": maximum, "jitter": jitter}
        return self._set(retry=policy)

    def on_error(self, policy: OnError) -> Self:
        """Set the effect of a failure after the last attempt: `stop` ends the run, `continue` skips dependent steps."""
        return self._set(on_error=policy)

    def continue_on_error(self) -> Self:
        """If this step fails, continue the run without the dependent steps."""
        return self.on_error("continue")

    def timeout(self, duration: float | str) -> Self:
        """Limit the time of each attempt."""
        return self._set(timeout=duration)

    @overload
    def undo(self, op: str, /, **params: Any) -> Self: ...

    @overload
    def undo(self, op: TypedOperation[P], /, *args: P.args, **kwargs: P.kwargs) -> Self: ...

    def undo(self, op: str | TypedOperation[Any], /, *args: Any, **params: Any) -> Self:
        """Set the compensation: an operation, or "none" for no compensation. Raises PlanError as `Plan.step` does."""
        op, params = named_operation(self.name, op, args, params)
        return self._set(undo="none" if op == "none" else UndoSpec(op=op, with_=as_data(params)))

    def always(self) -> Self:
        """Run the step whether the run succeeds or not."""
        return self._set(always=True)

    def describe(self, text: str) -> Self:
        """Set a description for people."""
        return self._set(description=text)
