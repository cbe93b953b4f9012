"""A model checker that explores every order of events of a small run with two workers, sweepers and a few faults.

The real reducer (`saga.decide`) makes the decisions. The checker models the scripts, guard by guard, and the message,
the lease, and the receipt at the target. Every state must obey the rules, and from every state the run must be able
to end without a further fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

from longshore.orchestration import Plan, saga, transitions
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.states import TERMINAL, TRANSITIONS, Cause, RunState, StepState, UndoState
from longshore.orchestration.transitions import RunRecord, StepRecord

FORWARD, BACK, ADVANCE = "step", "undo", "advance"
R, S, U = RunState, StepState, UndoState
#: The number of lost workers after which a step is unknown.
MAX_LOST = 3


class Step(NamedTuple):
    """The record of a step; `effect` and `receipt` are at the target, not in Redis. Tuples hash and compare fast."""

    status: StepState = S.PENDING
    fence: int = 0
    claimed: bool = False
    lost: int = 0
    undo: UndoState | None = None
    undo_lost: int = 0
    tainted: bool = False
    effect: int = 0
    receipt: int = 0
    #: At the target: no later forward attempt acts.
    closed: bool = False


class Worker(NamedTuple):
    """An attempt in a process: the fence, and whether the attempt has acted."""

    task: str
    step: int
    fence: int
    acted: bool = False


class Faults(NamedTuple):
    """The remaining number of faults of each kind."""

    crash: int = 0
    zombie: int = 0
    loss: int = 0
    double: int = 0
    failure: int = 0
    undo_failure: int = 0
    cancel: int = 0
    #: Decisions that are applied later, when the run may have changed.
    stale: int = 0


@dataclass(frozen=True)
class Held:
    """A decision with the position of its run; compared by text, because some parts have no hash."""

    state: RunState
    level: int
    undo_level: int | None
    text: str
    decision: saga.Transition = field(compare=False)


class World(NamedTuple):
    """A state of the run, with its messages, workers and target."""

    steps: tuple[Step, ...]
    faults: Faults
    state: RunState = R.PENDING
    level: int = -1
    undo_level: int | None = None
    left: int = 0
    cause: Cause | None = None
    lost: int = 0
    fenced: int = 0
    compared: bool = False
    leases: frozenset[tuple[str, int]] = frozenset()
    messages: tuple[tuple[str, int], ...] = ((ADVANCE, -1),)
    workers: tuple[Worker | None, ...] = (None, None)
    #: A decision that is not yet applied.
    held: Held | None = None
    #: The violated rule of this path.
    broken: str = ""


_T = TypeVar("_T", Step, Worker, Faults, World)


def small_plan(**settings: Any) -> CompiledPlan:
    """A plan with two parallel steps, one of them not repeatable, a later step, and an always step."""
    plan = Plan("model", **settings)
    plan.step("again", "noop.execute")
    plan.step("once", "command.shell.execute", command="x").undo("noop.execute")
    plan.step("after", "noop.execute").after("again", "once")
    plan.step("always", "noop.execute").after("after").always()
    return CompiledPlan(plan)


def small_plan_without_undo() -> CompiledPlan:
    """A plan with a step that is not repeatable and has no undo, so that no later attempt fences a lost one; a later
    step, and an always step.
    """
    plan = Plan("model")
    plan.step("once", "command.shell.execute", command="x").undo("none").continue_on_error()
    plan.step("beside", "command.shell.execute", command="y").undo("none")
    plan.step("always", "noop.execute").after("once", "beside").always()
    return CompiledPlan(plan)


@dataclass
class Checker:
    """The checker. `without` names omitted guards, so that a test can show that each guard is needed."""

    plan: CompiledPlan
    faults: Faults
    without: frozenset[str] = frozenset()
    seen: dict[World, list[World]] = field(default_factory=dict)

    def explore(self, at_most: int) -> int:
        """Visit every state that can be reached, and return their number. AssertionError names a broken rule."""
        start = World(tuple(Step() for _ in self.plan.steps), self.faults)
        todo = deque([start])
        self.seen = {start: []}
        while todo:
            world = todo.popleft()
            self.check_rules(world)
            followers = []
            for after in self.following(world):
                followers.append(after)
                if after not in self.seen:
                    assert len(self.seen) < at_most, f"more than {at_most} states"
                    self.seen[after] = []
                    todo.append(after)
            self.seen[world] = followers
        self.check_ends()
        return len(self.seen)

    # --- rules --------------------------------------------------------------------

    def check_rules(self, world: World) -> None:
        assert not world.broken, world.broken
        if world.state is not R.ABORTING and world.state not in TERMINAL:
            assert world.left >= 0, "more steps ended than were dispatched"
        if world.state is R.UNDOING:
            assert not any(task == FORWARD for task, _ in world.leases), "a step was undone while another runs"
        if world.state not in TERMINAL:
            return
        assert not world.leases, "the run ended while a step runs"
        *others, always = world.steps
        assert always.effect == 1 or always.lost >= MAX_LOST, "the always step did not run"
        for number, step in enumerate(others):
            if world.state is R.SUCCEEDED:
                assert step.effect == 1, f"the run succeeded without step {number}"
            if world.state is R.UNDONE and self.plan.steps[number].has_undo:
                assert step.effect == 0, f"the run was undone, and the effect of step {number} remains"
            if world.state is R.FAILED and world.cause is not None:
                assert step.effect == 0, f"the run failed without a change, and the effect of step {number} remains"
            if step.undo is U.HELD_BACK:
                assert world.state is R.UNDO_FAILED, "a compensation was held back, and the run is undone"
                assert self.dependents_failed(world, number), "a compensation was held back without a reason"

    def dependents_failed(self, world: World, index: int) -> bool:
        """Report whether the compensation of a step that depends on this one, directly or not, has failed."""
        return any(s.undo is U.UNDO_FAILED and index in self.plan.upstream(i) for i, s in enumerate(world.steps))

    def check_ends(self) -> None:
        """Check that the run can end from every state without a further fault."""
        backward: dict[World, list[World]] = {world: [] for world in self.seen}
        for world, followers in self.seen.items():
            for after in followers:
                if after.faults == world.faults:
                    backward[after].append(world)
        good = {world for world in self.seen if world.state in TERMINAL}
        todo = deque(good)
        while todo:
            for before in backward[todo.popleft()]:
                if before not in good:
                    good.add(before)
                    todo.append(before)
        stuck = [world for world in self.seen if world not in good]
        assert not stuck, f"{len(stuck)} states never end: {stuck[0]}"

    # --- next states ---------------------------------------------------------------------

    def following(self, world: World) -> Iterator[World]:
        yield from self.deliveries(world)
        for number, worker in enumerate(world.workers):
            if worker is not None:
                yield from self.work(world, number, worker)
        if "sweeper" not in self.without:
            yield from self.sweeps(world)
        faults = world.faults
        if faults.cancel and world.state is R.RUNNING:
            spent = replace(faults, cancel=faults.cancel - 1)
            yield replace(world, faults=spent, state=R.ABORTING, cause=Cause.CANCEL, messages=_with(world, ADVANCE, -1))
        for message in sorted(set(world.messages)):
            if faults.loss:
                yield replace(world, faults=replace(faults, loss=faults.loss - 1), messages=_less(world, message))
            if faults.double:
                doubled = replace(faults, double=faults.double - 1)
                yield replace(world, faults=doubled, messages=tuple(sorted([*world.messages, message])))

    def deliveries(self, world: World) -> Iterator[World]:
        for message in sorted(set(world.messages)):
            taken = replace(world, messages=_less(world, message))
            task, index = message
            if task == ADVANCE:
                yield self.advance(taken)
            elif None in world.workers:
                yield self.claim(taken, world.workers.index(None), task, index)

    def claim(self, world: World, number: int, task: str, index: int) -> World:
        step = world.steps[index]
        if task == FORWARD:
            begins = world.state in {R.RUNNING, R.FINISHING}
            if ("claim state" not in self.without and not begins) or (
                "claim status" not in self.without and step.status is not S.READY
            ):
                return world
            if not begins:
                world = replace(world, broken="a step was begun in a run that is not running")
            step = replace(step, status=S.RUNNING, fence=step.fence + 1, claimed=True)
        else:
            if world.state is not R.UNDOING or step.undo is not U.READY:
                return world
            if self.dependents_failed(world, index):
                world = replace(world, broken="a step was undone under one whose compensation had failed")
            step = replace(step, undo=U.UNDOING, fence=step.fence + 1)
        workers = list(world.workers)
        workers[number] = Worker(task, index, step.fence)
        return replace(
            _put(world, index, step), workers=tuple(workers), leases=world.leases | {(task, index)}
        )  # fmt: skip

    def work(self, world: World, number: int, worker: Worker) -> Iterator[World]:
        step, index = world.steps[worker.step], worker.step
        workers = list(world.workers)
        workers[number] = None
        gone = replace(world, workers=tuple(workers))
        if not worker.acted:
            closed = worker.task == FORWARD and step.closed and "close" not in self.without
            if closed or ("receipt" not in self.without and worker.fence < step.receipt):
                yield gone  # the target refuses the attempt
                return
            effect = 1 if worker.task == FORWARD else 0
            ended = world.state in TERMINAL or bool(worker.task == FORWARD and world.steps[-1].effect)
            late = ended and effect != step.effect and not self.plan.steps[index].always
            acted = list(world.workers)
            acted[number] = replace(worker, acted=True)
            target = replace(step, effect=effect, receipt=max(step.receipt, worker.fence))
            broken = "an effect came after the end of its run, or its always step" if late else world.broken
            yield replace(_put(world, index, target), workers=tuple(acted), broken=broken)
            if world.faults.failure and worker.task == FORWARD and not self.plan.steps[index].always:
                spent = replace(gone, faults=replace(world.faults, failure=world.faults.failure - 1))
                yield self.record(spent, worker, S.FAILED)
            if world.faults.undo_failure and worker.task == BACK:
                # An attempt locks its receipt before anything that can fail.
                noted = _put(gone, index, replace(step, receipt=max(step.receipt, worker.fence)))
                spent = replace(noted, faults=replace(world.faults, undo_failure=world.faults.undo_failure - 1))
                yield self.record(spent, worker, S.FAILED)
        else:
            yield self.record(gone, worker, S.CHANGED)
        if world.faults.crash:
            yield replace(gone, faults=replace(world.faults, crash=world.faults.crash - 1))

    def record(self, world: World, worker: Worker, status: StepState) -> World:
        step, index = world.steps[worker.step], worker.step
        busy = step.status is S.RUNNING if worker.task == FORWARD else step.undo is U.UNDOING
        if "fence" not in self.without and step.fence != worker.fence:
            return world
        if not busy:
            return world
        if step.fence != worker.fence:
            world = replace(world, broken="an outcome counted that was not the present attempt's")
        undo = U.UNDO_FAILED if status is S.FAILED else U.UNDONE
        step = replace(step, status=status) if worker.task == FORWARD else replace(step, undo=undo)
        return self.ended(_put(world, index, step), worker.task, index, bad=status is S.FAILED)

    def ended(self, world: World, task: str, index: int, *, bad: bool) -> World:
        world = replace(world, left=world.left - 1, leases=world.leases - {(task, index)})
        if bad and world.state is R.RUNNING and self.plan.stops(index):
            world = replace(world, state=R.ABORTING, cause=Cause.FAILURE)
        ready = not world.leases if world.state is R.ABORTING else world.left <= 0
        return replace(world, messages=_with(world, ADVANCE, -1)) if ready else world

    # --- the sweeper ------------------------------------------------------------------------------

    def sweeps(self, world: World) -> Iterator[World]:
        if world.state in TERMINAL:
            return
        yield self.advance(world)
        yield from self.late_decision(world)
        for task, index in sorted(world.leases):
            step = world.steps[index]
            alive = any(w and (w.task, w.step, w.fence) == (task, index, step.fence) for w in world.workers)
            if not alive:
                yield self.expire(world, task, index)
            elif world.faults.zombie:  # the worker is only stopped, and continues later
                spent = replace(world.faults, zombie=world.faults.zombie - 1)
                yield self.expire(replace(world, faults=spent), task, index)
        for index, step in enumerate(world.steps):
            if (
                step.status is S.READY
                and world.state in {R.RUNNING, R.FINISHING}
                and (FORWARD, index) not in world.messages
            ):
                yield replace(world, messages=_with(world, FORWARD, index))
            if step.undo is U.READY and world.state is R.UNDOING and (BACK, index) not in world.messages:
                yield replace(world, messages=_with(world, BACK, index))

    def expire(self, world: World, task: str, index: int) -> World:
        step = world.steps[index]
        fence = step.fence + 1
        world = replace(world, leases=world.leases - {(task, index)})
        if task == BACK:
            step = replace(step, fence=fence, undo_lost=step.undo_lost + 1)
            return _put(world, index, replace(step, undo=U.READY))
        step = replace(step, fence=fence, lost=step.lost + 1)
        if self.plan.steps[index].repeatable and step.lost < MAX_LOST:
            if world.state is not R.ABORTING:
                return _put(world, index, replace(step, status=S.READY))
            if self.plan.steps[index].always:
                return replace(_put(world, index, replace(step, status=S.PENDING)), left=world.left - 1)
        world = replace(world, lost=world.lost + 1)
        return self.ended(_put(world, index, replace(step, status=S.UNKNOWN)), task, index, bad=True)

    def late_decision(self, world: World) -> Iterator[World]:
        """Let a coordinator decide, be delayed, and apply its decision."""
        if world.held is not None:
            held = world.held
            world = replace(world, held=None)
            there = (world.state, world.level, world.undo_level) == (held.state, held.level, held.undo_level)
            if there or "cas" in self.without:
                yield self.apply(world, held.decision) or world
            else:
                yield world
        elif world.faults.stale:
            decision = self.decision(world)
            if decision is not None:
                spent = replace(world.faults, stale=world.faults.stale - 1)
                held = Held(world.state, world.level, world.undo_level, repr(decision), decision)
                yield replace(world, faults=spent, held=held)

    # --- application of a decision ------------------------------------------------------------------

    def advance(self, world: World) -> World:
        """Apply the reducer's decisions until the run has to wait."""
        for _ in range(20):
            after = self.advance_once(world)
            if after is None:
                return world
            world = after
        raise AssertionError("the reducer does not terminate")

    def advance_once(self, world: World) -> World | None:
        decision = self.decision(world)
        return None if decision is None else self.apply(world, decision)

    def decision(self, world: World) -> saga.Transition | None:
        steps = tuple((s.status, s.claimed, s.undo, s.tainted) for s in world.steps)
        run = RunRecord(
            world.state, world.level, world.undo_level, world.left, cause=world.cause, lost=world.lost,
            fenced=world.fenced, compared=world.compared,
        )  # fmt: skip
        return _decide(self.plan, run, steps)

    def apply(self, world: World, decision: saga.Transition) -> World | None:
        """Apply a decision; None if the script refuses the decision."""
        match decision:
            case transitions.OpenLevel(state, level, ready, skipped):
                if world.state is R.ABORTING and world.leases:
                    return None
                if world.state is not R.ABORTING and world.left > 0:
                    return None
                for i in skipped:
                    tainted = i in decision.tainted
                    world = _put(world, i, replace(world.steps[i], status=S.SKIPPED, tainted=tainted))
                for i in ready:
                    world = _put(world, i, replace(world.steps[i], status=S.READY))
                world = _to(replace(world, level=level, left=len(ready)), state)
                return replace(world, messages=_with(world, FORWARD, *ready))
            case transitions.OpenUndo(level, undone, impossible, held_back):
                if world.state is R.ABORTING and world.leases:
                    return None
                for i in undone:
                    world = _put(world, int(i), replace(world.steps[int(i)], undo=U.READY))
                for i in impossible:
                    world = _put(world, int(i), replace(world.steps[int(i)], undo=U.NOT_UNDOABLE))
                for i in held_back:
                    world = _put(world, int(i), replace(world.steps[int(i)], undo=U.HELD_BACK))
                world = _to(replace(world, undo_level=level, left=len(undone)), R.UNDOING)
                return replace(world, messages=_with(world, BACK, *(int(i) for i in undone)))
            case transitions.Compare(ending):
                return self.compare(world, ending=ending)
            case transitions.Drain(waiting):
                return self.drain(world, tuple(int(i) for i in waiting))
            case transitions.Finish(state, not_run):
                if world.leases or (world.state is not R.ABORTING and world.left > 0):
                    return None
                for i in not_run:
                    world = _put(world, i, replace(world.steps[i], status=S.NOT_RUN))
                return _to(world, state)
            case _:
                raise AssertionError(f"unexpected decision: {decision}")

    def compare(self, world: World, *, ending: bool) -> World | None:
        """Compare receipts; the hosts answer immediately."""
        if ending and world.leases:
            return None
        for i, step in enumerate(world.steps):
            if step.status is S.UNKNOWN or (ending and not self.plan.steps[i].always):
                world = _put(world, i, replace(step, closed=True))
        return replace(world, fenced=world.lost, compared=world.compared or ending)

    def drain(self, world: World, waiting: tuple[int, ...]) -> World:
        for i in waiting:
            step = world.steps[i]
            if step.status is not S.READY:
                continue
            if self.plan.steps[i].always:
                step = replace(step, status=S.PENDING)
            elif step.claimed and "doubt" not in self.without:
                step = replace(step, status=S.UNKNOWN)
                world = replace(world, lost=world.lost + 1)
            else:
                step = replace(step, status=S.CANCELLED, claimed=step.claimed and "doubt" not in self.without)
            world = replace(_put(world, i, step), left=world.left - 1)
        return world


def replace(value: _T, **changes: Any) -> _T:
    """A copy of a tuple with other values of some fields."""
    return value._replace(**changes)


@cache
def _decide(
    plan: CompiledPlan, run: RunRecord, steps: tuple[tuple[StepState, bool, UndoState | None, bool], ...]
) -> saga.Transition | None:
    """Decide with only the records that the reducer requests; check that a second call decides the same."""
    records = {}
    for i in saga.steps_read(plan, run):
        status, claimed, undo, tainted = steps[int(i)]
        records[int(i)] = StepRecord(status, int(claimed), undo, tainted=tainted)
    decision = saga.decide(plan, run, records)
    assert saga.decide(plan, run, records) == decision
    return decision


def _put(world: World, index: int, step: Step) -> World:
    steps = list(world.steps)
    steps[index] = step
    return replace(world, steps=tuple(steps))


def _to(world: World, state: RunState) -> World:
    if state is not world.state:
        assert state in TRANSITIONS[world.state], f"{world.state} → {state}"
    return replace(world, state=state)


def _with(world: World, task: str, *indices: int) -> tuple[tuple[str, int], ...]:
    """Add one message for each index. Two equal messages are a duplicate, which is a fault."""
    return tuple(sorted({*world.messages, *((task, i) for i in indices)}))


def _less(world: World, message: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    left = list(world.messages)
    left.remove(message)
    return tuple(left)
