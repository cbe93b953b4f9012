"""A canvas of an application as a run of Longshore, in one call.

compensates(charge, refund)
result = durable(chain(charge.s("o-7", 42), ship.s())).delay()
result.get(timeout=60)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from longshore.orchestration.client.client import Client
from longshore.orchestration.client.run import Run
from longshore.orchestration.operations.canvas import COMPENSATIONS, Converted, convert
from longshore.orchestration.plans.model import Plan

if TYPE_CHECKING:
    from celery import Celery, Signature

T = TypeVar("T")


def compensates(task: Any, undo: T) -> T:
    """Register the task `undo` as the compensation of a task, for all canvases that this process runs as plans.

    `task` is a task or its name. `undo` is a task, which gets the same arguments; a signature, whose templates may use
    `data.result`; or "none". Returns `undo`.
    """
    COMPENSATIONS[task if isinstance(task, str) else str(task.name)] = undo
    return undo


class DurableResult:
    """The result of `Durable.delay`; its attribute `run` is the handle of the run."""

    def __init__(self, run: Run, converted: Converted) -> None:
        self.run = run
        self._converted = converted

    @property
    def id(self) -> str:
        """The id of the run."""
        return self.run.id

    def get(self, timeout: float | None = None) -> Any:
        """Block until the run has ended and return the result of the canvas, as `AsyncResult.get` does.

        Raises RunFailed if a task failed. Raises WaitTimeout after `timeout` seconds; the run continues.
        """
        report = self.run.wait(timeout, check=True)
        return self._converted.value({step.name: step.data for step in report.steps})


@dataclass(frozen=True, eq=False)
class Durable:
    """A canvas whose `delay` starts a run of Longshore; the return value of `durable`."""

    signature: Signature[Any]
    name: str
    undo: Mapping[Any, Any] | None
    idempotent: Collection[Any]
    timeout: float | str
    client: Client | None

    def delay(self, *args: Any) -> DurableResult:
        """Start a run and return at once. The first task gets `args` before its own arguments."""
        return self.apply_async(args)

    def apply_async(self, args: Sequence[Any] = (), *, run_id: str | None = None) -> DurableResult:
        """Start a run, as `delay` does. A start is idempotent by `run_id`.

        Raises as `Plan.from_canvas` and `Client.start` do.
        """
        given: dict[str, Any] = {"args": args, "undo": self.undo, "idempotent": self.idempotent}
        plan = Plan.from_canvas(self.signature, name=self.name, timeout=self.timeout, **given)
        client = self.client or _client(self.signature.app)
        return DurableResult(client.start(plan, run_id=run_id), convert(self.signature, **given))


def durable(
    signature: Signature[Any],
    *,
    name: str = "",
    undo: Mapping[Any, Any] | None = None,
    idempotent: Collection[Any] = (),
    timeout: float | str = "1h",
    client: Client | None = None,
) -> Durable:
    """Wrap a canvas so that its `delay` starts a run of Longshore instead of sending the canvas.

    The arguments are those of `Plan.from_canvas`. Without a `client`, the process creates one client for the
    application, with the settings of the environment.
    """
    return Durable(signature, name, undo, idempotent, timeout, client)


@cache
def _client(app: Celery) -> Client:
    return Client(app=app)
