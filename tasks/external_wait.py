"""Steps that wait outside a worker for an external event: their context, their deadline, their interface."""

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


#: Seconds (ten years) of a wait without a deadline: a child run has its own timeout.
FOR_EVER = 10 * 365 * 86_400.0


MakeCanvas = Callable[[str, Mapping[StepId, str] | None], Canvas]


@dataclass(frozen=True)
class ExternalWait:
    """An external wait: its timeout in seconds, its data as JSON, and its description for people."""

    seconds: float
    info: dict[str, Any]
    what: str


@dataclass(frozen=True)
class WaitContext:
    """The waiting attempt, and the services that it may use to begin."""

    store: Store
    canvas: MakeCanvas
    loaded: Loaded
    run_id: str
    step_id: StepId
    side: str
    attempt: int
    fence: str
    timeout: float | None
    #: The number of times that the run was reopened.
    epoch: int = 0

    @property
    def plan(self) -> CompiledPlan:
        return self.loaded.plan

    @property
    def name(self) -> str:
        """The name of the step or unit, in the spelling of ids."""
        return self.plan.name_of(self.step_id).replace("[", "@").removesuffix("]")


class WaitingImplementation(Implementation[P], Generic[P]):
    """Implements an operation that waits outside a worker: `park` begins the wait, and `predict` describes it."""

    def park(self, place: WaitContext, params: P) -> ExternalWait:
        """Begin the wait. Idempotent for one attempt."""
        raise NotImplementedError

    def park_undo(self, place: WaitContext, params: P, info: dict[str, Any]) -> ExternalWait | None:
        """Begin the undo's wait; None if nothing is to be undone."""
        raise NotImplementedError

    def act(self, ctx: Context, params: P, before: dict[str, Any]) -> Outcome:
        raise OperationError("an operation with an external wait cannot be run directly")
