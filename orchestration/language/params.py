"""Typed parameters of a plan."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from longshore.orchestration.errors import ParamsError
from longshore.orchestration.language import patterns

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
}
_PYTHON = {str: "string", int: "integer", float: "number", bool: "boolean", list: "list", dict: "object"}


class Param(BaseModel):
    """One parameter: its type and constraints.

    A parameter without `default` is required. The short form is the type alone: `tag: string` in YAML,
    `{"tag": str}` in Python.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    type: Literal["string", "integer", "number", "boolean", "list", "object"] = Field(
        "string", description="Type of the value"
    )
    description: str = Field("", description="A description for people")
    default: Any = Field(None, description="The value if the run does not set the parameter")
    enum: list[Any] | None = Field(None, description="Allowed values")
    pattern: str | None = Field(None, description="A regular expression that the whole text must match")
    min: float | None = Field(None, description="The smallest number, or the smallest length of a text or list")
    max: float | None = Field(None, description="The largest number, or the largest length of a text or list")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(_TYPES)}, handler(core)]}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # A default of null differs from no default.
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set or key == "type"}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, type) and value in _PYTHON:
            return {"type": _PYTHON[value]}
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Param:
        if self.pattern is not None:
            patterns.check(self.pattern)
        if self.default is not None and (problem := self.problem(self.default)):
            raise ValueError(f"default {problem}")
        return self

    @property
    def required(self) -> bool:
        return "default" not in self.model_fields_set

    def problem(self, value: Any) -> str | None:
        """The reason why a value is invalid, or None."""
        if not isinstance(value, _TYPES[self.type]) or (isinstance(value, bool) and self.type != "boolean"):
            return f"must be of type {self.type}, not {value!r}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a finite number, not {value!r}"
        if self.enum is not None and value not in self.enum:
            return f"must be one of {', '.join(map(str, self.enum))}, not {value!r}"
        if self.pattern is not None:
            if len(str(value)) > patterns.LONGEST_TEXT:
                return f"must have at most {patterns.LONGEST_TEXT} characters to be matched against its pattern"
            if not patterns.matches(self.pattern, str(value)):
                return f"must match {self.pattern}, not {value!r}"
        size: Any = len(value) if isinstance(value, str | list | dict) else value
        what = "value" if size is value else "length"
        if self.min is not None and size < self.min:
            return f"must have a {what} of at least {self.min:g}, not {value!r}"
        if self.max is not None and size > self.max:
            return f"must have a {what} of at most {self.max:g}, not {value!r}"
        return None

    def parse(self, text: str) -> Any:
        """Parse a value from command-line text."""
        if self.type == "string":
            return text
        if self.type == "boolean" and text.lower() in {"true", "yes", "on", "1", "false", "no", "off", "0"}:
            return text.lower() in {"true", "yes", "on", "1"}
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def resolve(declared: Mapping[str, Param], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run: given values, then defaults. Raises ParamsError for the first invalid one."""
    for name in given:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise ParamsError(f"unknown parameter {name!r}", remedy=f"use one of: {known}")
    values: dict[str, Any] = {}
    for name, param in declared.items():
        if name in given:
            if problem := param.problem(given[name]):
                raise ParamsError(f"parameter {name!r} {problem}")
            values[name] = given[name]
        elif not param.required:
            values[name] = param.default
        else:
            raise ParamsError(f"parameter {name!r} is missing", remedy=f"give it with -p {name}=…")
    return values
