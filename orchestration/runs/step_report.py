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
    """The error that ended the run, and the step that raised it, if any."""

    step: str | None = None
    message: str


class UndoReport(_Part):
    """The compensation of a step. `duration_s` runs from its first claim to its outcome."""

    status: UndoState
    error: str | None = None
    #: Why the undo has not begun.
    reason: str | None = None
    attempts: int = 0
    duration_s: float | None = None
    task_ids: list[str] = []
    #: The running version of each of the step's projects since: images, revision, health, and a sentence.
    standing: list[dict[str, Any]] = []


class HostReport(_Part):
    """The result of a step on one host."""

    host: str
    status: StepState
    changed: bool
    error: str | None = None
    #: Why the step was skipped there, did not run, or waits.
    reason: str | None = None
    data: dict[str, Any] = {}

    def decode(self, model: type[T]) -> T:
        """The data of the host as the type `model`. Raises DecodeError if the data does not match the type."""
        return results.decode(model, self.data, f"host {self.host!r}")


class ItemReport(_Part):
    """The result of a step for one item of its `foreach`, or on one of its hosts."""

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
    """The state, result and error of one step, in the report of a run.

    * `name`, `op`, `level` – the step, its operation, and the number of its level
    * `status`, `changed`, `attempts` – the StepState, whether the step changed something, and the number of attempts
    * `duration_s` – the seconds from the first claim to the outcome, including delays between attempts
    * `undo` – the UndoState and the error of the undo; None without an undo
    * `reason` – why the step was skipped, did not run, or waits
    * `error`, `data` – the error and the data of the step
    * `hosts` – the results by host
    * `items` – for a step with `foreach` or several hosts, the reports of its units. `data` is then
      `{"results": [...]}`, with the data of each unit.
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
        """The data of the step as the type `model`. For a step on several hosts, the data of the first host.

        Raises DecodeError if the data does not match the type.
        """
        data = self.data if self.data or not self.hosts else self.hosts[0].data
        return results.decode(model, data, f"step {self.name!r}")

    def failures(self) -> list[ItemReport]:
        """The units that failed or are unknown, including tolerated ones."""
        return [item for item in self.items if item.status in guards.FAILED]
