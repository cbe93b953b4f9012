"""Shared field types of the `docker.*` operations: names, sizes, texts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from longshore.orchestration.operations.base import About, Operation, Params, Result, register

NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)b?", re.IGNORECASE)


def is_template(text: str) -> bool:
    return "{{" in text


def _text(value: Any) -> Any:
    """Convert numbers to text; reject booleans, whose spelling in YAML is lost (`yes` or `true`)."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is a boolean: put it in quotes")
    return str(value) if isinstance(value, int | float) else value


def container_name(value: str) -> str:
    if not is_template(value) and not NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a container name or id")
    return value.removeprefix("/")


def parse_size(value: Any) -> int:
    """Parse a size in bytes: a number, or `512k`, `64m`, `1.5g`. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a size (64m, 1g, or bytes)")
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not a size (64m, 1g, or bytes)")
    return int(float(match[1]) * 1024 ** "bkmg".index(match[2].lower() or "b"))


Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": ["string", "number"]})]
ContainerName = Annotated[str, Field(min_length=1), BeforeValidator(_text)]


class OfContainer(Params):
    """Parameters of an operation on one container."""

    container: ContainerName = Field(description="Name or id")

    @field_validator("container")
    @classmethod
    def _valid(cls, value: str) -> str:
        return container_name(value)


def docker_operation(
    verb: str, params: type[Params], result: type[Result], summary: str, about: About, **promises: Any
) -> Operation:
    """Register an operation `docker.<verb>` on the queue `docker`."""
    name = f"docker.{verb}"
    return register(name=name, params=params, result=result, queue="docker", summary=summary, about=about, **promises)
