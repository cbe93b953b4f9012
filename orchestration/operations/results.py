"""Results of function operations, and decoding of recorded data into types."""

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
    """The result of a step on one host: an entry of `Result.hosts`.

    By default, `status` follows from `changed` and `error`: a host with an error has failed. `data` has the types of
    `Result.data`.
    """

    host: str
    changed: bool = False
    error: str | None = None
    data: Any = None
    status: HostStatus | None = None

    def as_record(self) -> dict[str, Any]:
        """The result as a JSON record. Raises OperationError for an invalid name or status."""
        implied = "failed" if self.error else "changed" if self.changed else "unchanged"
        status = self.status or implied
        if not isinstance(self.host, str) or not self.host:
            raise OperationError(f"invalid host name {self.host!r} in a HostResult", remedy="give a non-empty text")
        if status not in get_args(HostStatus):
            raise OperationError(
                f"host {self.host!r}: status {status!r} is not one of {', '.join(get_args(HostStatus))}"
            )
        record = {"host": self.host, "status": status, "changed": bool(self.changed)}
        if self.error:
            record["error"] = str(self.error)
        if self.data is not None:
            record["data"] = as_mapping(self.data)
        return record


@dataclass(frozen=True)
class Result:
    """An optional return value of an operation's function: data, with `changed` or with the results of hosts.

    `data` is a mapping, a pydantic model or a dataclass, recorded as JSON. By default, `changed` is true, and false for
    a read-only operation. With `hosts`, the report has an entry for each host. The step is then changed by default if
    one host is changed, and fails if more hosts have failed than `tolerate` allows.
    """

    data: Any = None
    changed: bool | None = None
    hosts: list[HostResult] = field(default_factory=list)

    @classmethod
    def from_hosts(cls, items: Iterable[A], mapper: Callable[[A], HostResult], *, data: Any = None) -> Self:
        """A result with one host for each of `items`, as `mapper` returns it. Failed hosts raise no error here."""
        hosts = [mapper(item) for item in items]
        return cls(data=data, changed=any(host.changed for host in hosts), hosts=hosts)


def as_mapping(value: Any) -> dict[str, Any]:
    """Data as a mapping of JSON types. Raises OperationError for a value that JSON cannot represent."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        made = to_jsonable_python(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        raise OperationError(
            f"the result cannot be represented as JSON: {error}",
            remedy="return JSON types, a pydantic model or a dataclass",
        ) from None
    if not isinstance(made, Mapping):
        made = {"result": made}
    return {str(key): item for key, item in made.items()}


def decode(model: type[T], data: Any, what: str) -> T:
    """The data as the given type: a pydantic model, a dataclass, a TypedDict, … Raises DecodeError."""
    if not data:
        raise DecodeError(f"no result data for {what}")
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        name = getattr(model, "__name__", str(model))
        raise DecodeError(f"the data of {what} does not match {name}: {where}: {first['msg']}") from None
