"""The reducer, the coordinator and the scripts under faults, checked by an independent log.

Messages are lost, doubled and late; workers and coordinators die at any point; leases expire; a run is cancelled and
undone at any time. The invariants I1 to I14 hold after each rule. After the last fault, the run
ends and leaves no index entry.
"""

from __future__ import annotations

import os
import sys
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.steps import Step
from longshore.orchestration.runs import report
from longshore.orchestration.states import (
    STEP_BAD,
    STEP_FINAL,
    STEP_GOOD,
    STEP_IN_FLIGHT,
    TERMINAL,
    UNDO_FINAL,
    UNDO_OPEN,
    RunState,
    StepState,
    UndoState,
    may_follow,
)
from longshore.tasks.control import coordinator
from tests.servers import RedisServer
from tests.store.simulated_workers import BACKWARD, FORWARD, CoordinatorDied, Message, QueueCanvas, Work, World
from tests.sweeping import sweep

pytestmark = pytest.mark.store

#: Kinds of steps: their effect on the target, and whether they can be repeated and undone.
KINDS: dict[str, dict[str, Any]] = {
    "full": {"op": "noop.execute"},
    "kept": {"op": "noop.execute", "undo": "none"},
    "once": {"op": "command.shell.execute", "with": {"command": "x"}},
    "once-undone": {
        "op": "command.shell.execute",
        "with": {"command": "x"},
        "undo": {"op": "command.shell.execute", "with": {"command": "y"}},
    },
    "looks": {"op": "command.shell.execute", "with": {"command": "x", "changes": False}},
}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A few steps with any dependencies, with each policy for failures."""
    plan = Plan(
        "p",
        on_failure=draw(st.sampled_from(["undo", "undo", "keep"])),
        on_error=draw(st.sampled_from(["stop", "stop", "continue"])),
        on_undo_failure=draw(st.sampled_from(["hold", "hold", "continue"])),
    )
    if draw(st.integers(0, 3)) == 3:
        plan.timeout = 200.0
    for n in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["full", *KINDS]))
        always = kind != "once-undone" and draw(st.integers(0, 4)) == 4
        after = [f"s{d}" for d in range(n) if draw(st.booleans())]
        on_error = draw(st.sampled_from([None, None, "stop", "continue"]))
        plan.steps[f"s{n}"] = Step.model_validate(
            KINDS[kind] | {"after": after, "always": always, "on_error": on_error}
        )
    return plan


numbers = st.integers(0, 1000)
forward = st.sampled_from(FORWARD)
backward = st.sampled_from(BACKWARD)


class Saga(RuleBasedStateMachine):
    """The state machine of one run with two workers and sweepers."""

    url: ClassVar[str]
    client: ClassVar[redis.Redis]

    @initialize(plan=plans(), undo_timeout=st.sampled_from([1e9, 1e9, 60.0]))
    def start(self, plan: Plan, undo_timeout: float) -> None:
        self.world = World(self.url, plan, self.client, undo_timeout=undo_timeout)
        self.world.request()
        self.ended: RunState | None = None
        self.final: dict[str, str] = {}
        self.versions = 0
        self.states: list[RunState] = []
        self.undos_asked = 0

    # --- messages -----------------------------------------------------------------------------------

    def pick(self, n: int) -> Message:
        return self.world.queue[n % len(self.world.queue)]

    def work(self, n: int) -> Work:
        return self.world.works[n % len(self.world.works)]

    @precondition(lambda self: self.world.queue)
    @rule(n=numbers, doubled=st.booleans(), worker=st.integers(0, 1), asks_twice=st.booleans())
    def deliver(self, n: int, doubled: bool, worker: int, asks_twice: bool) -> None:
        message = self.pick(n)
        if not doubled:
            self.world.queue.remove(message)
        self.world.deliver(message, worker=worker, asks_twice=asks_twice)

    @precondition(lambda self: self.world.queue)
    @rule(n=numbers, how=forward, back=backward)
    def deliver_and_do(self, n: int, how: str, back: str) -> None:
        """Deliver a message and execute the whole attempt, so that runs make progress."""
        message = self.pick(n)
        self.world.queue.remove(message)
        work = self.world.deliver(message)
        if work is not None:
            self.world.finish(work, back if work.side else how)

    @precondition(lambda self: self.world.queue)
    @rule()
    def deliver_all(self) -> None:
        """Deliver every message; every attempt succeeds."""
        for _ in range(len(self.world.queue)):
            work = self.world.deliver(self.world.queue.pop(0))
            if work is not None:
                self.world.finish(work, "undone" if work.side else "changed")

    @precondition(lambda self: self.world.queue)
    @rule(n=numbers)
    def lose_message(self, n: int) -> None:
        self.world.queue.remove(self.pick(n))

    @precondition(lambda self: self.world.queue.sent)
    @rule(n=numbers)
    def deliver_late(self, n: int) -> None:
        """Deliver an earlier message again, which was delivered or lost."""
        self.world.deliver(self.world.queue.sent[n % len(self.world.queue.sent)])

    # --- workers ------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.works)
    @rule(n=numbers, how=forward, back=backward, dies=st.booleans(), twice=st.booleans())
    def next_action(self, n: int, how: str, back: str, dies: bool, twice: bool) -> None:
        work = self.work(n)
        self.world.next_action(work, back if work.side else how, dies=dies, twice=twice)

    @precondition(lambda self: self.world.works)
    @rule(n=numbers)
    def crash(self, n: int) -> None:
        self.world.works.remove(self.work(n))

    @precondition(lambda self: self.world.works)
    @rule(n=numbers)
    def expire_a_lease(self, n: int) -> None:
        """End the lease of an attempt, which may continue later."""
        self.world.expire_lease(self.work(n))

    @rule(worker=st.integers(0, 1))
    def renew(self, worker: int) -> None:
        self.world.renew(worker)

    @rule(seconds=st.sampled_from([4, 11, 31, 90]))
    def time_passes(self, seconds: int) -> None:
        self.world.age(seconds)

    # --- sweepers -------------------------------------------------------------------

    @rule()
    def sweep(self) -> None:
        sweep(self.world.coordinator)

    @rule(call=st.integers(0, 25))
    def sweeper_dies(self, call: int) -> None:
        def die() -> None:
            raise CoordinatorDied

        self.world.age(11)
        self.sweep_with_fault(call, die)

    @rule(sends=st.integers(0, 2))
    def sweeper_dies_while_it_sends(self, sends: int) -> None:
        self.world.age(11)
        self.world.queue.dies_after = sends
        try:
            sweep(self.world.coordinator)
        except CoordinatorDied:
            event("a coordinator died while it sent messages")
        finally:
            self.world.queue.dies_after = None

    @rule(call=st.integers(0, 25), what=st.sampled_from(["sweep", "deliver", "work", "undo"]), n=numbers, how=forward)
    def sweeper_is_interrupted(self, call: int, what: str, n: int, how: str) -> None:
        """Let another process act between two calls of the sweeper."""

        def others() -> None:
            event(f"interrupted by {what}")
            if what == "sweep":
                sweep(self.world.other_coordinator)
            elif what == "undo":
                self.ask("undo", message=False)
            elif what == "deliver" and self.world.queue:
                self.world.deliver(self.pick(n))
            elif self.world.works:
                self.world.finish(self.work(n), how)

        self.world.age(11)
        self.sweep_with_fault(call, others)

    def sweep_with_fault(self, call: int, fault: Any) -> None:
        self.world.coordinator_store.fail_at(call, fault)
        try:
            sweep(self.world.coordinator)
        except CoordinatorDied:
            event("a coordinator died")
        finally:
            self.world.coordinator_store.remove_fault()

    # --- operators ----------------------------------------------------------------------------------

    @rule(keep=st.booleans(), message=st.booleans(), chance=st.integers(0, 3))
    def cancel(self, keep: bool, message: bool, chance: int) -> None:
        if chance == 0:
            self.ask("cancel", message=message, keep=keep)

    @rule(message=st.booleans())
    def undo(self, message: bool) -> None:
        if self.ended is not None or not message:
            self.ask("undo", message=message)

    def ask(self, kind: str, *, message: bool, keep: bool = False) -> None:
        self.world.store.command(self.world.run_id, kind, keep=keep)
        if message:
            self.world.queue.send(Message("longshore.advance"))

    # --- invariants after each move -----------------------------------------------------------------

    @invariant()
    def record_is_consistent(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.sync()
        run, steps = self.world.store.everything(self.world.run_id)
        if not run:
            assert self.world.run_id in self.world.store.waiting(), "I12"
            return
        self.each_event_raises_the_version(run)
        self.counts_are_correct(run, steps)
        self.final_states_stay(run, steps)
        self.index_names_the_run(run)

    def each_event_raises_the_version(self, run: dict[str, str]) -> None:
        events = self.world.events
        assert [int(entry["version"]) for entry in events] == list(range(1, len(events) + 1)), "I2"
        assert int(run["version"]) == len(events) >= self.versions, "I2"
        for entry in events[self.versions :]:
            name = entry["event"]
            state = {"run_created": "pending", "run_started": "running", "run_ended": entry.get("state")}.get(name)
            if state is None and name in {"run_aborting", "run_undoing", "run_finishing"}:
                state = name.removeprefix("run_")
            if state is not None:
                if self.states:
                    assert may_follow(self.states[-1], RunState(state)), f"{self.states} → {state}"
                self.states.append(RunState(state))
        self.versions = len(events)
        assert self.states[-1] == run["state"]

    def counts_are_correct(self, run: dict[str, str], steps: dict[str, str]) -> None:
        side = "u" if run["state"] == "undoing" else ""
        in_flight = [steps.get(f"{side}status:{i}") for i in range(len(self.world.plan))]
        flying = STEP_IN_FLIGHT | {UndoState.UNDOING}
        assert int(run["left"]) == sum(status in flying for status in in_flight), "I10"
        started = [entry for entry in self.world.events if entry["event"] == "step_started"]
        attempts = sum(int(steps.get(f"attempts:{i}", 0)) for i in range(len(self.world.plan)))
        assert attempts == len(started) == sum(not work.side for work in self.world.grants), "I11"
        undone = [entry for entry in self.world.events if entry["event"] == "undo_started"]
        assert len(undone) == sum(bool(work.side) for work in self.world.grants), "I11"
        held = {f"{side}{index}" for side, index in self.world.holders}
        assert set(self.world.stored.leases()) == held, "I3"

    def final_states_stay(self, run: dict[str, str], steps: dict[str, str]) -> None:
        reopened = sum(entry["event"] == "run_undoing" for entry in self.world.events)
        if self.ended is not None and reopened == self.undos_asked:
            assert run["state"] == self.ended, "I1"
        self.ended = RunState(run["state"]) if run["state"] in TERMINAL else None
        self.undos_asked = reopened
        for name, was in self.final.items():
            assert steps.get(name) == was or was in UNDO_OPEN, f"I1: {name} was {was}"
        final = STEP_FINAL | UNDO_FINAL
        self.final = {k: v for k, v in steps.items() if k.partition(":")[0] in {"status", "ustatus"} and v in final}
        if self.ended is not None:
            assert not self.world.stored.leases()
            assert all(steps.get(f"status:{i}") in STEP_FINAL for i in range(len(self.world.plan))), (
                "a step did not end"
            )

    def index_names_the_run(self, run: dict[str, str]) -> None:
        waits = self.world.run_id in self.world.store.waiting()
        live = self.client.zscore(self.world.store.keys.live, self.world.run_id) is not None
        assert live or waits or run["state"] in TERMINAL, "I12: a live run in no index"
        asked = self.world.store.commands(self.world.run_id)
        if asked and asked[-1][0] != run.get("last_command"):
            assert live or waits, "I12: a command of a run in no index"

    # --- the terminal state -------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world") or sys.exc_info()[0] is not None:
            return  # after a failed check, log and record differ
        world = self.world
        if self.versions % 2:
            world.queue.clear()
        sleepers = list(world.works)
        world.settle()
        self.record_is_consistent()
        self.end_is_consistent()
        # Lost attempts continue, and every message is delivered again.
        before = world.stored.dump()
        for work in sleepers:
            world.finish(work, "undone" if work.side else "changed")
        for message in dict.fromkeys(world.queue.sent):
            assert world.deliver(message) is None
        assert world.stored.dump() == before, "I1: an ended run was changed"
        self.end_is_consistent()
        event(f"ended {self.ended}")
        event(f"steps granted: {min(len(world.grants), 12)}")

    def end_is_consistent(self) -> None:
        world = self.world
        run, steps = world.store.everything(world.run_id)
        result = report.build(world.run_id, world.plan, run, steps, world.store.now())
        state = result.state
        assert state in TERMINAL
        assert result.exit_code is not None
        self.end_fits_the_steps(run, steps, state)
        never_began = not any(e["event"] == "run_started" for e in world.events)
        for step in world.plan.steps:
            i, status, undo = step.index, steps[f"status:{step.index}"], steps.get(f"ustatus:{step.index}")
            applied, undone = world.target.count(i, "applied"), world.target.count(i, "undone")
            assert applied <= 1, "the effect was applied twice"
            assert undone <= applied
            assert (i in world.target.present) == (applied > undone)
            stands = i in world.target.present
            if step.always:
                assert undo is None, "an always step was undone"
                assert never_began or int(steps.get(f"attempts:{i}", 0)) >= 1, "an always step did not run"
                continue
            if status == StepState.CHANGED and not step.read_only:
                assert applied == 1
            if undo == UndoState.UNDONE:
                assert not stands, "I8: an undone step has left an effect"
            if state is RunState.UNDONE and stands:
                assert undo == UndoState.NOT_UNDOABLE or step.step.undo == "none", "I8"
            if state is RunState.UNDONE and world.must_be_undone(i):
                assert undo == UndoState.UNDONE, "I8: a step that began was not undone"
            if state is RunState.SUCCEEDED:
                assert undo is None
                assert status in {StepState.CHANGED, StepState.UNCHANGED}, "I7"
                assert stands == (status == StepState.CHANGED and not step.read_only), "I7"
            named = step.name in result.left_over or step.step.undo == "none" or state is RunState.SUCCEEDED
            if stands and status in {StepState.CHANGED, StepState.UNKNOWN}:
                assert named, f"{step.name} has an effect that the report does not name"
            if stands and status in {StepState.FAILED, StepState.CANCELLED}:
                assert named or step.name in result.in_doubt, (
                    f"{step.name} has an effect, and the report does not name the step in doubt"
                )
            if step.name in result.left_over:
                assert status not in {StepState.PENDING, StepState.NOT_RUN, StepState.SKIPPED, StepState.UNCHANGED}
                assert undo != UndoState.UNDONE, f"{step.name} is undone, and left_over names the step"

    def end_fits_the_steps(self, run: dict[str, str], steps: dict[str, str], state: RunState) -> None:
        plan = self.world.plan
        status = {step.index: StepState(steps[f"status:{step.index}"]) for step in plan.steps}
        bad = [i for i in status if status[i] in STEP_BAD]
        good = [i for i in status if status[i] in STEP_GOOD and not plan.steps[i].always]
        given_up = any(steps.get(f"ustatus:{i}") == UndoState.UNDO_FAILED for i in status)
        for i in status:
            if steps.get(f"ustatus:{i}") == UndoState.HELD_BACK:
                below = [d for d in status if i in plan.upstream(d)]
                assert any(steps.get(f"ustatus:{d}") == UndoState.UNDO_FAILED for d in below), (
                    "an undo was held back without a failed undo"
                )
                assert plan.plan.on_undo_failure == "hold"
        cause = run.get("cause")
        if cause is None:
            assert state == ("succeeded" if not bad else "partial" if good else "failed")
            for step in plan.steps:
                lost = any(status[d] in STEP_BAD or steps.get(f"tainted:{d}") for d in step.needs)
                skipped = status[step.index] is StepState.SKIPPED
                assert skipped == (lost and not step.always), "not exactly the dependents of failed steps were skipped"
        elif state is RunState.CANCELLED:
            assert not any(e["event"] == "run_started" for e in self.world.events)
            assert set(status.values()) == {StepState.NOT_RUN}
        elif state is not RunState.FAILED:
            assert state == ("undo_failed" if given_up else "undone")
        elif (
            not run.get("keep")
            and state is RunState.FAILED
            and any(e["event"] == "run_started" for e in self.world.events)
        ):
            assert not any(self.world.must_be_undone(i) for i in status), (
                "the run failed, and an effect with an undo remains"
            )
        if cause == "failure":
            assert any(plan.stops(i) and not plan.steps[i].always for i in bad)


@pytest.fixture(autouse=True)
def machine_server(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_server.flush()
    monkeypatch.setattr(coordinator, "Canvas", QueueCanvas)
    Saga.url = redis_server.url
    Saga.client = redis_server.client()


TestSaga: Any = Saga.TestCase
TestSaga.settings = settings(
    max_examples=int(os.environ.get("LONGSHORE_MACHINE_EXAMPLES", "30")),
    stateful_step_count=40,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
