"""One step of a plan as data: operation, guards, compensation, retries and target."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticUndefined

from longshore.orchestration.language import templates
from longshore.orchestration.language.durations import Duration
from longshore.orchestration.language.expressions import Expression, as_text
from longshore.orchestration.language.guards import OnlyIf
from longshore.orchestration.language.targets import HostFilter, is_target
from longshore.orchestration.operations import Retry

OnError = Literal["stop", "continue"]


OnNoHost = Literal["fail", "skip"]


#: Pattern of the names of steps and plans, which are used in keys, file names and container names.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


_NAMES = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})


_GUARDS = WithJsonSchema(
    {
        "anyOf": [
            {"enum": [str(word) for word in OnlyIf]},
            {"type": "array", "items": {"enum": [str(word) for word in OnlyIf]}},
        ]
    }
)


#: Key of the container of `in` among the rendered parameters of a step.
INSIDE = " in"


#: Pattern of `tolerate`: a number of items or hosts, or a percentage.
TOLERATE = r"^(\d+|\d{1,2}(\.\d+)?%|100%)$"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _none_or_spec(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise ValueError("must be 'none', or an operation with its parameters")
    return value


def _as_tolerance(value: Any) -> Any:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is not None and (not isinstance(text, str) or not re.fullmatch(TOLERATE, text)):
        raise ValueError("must be a number of items or hosts, or a part of them: 2, or 10%")
    return text


def _as_target(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or not is_target(value)):
        raise ValueError("must be _any, _all, a host's name, or a label as key:value")
    return value


def _as_conditions(value: Any) -> Any:
    """Normalise `when` (an expression, an expression with a reason, or a list of these) to a list."""
    given = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | Expression | Mapping | When) for one in given):
        raise ValueError("must be an expression, as text")
    return [{"if": as_text(one)} if isinstance(one, str | Expression) else one for one in given]


def _as_items(value: Any) -> Any:
    if value is not None and not isinstance(value, list | str):
        raise ValueError("must be a list, or a template that gives one")
    return value


def _shortest(conditions: list[When]) -> Any:
    """The shortest form of `when` for a written plan."""
    short = [condition.if_ if not condition.reason else condition.model_dump() for condition in conditions]
    return short[0] if len(short) == 1 else short


class _Model(BaseModel):
    """Base model that serialises only values other than the defaults; a round trip loses and adds nothing."""

    model_config = ConfigDict(
        extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True, defer_build=True
    )

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
    """The field's name and default for each serialised key."""
    return {
        field.serialization_alias or field.alias or name: (name, field.get_default(call_default_factory=True))
        for name, field in model.model_fields.items()
    }


class UndoSpec(_Model):
    """The undo of a step, defined by the plan.

    Templates in its parameters may use `data` (the result of the step) and `before` (the state before the step).
    """

    op: str = Field(description="The operation that undoes the step")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="The parameters of this operation")


class When(_Model):
    """A condition of a step. The short form is the expression alone."""

    if_: Annotated[str, Field(min_length=1)] = Field(
        alias="if", description="A Jinja2 expression, without braces. If it is false, the step is skipped"
    )
    reason: str = Field("", description="The reason that the report shows if the step is skipped")

    @property
    def of_part(self) -> bool:
        """Whether the condition reads `item` or `host`, and so is evaluated for each unit."""
        return bool(templates.references(templates.braced(self.if_), frozenset()).unknown & {"item", "host"})

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class _OneOrSeveral:
    """Schema annotation of a list field that also accepts a single element."""

    @staticmethod
    def __get_pydantic_json_schema__(core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


class Inside(_Model):
    """The container in which a step runs."""

    container: str = Field(min_length=1, description="The name or id of a running container; may use templates")


class Step(_Model):
    """One node of a plan: an operation, its parameters and its options."""

    op: str = Field(description="The operation, for example compose.up.execute")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="The parameters of the operation")
    after: Annotated[list[str], BeforeValidator(_as_list), _NAMES] = Field(
        default_factory=list,
        description="The dependencies: the steps that must end before this step begins. If one of them fails, this "
        "step is skipped. Exceptions are `always` steps and, if the run continues after the failure (`on_error`), "
        "steps whose `when` or `only_if` reads failures",
    )
    when: Annotated[list[When], BeforeValidator(_as_conditions), PlainSerializer(_shortest), _OneOrSeveral()] = Field(
        default_factory=list, description="Conditions. If one of them is false, the step is skipped"
    )
    only_if: Annotated[list[OnlyIf], BeforeValidator(_as_list), _GUARDS] = Field(
        default_factory=list,
        description="Conditions on the outcomes of the steps in `after`. If one of them is false, the step is skipped",
    )
    foreach: Annotated[list[Any] | str | None, BeforeValidator(_as_items)] = Field(
        None,
        description="A list, or a {{ template }} whose value is a list. The step runs once for each item, in parallel",
    )
    target: Annotated[str | None, BeforeValidator(_as_target)] = Field(
        None,
        description="The hosts of the step. _any: any one host; _all: all hosts; NAME: the host of this name; "
        "KEY:VALUE: all hosts with this label. By default, the target of the plan",
    )
    on_no_host: OnNoHost = Field(
        "fail",
        description="The effect of a target without a matching host. fail: the start of the run is refused. If the "
        "target reads earlier steps, or no host is known at the start, the step instead fails when its level opens. "
        "skip: the step is skipped",
    )
    when_fact: HostFilter | None = Field(
        None,
        description="Conditions on hosts. The step is skipped on each host of its target that does not fulfil them. "
        "With the target _any, the step is skipped if no known host fulfils them; otherwise, any host runs the step, "
        "even one that does not fulfil them",
    )
    in_: Inside | None = Field(
        None,
        alias="in",
        description="The container in which the step runs, for the operations command.*, file.*, node.* and network.*",
    )
    tolerate: Annotated[str | None, BeforeValidator(_as_tolerance)] = Field(
        None,
        description="The units (items and hosts) that may fail while the step still succeeds: 2, or 10%. By default 0",
    )
    max_parallel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The most units that run at the same time. No limit by default"
    )
    canary: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The number of units that run first. If one of them fails, the others do not run"
    )
    retry: Retry | None = Field(
        None,
        description="The `retry` of this step. By default, the `retry` of the plan",
    )
    on_error: OnError | None = Field(
        None,
        description="The `on_error` of this step. By default, the `on_error` of the plan. A failed `always` step never "
        "stops the run",
    )
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None,
        description="Time limit of each attempt. After the error `Delayed` (outcome not known yet), also the limit of "
        "the time from the first `Delayed` to the outcome. The default is LONGSHORE_STEP_TIMEOUT (1h), except for "
        "approvals, timers and child runs",
    )
    undo: Annotated[UndoSpec | Literal["none"] | None, BeforeValidator(_none_or_spec)] = Field(
        None, description="The undo of the step. By default, the undo of the operation; `none`: the step has no undo"
    )
    always: bool = Field(
        default=False,
        description="Whether the step also runs after a failure or a cancellation. Such a step is never undone",
    )
    irreversible: bool = Field(
        default=False, description="Point of no return: after this step has succeeded, no step of the run is undone"
    )
    description: str = Field("", description="A description for people")
