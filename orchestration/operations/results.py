"""What a function operation gives back, and how data becomes a type again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from longshore.orchestration.errors import DecodeError, OperationError

T = TypeVar("T")
A = TypeVar("A")

HostStatus = Literal["changed", "unchanged", "failed", "skipped"]


@dataclass(frozen=True)
class HostResult:
    """What was done on one host. A host with an error has failed, unless it was skipped.

    `status` follows from `changed` and `error` where it is left out. `data` as for `Result`.
    """

    host: str
    changed: bool = False
    error: str | None = None
    data: Any = None
    status: HostStatus | None = None

    def as_record(self) -> dict[str, Any]:
        """As JSON holds it. OperationError for what a report could not read."""
        implied = "failed" if self.error else "changed" if self.changed else "unchanged"
        status = self.status or implied
        if not isinstance(self.host, str) or not self.host:
            raise OperationError(f"a host's result has the name {self.host!r}, which is no name of a host")
        if status not in get_args(HostStatus):
            raise OperationError(f"host {self.host!r}: {status!r} is none of {', '.join(get_args(HostStatus))}")
        record = {"host": self.host, "status": status, "changed": bool(self.changed)}
        if self.error:
            record["error"] = str(self.error)
        if self.data is not None:
            record["data"] = as_mapping(self.data)
        return record


@dataclass(frozen=True)
class Result:
    """What a function operation did.

    `data` is a mapping, a pydantic model or a dataclass; it is recorded as JSON. `changed` left out means
    what the operation's kind means: one that reads changes nothing, any other does. With `hosts`, the step
    has an entry for each in the report, has changed if one has, and fails if more fail than `tolerate` lets.
    """

    data: Any = None
    changed: bool | None = None
    hosts: list[HostResult] = field(default_factory=list)

    @classmethod
    def from_hosts(cls, items: Iterable[A], mapper: Callable[[A], HostResult], *, data: Any = None) -> Self:
        """A result of a collection of answers, one a host. Never fails because hosts have failed."""
        hosts = [mapper(item) for item in items]
        return cls(data=data, changed=any(host.changed for host in hosts), hosts=hosts)


def as_mapping(value: Any) -> dict[str, Any]:
    """Data as it is recorded: JSON types, a mapping. OperationError for what JSON does not have."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        made = to_jsonable_python(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        raise OperationError(f"its result is not what JSON can hold: {error}") from None
    if not isinstance(made, Mapping):
        made = {"result": made}
    return {str(key): item for key, item in made.items()}


def decode(model: type[T], data: Any, what: str) -> T:
    """The data as that type: a pydantic model, a dataclass, a TypedDict, …"""
    if not data:
        raise DecodeError(f"no result data for {what}")
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        name = getattr(model, "__name__", str(model))
        raise DecodeError(f"the data of {what} is no {name}: {where}: {first['msg']}") from None
