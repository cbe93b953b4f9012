"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from longshore.orchestration.errors import OperationError
from longshore.orchestration.messaging.canvas import Canvas
from longshore.orchestration.operations import Params
from longshore.orchestration.plans.compiled import CompiledPlan, StepId
from longshore.orchestration.store.run_store import Store
from longshore.tasks.implementation import Context, Implementation, Outcome
from longshore.tasks.loaded_runs import Loaded

P = TypeVar("P", bound=Params)


#: Seconds that are as good as for ever: the child run has its own time.
FOR_EVER = 10 * 365 * 86_400.0


MakeCanvas = Callable[[str, Mapping[StepId, str] | None], Canvas]


@dataclass(frozen=True)
class ExternalWait:
    """How long it is waited for at most, seconds; for what, as JSON holds it and as people read it."""

    seconds: float
    info: dict[str, Any]
    what: str


@dataclass(frozen=True)
class WaitContext:
    """Which attempt it is that waits, and what it may use to begin."""

    store: Store
    canvas: MakeCanvas
    loaded: Loaded
    run_id: str
    step_id: StepId
    side: str
    attempt: int
    fence: str
    timeout: float | None
    #: How often the run was reopened.
    epoch: int = 0

    @property
    def plan(self) -> CompiledPlan:
        return self.loaded.plan

    @property
    def name(self) -> str:
        """Of the step, or of a unit, as ids have it."""
        return self.plan.name_of(self.step_id).replace("[", "@").removesuffix("]")


class WaitingImplementation(Implementation[P], Generic[P]):
    """An operation that is parked."""

    def park(self, place: WaitContext, params: P) -> ExternalWait:
        """Begin it. A second call for the same attempt must begin nothing twice."""
        raise NotImplementedError

    def park_undo(self, place: WaitContext, params: P, info: dict[str, Any]) -> ExternalWait | None:
        """Begin to take it back; None where there is nothing to take back."""
        raise NotImplementedError

    def act(self, ctx: Context, params: P, before: dict[str, Any]) -> Outcome:
        raise OperationError("it waits for something and cannot be done by itself")
