"""A plan as data: named steps, parameters, policies. YAML, JSON and Python build the same object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticUndefined

from longshore.orchestration.durations import Duration, parse_duration
from longshore.orchestration.errors import PlanError, Problem
from longshore.orchestration.operations import Retry
from longshore.orchestration.params import Param

#: Names of steps and plans. They stand in keys, file names and container names.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_NAMES = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})

OnError = Literal["stop", "continue"]
OnFailure = Literal["undo", "keep"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _none_or_spec(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise ValueError("must be 'none', or an operation with its parameters")
    return value


class _Model(BaseModel):
    """Written out, only what differs from the default is there: a round trip loses and adds nothing."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    @model_serializer(mode="wrap")
    def _only_what_differs(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        defaults = _defaults(type(self))
        written = handler(self)
        return {
            key: written[key]
            for key, (name, default) in defaults.items()
            if default is PydanticUndefined or getattr(self, name) != default
        }


@cache
def _defaults(model: type[BaseModel]) -> dict[str, tuple[str, Any]]:
    """Per written key: the field's name, and its default."""
    return {
        field.serialization_alias or field.alias or name: (name, field.get_default(call_default_factory=True))
        for name, field in model.model_fields.items()
    }


class UndoSpec(_Model):
    """An undo of the plan's own: an operation, with parameters that may use the step's `data` and `before`."""

    op: str = Field(description="The operation")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="Its parameters")


class Step(_Model):
    """A node of the plan."""

    op: str = Field(description="The operation, e.g. compose.up.execute")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="The operation's parameters")
    after: Annotated[list[str], BeforeValidator(_as_list), _NAMES] = Field(
        default_factory=list, description="The steps that must have ended before"
    )
    retry: Retry | None = Field(None, description="When a failed attempt is tried again")
    on_error: OnError | None = Field(None, description="stop ends the run, continue goes on without what depends on it")
    timeout: Duration | None = Field(None, description="Time of one attempt")
    undo: Annotated[UndoSpec | Literal["none"] | None, BeforeValidator(_none_or_spec)] = Field(
        None, description="How to take it back; none says that there is nothing to take back"
    )
    always: bool = Field(default=False, description="Runs however the run ends")
    description: str = Field("", description="For people")


class Plan(_Model):
    """The whole procedure. `check()` says whether it can be run."""

    name: str = Field(description="The plan's name")
    description: str = Field("", description="For people")
    labels: dict[str, str] = Field(default_factory=dict, description="For people and for searching")
    params: dict[str, Param] = Field(default_factory=dict, description="Typed inputs")
    on_error: OnError = Field("stop", description="What a step's final failure does, unless the step says otherwise")
    on_failure: OnFailure = Field("undo", description="Whether a run that is ended is taken back or kept as it is")
    sequential: bool = Field(default=False, description="Each step comes after the one before it")
    retry: Retry | None = Field(None, description="When failed attempts are tried again, for all steps")
    timeout: Duration | None = Field(None, description="Time of the whole run; running out of it is a failure")
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
        self.steps[name] = Step(op=op, with_=params, after=after)
        return StepHandle(self, name)

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

    def check(self) -> None:
        """Raise PlanError with everything that is wrong with the plan."""
        from longshore.orchestration.checks import problems  # noqa: PLC0415 - checks read plans

        if found := problems(self):
            raise PlanError(found)


class StepHandle:
    """A step under construction; each method changes it in its plan and returns the handle."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.name = name

    def _set(self, **changes: Any) -> Self:
        self.plan.steps[self.name] = self.plan.steps[self.name].model_copy(update=changes)
        return self

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
        policy = Retry(
            attempts=retries + 1,
            initial=parse_duration(initial),
            maximum=parse_duration(maximum),
            jitter=jitter,
        )
        return self._set(retry=policy)

    def on_error(self, policy: OnError) -> Self:
        return self._set(on_error=policy)

    def timeout(self, duration: float | str) -> Self:
        """Per attempt."""
        return self._set(timeout=parse_duration(duration))

    def undo(self, op: str, /, **params: Any) -> Self:
        """Take it back with this operation; `undo("none")` says that nothing is to be taken back."""
        return self._set(undo="none" if op == "none" else UndoSpec(op=op, with_=params))

    def always(self) -> Self:
        """Run it however the run ends."""
        return self._set(always=True)

    def describe(self, text: str) -> Self:
        return self._set(description=text)
