"""The report of one step: status, data, hosts, items and compensation."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from longshore.orchestration.language import guards
from longshore.orchestration.operations import results
from longshore.orchestration.states import StepState, UndoState

T = TypeVar("T")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class ErrorReport(_Part):
    """Why the run was ended: the step, if it was one."""

    step: str | None = None
    message: str


class UndoReport(_Part):
    """How taking a step back went. `duration_s` from its first claim to its outcome."""

    status: UndoState
    error: str | None = None
    #: Why it has not begun.
    reason: str | None = None
    attempts: int = 0
    duration_s: float | None = None
    task_ids: list[str] = []


class HostReport(_Part):
    """What a step did on one host."""

    host: str
    status: StepState
    changed: bool
    error: str | None = None
    #: Why it was skipped there, left alone, or is waited for.
    reason: str | None = None
    data: dict[str, Any] = {}

    def decode(self, model: type[T]) -> T:
        """The host's data as that type. DecodeError if it does not fit."""
        return results.decode(model, self.data, f"host {self.host!r}")


class ItemReport(_Part):
    """What a step did for one item of its `foreach`, or on one of its hosts."""

    item: Any = None
    host: str | None = None
    status: StepState
    changed: bool
    attempts: int = 0
    duration_s: float | None = None
    task_ids: list[str] = []
    undo: UndoReport | None = None
    reason: str | None = None
    error: str | None = None
    data: dict[str, Any] = {}


class StepReport(_Part):
    """One step. `duration_s` from its first claim to its outcome, waits between attempts included.

    Of a step that was fanned out: `items` has its parts in their order, and `data` is
    `{"results": [...]}`, the data of each.
    """

    name: str
    op: str
    level: int
    status: StepState
    changed: bool
    attempts: int
    duration_s: float | None = None
    task_ids: list[str] = []
    undo: UndoReport | None = None
    reason: str | None = None
    error: str | None = None
    data: dict[str, Any] = {}
    hosts: list[HostReport] = []
    items: list[ItemReport] = []

    def decode(self, model: type[T]) -> T:
        """Its data as that type; of a step on several hosts, the first host's. DecodeError if it does not fit."""
        data = self.data if self.data or not self.hosts else self.hosts[0].data
        return results.decode(model, data, f"step {self.name!r}")

    def failures(self) -> list[ItemReport]:
        """The items that failed, tolerated or not."""
        return [item for item in self.items if item.status in guards.FAILED]
