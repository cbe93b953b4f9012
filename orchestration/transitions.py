"""The record of a run as the reducer reads it, and the transitions that the reducer returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from longshore.orchestration.language.guards import RUNS, GuardDecision
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.states import STEP_BAD, Cause, RunState, StepState, UndoState


@dataclass(frozen=True)
class StepRecord:
    """What the record says of a step."""

    status: StepState = StepState.PENDING
    #: How often it was claimed.
    attempts: int = 0
    undo: UndoState | None = None
    reason: str = ""
    #: Its outcome proves that nothing was touched.
    no_effect: bool = False
    #: It was skipped, and something before it had failed: so what comes after it is skipped, too.
    tainted: bool = False
    #: Of a step that was fanned out; only where `wanted` says that they are needed.
    units: tuple[StepRecord, ...] = ()

    @property
    def breaks(self) -> bool:
        """Whether what depends on it is skipped for that."""
        return self.status in STEP_BAD or self.tainted


def evaluate_nothing(_index: int) -> GuardDecision:
    """For steps without guards, items or hosts."""
    return RUNS


@dataclass(frozen=True)
class RunRecord:
    """What the record says of the run. Times are ms of Redis's clock."""

    state: RunState
    level: int = -1
    undo_level: int | None = None
    #: Dispatched steps of the current batch that are not final.
    left: int = 0
    keep: bool = False
    cause: Cause | None = None
    now: int = 0
    deadline: int | None = None
    undo_deadline: int | None = None
    #: Grows with each command that reopens it.
    epoch: int = 0
    #: Where it is suspended.
    was: RunState | None = None
    #: Attempts that were lost without another one after them, and how many of those are fenced.
    lost: int = 0
    fenced: int = 0
    #: Whether, in this epoch, the receipts of its hosts were compared with the record.
    compared: bool = True


@dataclass(frozen=True)
class OpenLevel:
    """Steps become ready, are skipped with a reason, have failed already, or are fanned out."""

    state: RunState
    level: int
    ready: tuple[int, ...]
    skipped: dict[int, str] = field(default_factory=dict)
    #: Of those that are skipped: something before them had failed.
    tainted: frozenset[int] = frozenset()
    #: Why a step cannot even begin.
    failed: dict[int, str] = field(default_factory=dict)
    fanned: dict[int, GuardDecision] = field(default_factory=dict)
    #: The hosts of those of the ready ones that are for one.
    hosts: dict[int, str] = field(default_factory=dict)
    #: The failed step that ends the run.
    stopped_by: int | None = None


@dataclass(frozen=True)
class OpenUndo:
    """Steps become ready to be taken back, or are named as not undoable."""

    level: int
    ready: tuple[StepId, ...]
    impossible: dict[StepId, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Abort:
    """Nothing new is claimed from now on."""

    cause: Cause
    error: str


@dataclass(frozen=True)
class Drain:
    """What was dispatched and not claimed, was held back, or waits for a person, is cancelled."""

    steps: tuple[StepId, ...]


@dataclass(frozen=True)
class GiveUpUndo:
    """The undo ran out of its time: what has not begun will not."""

    steps: tuple[StepId, ...]


@dataclass(frozen=True)
class Unsuspend:
    """A suspended run goes on: what it waits for has taken too long."""


@dataclass(frozen=True)
class Compare:
    """The receipts beside the effects are compared with the record, and lost attempts are fenced there.

    `ending`: all receipts of the run, of attempts that the record does not know, too; nothing is at work.
    """

    ending: bool


@dataclass(frozen=True)
class Finish:
    """The run ends; `not_run` were never reached."""

    state: RunState
    not_run: tuple[int, ...]
