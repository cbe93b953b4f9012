"""The record of a run as the reducer reads it, and the transitions that the reducer returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from longshore.orchestration.language.guards import RUNS, GuardDecision
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.states import STEP_BAD, Cause, RunState, StepState, UndoState


@dataclass(frozen=True)
class StepRecord:
    """The record of a step or unit, as the reducer reads it."""

    status: StepState = StepState.PENDING
    #: Number of claims.
    attempts: int = 0
    undo: UndoState | None = None
    reason: str = ""
    #: Whether the outcome proves that there was no effect.
    no_effect: bool = False
    #: Whether an application's worker may still carry out the message of the step.
    live_message: bool = False
    #: Whether the operation itself has reverted the step, as far as it had gone, before it failed.
    reverted: bool = False
    #: Whether the step was skipped after a failed dependency, so that dependent steps are skipped too.
    tainted: bool = False
    #: Units of a step that was fanned out; empty unless `wants_units` requires them.
    units: tuple[StepRecord, ...] = ()

    @property
    def breaks(self) -> bool:
        """Whether dependent steps are skipped because of this step."""
        return self.status in STEP_BAD or self.tainted


def evaluate_nothing(_index: int) -> GuardDecision:
    """The `Evaluate` of steps without guards, items or hosts: run each."""
    return RUNS


@dataclass(frozen=True)
class RunRecord:
    """The record of a run, as the reducer reads it. Times are ms of Redis's clock."""

    state: RunState
    level: int = -1
    undo_level: int | None = None
    #: Number of dispatched steps of the current batch that are not final.
    left: int = 0
    keep: bool = False
    cause: Cause | None = None
    now: int = 0
    #: When the level was opened.
    opened: int = 0
    deadline: int | None = None
    undo_deadline: int | None = None
    #: Grows with each command that reopens the run.
    epoch: int = 0
    #: State in which the run was suspended.
    was: RunState | None = None
    #: Number of attempts lost without a later attempt, and how many of these are fenced.
    lost: int = 0
    fenced: int = 0
    #: Whether the receipts of the hosts were compared with the record in this epoch.
    compared: bool = True


@dataclass(frozen=True)
class OpenLevel:
    """Steps become ready, are skipped with a reason, have failed already, or are fanned out."""

    state: RunState
    level: int
    ready: tuple[int, ...]
    skipped: dict[int, str] = field(default_factory=dict)
    #: Skipped steps that had a failed dependency.
    tainted: frozenset[int] = frozenset()
    #: Steps that fail before they begin, each with the reason.
    failed: dict[int, str] = field(default_factory=dict)
    fanned: dict[int, GuardDecision] = field(default_factory=dict)
    #: Hosts of the ready steps with a single host as target.
    hosts: dict[int, str] = field(default_factory=dict)
    #: The failed step that ends the run.
    stopped_by: int | None = None


@dataclass(frozen=True)
class OpenUndo:
    """Steps become ready to be undone, or are recorded as not undoable or held back, each with the reason."""

    level: int
    ready: tuple[StepId, ...]
    impossible: dict[StepId, str] = field(default_factory=dict)
    held_back: dict[StepId, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Abort:
    """The run aborts: no further step is claimed."""

    cause: Cause
    error: str


@dataclass(frozen=True)
class Drain:
    """Steps that were dispatched and not claimed, held back, or wait for a person are cancelled."""

    steps: tuple[StepId, ...]


@dataclass(frozen=True)
class GiveUpUndo:
    """The compensation has exceeded its timeout: undos that have not begun are given up."""

    steps: tuple[StepId, ...]


@dataclass(frozen=True)
class Unsuspend:
    """A suspended run resumes because its undo deadline has passed."""


@dataclass(frozen=True)
class Compare:
    """The receipts on the hosts are compared with the record, and lost attempts are fenced there.

    `ending`: all receipts of the run are compared, including those of attempts that the record lacks; no attempt runs.
    """

    ending: bool


@dataclass(frozen=True)
class Finish:
    """The run ends; the steps `not_run` were never reached."""

    state: RunState
    not_run: tuple[int, ...]
