"""A run without Redis and workers: a record in memory, and dice for everything that the reducer does not decide.

It was written from DESIGN.md and SEMANTICS.md, not from the scripts, and knows no more of the reducer than its
transitions. What may never happen is asserted on the way; what must hold in the end is for the tests to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from longshore.orchestration import saga
from longshore.orchestration.canvas import CHAIN_LINKS
from longshore.orchestration.compiled import CompiledPlan
from longshore.orchestration.saga import DEPENDENCY_FAILED, RunRecord, StepRecord
from longshore.orchestration.states import (
    STEP_BAD,
    STEP_FINAL,
    STEP_GOOD,
    TERMINAL,
    TRANSITIONS,
    UNDO_FINAL,
    Cause,
    RunState,
    StepState,
    UndoState,
)

QUEUED = {StepState.READY, StepState.RETRYING}
UNDO_QUEUED = {UndoState.READY, UndoState.RETRYING}
#: A worker is lost so often, then its step is given up.
MAX_LOST = 3


@dataclass
class Step:
    status: StepState = StepState.PENDING
    attempts: int = 0
    undo: UndoState | None = None
    reason: str = ""
    no_effect: bool = False
    tainted: bool = False
    lost: int = 0
    undo_lost: int = 0
    #: The step that Celery sends when this one went well.
    next_link: int | None = None

    def record(self) -> StepRecord:
        return StepRecord(self.status, self.attempts, self.undo, self.reason, self.no_effect, self.tainted)


@dataclass
class Simulation:
    """One run. `dice` decides what workers, people and clocks do."""

    plan: CompiledPlan
    dice: Random
    #: ms; None for a run without a limit.
    deadline: int | None = None
    undo_time: int = 1_000_000
    #: How likely a running attempt ends badly.
    badness: float = 0.2
    state: RunState = RunState.PENDING
    level: int = -1
    undo_level: int | None = None
    left: int = 0
    keep: bool = False
    cause: Cause | None = None
    now: int = 0
    undo_deadline: int | None = None
    steps: list[Step] = field(default_factory=list)
    #: Every transition of the reducer, and everything that happened to a step, in order.
    transitions: list[saga.Transition] = field(default_factory=list)
    history: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keep = self.plan.plan.on_failure == "keep"
        self.steps = [Step() for _ in self.plan.steps]

    # --- the reducer's part -----------------------------------------------------------------------

    def record(self) -> RunRecord:
        return RunRecord(
            state=self.state,
            level=self.level,
            undo_level=self.undo_level,
            left=self.left,
            keep=self.keep,
            cause=self.cause,
            now=self.now,
            deadline=self.deadline,
            undo_deadline=self.undo_deadline,
        )

    def decide(self) -> saga.Transition | None:
        """Asked with no more records than it says that it wants; asking twice gives the same."""
        run = self.record()
        known = {i: self.steps[i].record() for i in saga.wanted(self.plan, run)}
        decision = saga.decide(self.plan, run, known)
        assert saga.decide(self.plan, run, known) == decision
        return decision

    def advance(self) -> bool:
        """Apply one transition; False where the run has to wait."""
        transition = self.decide()
        if transition is None:
            return False
        self.transitions.append(transition)
        assert len(self.transitions) <= self.bound(), "the run does not end"
        match transition:
            case saga.OpenLevel(state, level, ready, skipped):
                self._open(state, level, ready, skipped, transition.tainted)
            case saga.OpenUndo(level, ready, impossible):
                self._open_undo(level, ready, impossible)
            case saga.Abort(cause, _):
                self.abort(cause)
            case saga.Drain(steps):
                self._drain(steps)
            case saga.GiveUpUndo(steps):
                for i in steps:
                    assert self.state is RunState.UNDOING
                    assert self.steps[i].undo in UNDO_QUEUED
                    self._end_undo(i, UndoState.UNDO_FAILED)
            case saga.Finish(state, not_run):
                self._finish(state, not_run)
        return True

    def bound(self) -> int:
        """Each level is opened, drained, undone, given up and finished at most once an epoch; two epochs."""
        return 2 * (5 * len(self.plan.levels) + 3 * len(self.plan) + 5)

    def _to(self, state: RunState) -> None:
        if state is not self.state:
            assert state in TRANSITIONS[self.state], f"{self.state} → {state}"
        self.state = state

    def _nothing_runs(self) -> bool:
        return all(step.status is not StepState.RUNNING and step.undo is not UndoState.UNDOING for step in self.steps)

    def _ready(self, i: int) -> None:
        """A message for the step is sent: from now on it may begin at any time."""
        step = self.plan.steps[i]
        before = [self.steps[d] for d in step.needs]
        assert self.steps[i].status is StepState.PENDING
        if self.state is RunState.RUNNING:
            assert all(other.status in STEP_FINAL for other in before), f"{step.name} begins too early"
            if not step.always:
                assert all(other.status in STEP_GOOD for other in before), f"{step.name} has lost a dependency"
        else:
            assert self.state is RunState.FINISHING
            assert step.always
            # What it waits for has ended, or never will begin.
            waits = [d for d in step.needs if self.steps[d].status not in STEP_FINAL]
            assert all(self.steps[d].status is StepState.PENDING and not self.plan.steps[d].always for d in waits)
        self.steps[i].status = StepState.READY
        self.history.append(("ready", i))

    def _open(
        self, state: RunState, level: int, ready: tuple[int, ...], skipped: dict[int, str], tainted: frozenset[int]
    ) -> None:
        assert self.state is RunState.ABORTING or self.left <= 0
        assert self._nothing_runs()
        assert state in {RunState.RUNNING, RunState.FINISHING}
        if state is RunState.RUNNING:
            assert level == self.level + 1
            assert sorted([*ready, *skipped]) == list(self.plan.levels[level])
        assert set(ready) <= set(self.plan.levels[level])
        self._to(state)
        self.level, self.left = level, len(ready)
        for i, reason in skipped.items():
            assert not self.plan.steps[i].always
            self.steps[i].status, self.steps[i].reason = StepState.SKIPPED, reason
            self.steps[i].tainted = i in tainted
        for i in ready:
            self._ready(i)
        if state is RunState.RUNNING and len(ready) == 1:
            links = self.plan.chain_from(ready[0], CHAIN_LINKS)
            for link, following in pairwise(links):
                self.steps[link].next_link = following

    def _open_undo(self, level: int, ready: tuple[int, ...], impossible: dict[int, str]) -> None:
        assert not self.keep
        assert self._nothing_runs()
        assert self.state is RunState.ABORTING or self.left <= 0
        assert self.undo_level is None or level < self.undo_level, "the undo goes down"
        assert ready or impossible
        for i in [*ready, *impossible]:
            step, record = self.plan.steps[i], self.steps[i]
            assert step.level == level
            assert record.attempts > 0, f"{step.name} was never claimed"
            assert record.status is not StepState.UNCHANGED
            assert record.undo is None
            assert not any((step.always, step.read_only, record.no_effect))
            assert step.step.undo != "none"
            assert step.has_undo == (i in ready)
        self._to(RunState.UNDOING)
        if self.undo_deadline is None:
            self.undo_deadline = self.now + self.undo_time
        self.undo_level, self.left = level, len(ready)
        for i in ready:
            self.steps[i].undo = UndoState.READY
            self.history.append(("undo", i))
        for i in impossible:
            self.steps[i].undo = UndoState.NOT_UNDOABLE

    def _drain(self, drained: tuple[int, ...]) -> None:
        assert self.state is RunState.ABORTING
        assert drained
        for i in drained:
            step = self.steps[i]
            assert step.status in QUEUED
            self.left -= 1
            if self.plan.steps[i].always:
                step.status = StepState.PENDING
            else:
                lost = step.status is StepState.READY and step.attempts > 0
                step.status = StepState.UNKNOWN if lost else StepState.CANCELLED

    def _finish(self, state: RunState, not_run: tuple[int, ...]) -> None:
        assert state in TERMINAL
        assert self._nothing_runs()
        assert self.state is RunState.ABORTING or self.left <= 0
        assert list(not_run) == [i for i, step in enumerate(self.steps) if step.status is StepState.PENDING]
        for i in not_run:
            self.steps[i].status = StepState.NOT_RUN
        self.left = 0
        self._to(state)

    # --- people's and clocks' part ----------------------------------------------------------------

    def abort(self, cause: Cause) -> None:
        self._to(RunState.ABORTING)
        self.cause = cause

    def cancel(self, *, keep: bool = False) -> None:
        if self.state is RunState.PENDING:
            self._to(RunState.FAILED)
            self.cause = Cause.CANCEL
            for step in self.steps:
                step.status = StepState.NOT_RUN
        elif self.state is RunState.RUNNING:
            self.abort(Cause.CANCEL)
            self.keep = self.keep or keep

    def undo(self) -> None:
        """An operator asks for it: the run has rested."""
        assert self.state in TERMINAL
        self._to(RunState.UNDOING)
        self.history.append(("reopened", -1))
        self.undo_level, self.left, self.keep, self.undo_deadline = len(self.plan.levels), 0, False, None
        self.cause = self.cause or Cause.OPERATOR
        for step in self.steps:
            if step.undo is UndoState.UNDO_FAILED:
                step.undo = None

    # --- workers' part ----------------------------------------------------------------------------

    def work(self) -> bool:
        """One thing that some worker does; False where there is nothing to do."""
        forward = self.state in {RunState.RUNNING, RunState.FINISHING}
        can = [("claim", i) for i, step in enumerate(self.steps) if forward and step.status in QUEUED]
        can += [("end", i) for i, step in enumerate(self.steps) if step.status is StepState.RUNNING]
        if self.state is RunState.UNDOING:
            can += [("claim undo", i) for i, step in enumerate(self.steps) if step.undo in UNDO_QUEUED]
        can += [("end undo", i) for i, step in enumerate(self.steps) if step.undo is UndoState.UNDOING]
        if not can:
            return False
        what, i = self.dice.choice(can)
        match what:
            case "claim":
                self.steps[i].status = StepState.RUNNING
                self.steps[i].attempts += 1
                self.history.append(("claim", i))
            case "end":
                self._end(i)
            case "claim undo":
                self.steps[i].undo = UndoState.UNDOING
            case "end undo":
                self._end_of_undo(i)
        return True

    def _end(self, i: int) -> None:
        """An attempt ends in one way or another."""
        step, compiled = self.steps[i], self.plan.steps[i]
        if self.dice.random() >= self.badness:
            good = StepState.UNCHANGED if compiled.read_only or self.dice.random() < 0.2 else StepState.CHANGED
            self.complete(i, good)
            return
        how = self.dice.choice(["failed", "failed", "preflight", "passes", "lost"])
        if self.state is RunState.ABORTING and not compiled.always and self.dice.random() < 0.5:
            self.complete(i, StepState.CANCELLED)  # it was asked to stop, and did
        elif how == "passes" and self.state is not RunState.ABORTING and step.attempts < 4:
            step.status = StepState.RETRYING
        elif how == "lost":
            step.lost += 1
            again = compiled.repeatable and step.lost < MAX_LOST and self.state is not RunState.ABORTING
            if again or (compiled.always and self.state is RunState.ABORTING):
                step.status = StepState.READY
            else:
                self.complete(i, StepState.UNKNOWN)
        else:
            step.no_effect = how == "preflight" and step.attempts == 1
            self.complete(i, StepState.FAILED)

    def complete(self, i: int, status: StepState) -> None:
        """An outcome is recorded; the level is counted, the abort begun, or the chain's next link sent."""
        step = self.steps[i]
        assert step.status is StepState.RUNNING
        step.status = status
        self.left -= 1
        self.history.append(("end", i))
        if self.state is not RunState.RUNNING:
            return
        if status in STEP_BAD and self.plan.stops(i):
            self.abort(Cause.FAILURE)
        elif status in STEP_GOOD and step.next_link is not None and self.left <= 0:
            self.level, self.left = self.level + 1, 1
            self._ready(step.next_link)

    def _end_of_undo(self, i: int) -> None:
        step = self.steps[i]
        if self.dice.random() >= self.badness:
            self._end_undo(i, UndoState.UNDONE)
            return
        match self.dice.choice(["failed", "passes", "lost"]):
            case "failed":
                self._end_undo(i, UndoState.UNDO_FAILED)
            case "passes":
                step.undo = UndoState.RETRYING
            case _:
                step.undo_lost += 1
                if step.undo_lost < MAX_LOST:
                    step.undo = UndoState.READY
                else:
                    self._end_undo(i, UndoState.UNDO_FAILED)

    def _end_undo(self, i: int, status: UndoState) -> None:
        self.steps[i].undo = status
        self.left -= 1
        self.history.append(("end undo", i))

    # --- all of it --------------------------------------------------------------------------------

    def run(self, *, cancel_after: int | None = None, keep: bool = False) -> Simulation:
        """To the end, with a cancel after so many happenings if one is asked for."""
        happened = 0
        while self.state not in TERMINAL:
            if happened == cancel_after:
                self.cancel(keep=keep)
                if self.state in TERMINAL:
                    break
            happened += 1
            self.now += self.dice.randrange(50)
            # Whoever moves the run on may be late: workers go on meanwhile.
            late = self.dice.random() < 0.3
            if not (late and self.work()) and not self.advance() and not self.work():
                self._wait_for_the_clock()
        assert self.decide() is None, "a run that rests goes on"
        return self

    def _wait_for_the_clock(self) -> None:
        """Nobody can do anything: then time alone must."""
        times = [at for at in (self.deadline, self.undo_deadline) if at is not None and at > self.now]
        assert times, f"the run stands still in {self.state}"
        self.now = min(times)

    def names(self, indices: object) -> list[str]:
        assert isinstance(indices, list | tuple | set)
        return [self.plan.steps[i].name for i in sorted(indices)]

    def at_rest(self) -> bool:
        return all(step.status in STEP_FINAL and step.undo in {None, *UNDO_FINAL} for step in self.steps)

    def lost_a_dependency(self, i: int) -> bool:
        """Whether something that the step needs, directly or not, failed or was skipped for that."""
        return any(
            self.steps[d].status in STEP_BAD or self.steps[d].reason == DEPENDENCY_FAILED
            for d in self.plan.steps[i].needs
        )
