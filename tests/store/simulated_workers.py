"""Simulated workers on a real record: messages in a list, attempts that can stop at any point, and a target.

The world logs claims and effects itself, so that the tests compare the record with a log that the
scripts have not written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from longshore.orchestration import validate
from longshore.orchestration.messaging.canvas import ADVANCE, CHAIN_LINKS, STEP, UNDO
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.saga import DEPENDENCY_FAILED
from longshore.orchestration.states import STEP_BAD, STEP_GOOD, STEP_IN_FLIGHT, UNDO_FINAL, UNDO_OPEN, StepState
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.records import Grant, Recorded
from longshore.orchestration.store.run_store import Store
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.loaded_runs import Plans
from tests.store.stored_run import StoredRun, settings_for
from tests.sweeping import sweep

#: The number of attempts that the runner makes at a step and at its compensation after temporary errors.
TRIES = {"": 4, "u": 6}
FORWARD = ("changed", "unchanged", "half", "failed", "preflight", "busy", "busy-half", "parked", "stopped")
BACKWARD = ("undone", "undone", "busy", "parked", "failed")
_numbers = itertools.count(1)


class CoordinatorDied(BaseException):
    """The process of a coordinator was killed."""


@dataclass(frozen=True)
class Message:
    task: str
    index: int = -1
    #: The following links of the chain.
    rest: tuple[int, ...] = ()


class MessageQueue(list[Message]):
    """The broker: the messages in the queue, and all sent messages."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Message] = []
        #: The number of messages that the coordinator sends before it dies.
        self.dies_after: int | None = None

    def send(self, message: Message) -> None:
        if self.dies_after is not None:
            if self.dies_after == 0:
                raise CoordinatorDied
            self.dies_after -= 1
        self.append(message)
        self.sent.append(message)


class QueueCanvas:
    """A replacement of `Canvas` that sends the same messages to a `MessageQueue`."""

    def __init__(self, app: Any, run_id: str, hosts: Any = None) -> None:
        self.queue: MessageQueue = app

    def send_advance(self, plan_name: str) -> None:
        self.queue.send(Message(ADVANCE))

    def send_level(self, plan: CompiledPlan, indices: Sequence[int], *, may_chain: bool) -> None:
        if len(indices) > 1 or not may_chain:
            for index in indices:
                self.send_single(STEP, plan, index)
        else:
            first, *rest = plan.chain_from(indices[0], CHAIN_LINKS)
            self.queue.send(Message(STEP, first, tuple(rest)))

    def send_undo(self, plan: CompiledPlan, indices: Sequence[int]) -> None:
        for index in indices:
            self.send_single(UNDO, plan, index)

    def send_single(self, task: str, plan: CompiledPlan, index: int) -> None:
        self.queue.send(Message(task, index))


class InterruptibleStore(Store):
    """The store of a coordinator: at one of the next calls the process dies, or another process acts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._countdown = -1
        self._fault: Callable[[], None] | None = None

    def fail_at(self, call: int, fault: Callable[[], None]) -> None:
        self._countdown, self._fault = call, fault

    def remove_fault(self) -> None:
        self._fault = None

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        if self._fault is not None:
            if self._countdown == 0:
                fault, self._fault = self._fault, None
                fault()
            self._countdown -= 1
        return super().call(function, *args, **kwargs)


@dataclass
class Target:
    """The target of the steps. The receipt beside each effect refuses an attempt with an older fence."""

    present: set[int] = field(default_factory=set)
    receipts: dict[int, int] = field(default_factory=dict)
    #: Real changes only: (index, "applied" or "undone", fence).
    log: list[tuple[int, str, int]] = field(default_factory=list)

    def touch(self, index: int, fence: int) -> bool:
        if fence < self.receipts.get(index, 0):
            return False
        self.receipts[index] = fence
        return True

    def apply(self, index: int, fence: int) -> None:
        if index not in self.present:
            self.present.add(index)
            self.log.append((index, "applied", fence))

    def undo(self, index: int, fence: int) -> None:
        if index in self.present:
            self.present.remove(index)
            self.log.append((index, "undone", fence))

    def count(self, index: int, what: str) -> int:
        return sum(1 for i, did, _ in self.log if (i, did) == (index, what))


@dataclass
class Work:
    """A delivery that a worker executes; the worker may stop after each call."""

    side: str
    index: int
    owner: str
    grant: Grant
    rest: tuple[int, ...]
    journalled: bool = False
    #: The outcome that the worker reports after it has acted, as in FORWARD and BACKWARD.
    ended: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.side, self.index

    @property
    def fence(self) -> int:
        return int(self.grant.fence)


class World:
    """A run with its messages, workers and target."""

    def __init__(self, url: str, plan: Plan, client: Any, **settings: Any) -> None:
        validate(plan)
        self.plan = CompiledPlan(plan)
        # A separate name space, which no sweeper of another world reads.
        own = {"namespace": f"world-{next(_numbers)}", "claim_timeout": 1e9, "undo_timeout": 1e9}
        values = settings_for(url, **own | settings)
        self.store = Store(values, client)
        self.coordinator_store = InterruptibleStore(values, client)
        self.stored = StoredRun(url, store=self.store)
        self.run_id = self.stored.run_id
        self.queue = MessageQueue()
        self.coordinator = self.new_coordinator(self.coordinator_store)
        self.other_coordinator = self.new_coordinator(self.store)
        self.target = Target()
        self.works: list[Work] = []
        #: The owner of each step, by the claims, outcomes and lost leases in the log.
        self.holders: dict[tuple[str, int], str] = {}
        self.grants: list[Work] = []
        self._seen_event = "0-0"
        self.events: list[dict[str, str]] = []
        self._owners = 0

    def new_coordinator(self, store: Store) -> Coordinator:
        return Coordinator(self.queue, store, Plans(store))  # type: ignore[arg-type]

    def request(self) -> None:
        params: dict[str, Any] = {}
        body = {"v": 1, "plan": self.plan.plan.to_dict(), "params": params, "files": {}, "actor": "ann"}
        body["instance_id"] = uuid4().hex
        body["digest"] = self.plan.plan.digest(params, {})
        assert Admission(self.store).submit(self.run_id, body) is None
        self.queue.send(Message(ADVANCE))

    def age(self, seconds: float) -> None:
        """Advance time, with active sweepers."""
        self.stored.age(seconds)
        self.stored.redis.delete(self.store.keys.clock)

    # --- the log ------------------------------------------------------------------------------------

    def sync(self) -> list[dict[str, str]]:
        """Read the events since the last call; an expired lease removes the holder of its step."""
        entries = self.store.read_events(self.run_id, self._seen_event, count=10_000)
        for self._seen_event, fields in entries:
            self.events.append(fields)
            if fields["event"] == "lease_lost":
                key = (fields["undo"], int(fields["step"]))
                assert self.holders.pop(key) == fields["owner"]
        return [fields for _, fields in entries]

    def holds(self, work: Work) -> bool:
        self.sync()
        return self.holders.get(work.key) == work.owner

    # --- messages -----------------------------------------------------------------------------------

    def deliver(self, message: Message, *, worker: int = 0, asks_twice: bool = False) -> Work | None:
        """Hand a message to a worker. Returns its attempt, if the claim is granted."""
        if message.task == ADVANCE:
            self.coordinator.advance(self.run_id)
            return None
        side = "u" if message.task == UNDO else ""
        self._owners += 1
        owner = f"task-{self._owners}@{worker}/x"
        grant = self.store.claim(self.run_id, message.index, side, owner, f"task-{self._owners}")
        if isinstance(grant, str):
            return None
        if asks_twice:
            assert self.store.claim(self.run_id, message.index, side, owner, f"task-{self._owners}") == grant
        work = Work(side, message.index, owner, grant, message.rest)
        self._check_grant(work)
        self.holders[work.key] = owner
        self.grants.append(work)
        self.works.append(work)
        return work

    def _check_grant(self, work: Work) -> None:
        self.sync()
        assert work.key not in self.holders, "I3: two attempts hold one step"
        earlier = [other.fence for other in self.grants if other.index == work.index]
        assert work.fence > max(earlier, default=0), "I3: the fence has not grown"
        records = self.store.step_records(self.run_id, range(len(self.plan)))
        state = self.store.state(self.run_id)
        step = self.plan.steps[work.index]
        if work.side:
            assert state == "undoing"
            for other in self.plan.steps:
                record = records[other.index]
                assert record.status not in STEP_IN_FLIGHT, "I6: a step was undone while another runs"
                if other.level > step.level and self.must_be_undone(other.index):
                    assert record.undo in UNDO_FINAL, "I6: a step was undone before a dependent step"
            if self.plan.plan.on_undo_failure == "hold":
                for other in self.plan.steps:
                    below = work.index in self.plan.upstream(other.index)
                    assert not below or records[other.index].undo not in UNDO_OPEN, (
                        "a step was undone before a dependent step whose undo failed"
                    )
            assert self.must_be_undone(work.index)
            return
        assert state in {"running", "finishing"}, "I5"
        assert step.always or state == "running", "I5"
        if not step.always:
            for d in step.needs:
                good = records[d].status in STEP_GOOD or records[d].status is StepState.SKIPPED
                assert good or self.plan.steps[d].always, "I5: a step began after a failure"
                assert records[d].reason != DEPENDENCY_FAILED, "I5: a step began after a failure"
                assert records[d].status not in STEP_BAD, "I5: a step began after a failure"
        if not step.repeatable:
            lost = [e for e in self.events if e["event"] == "lease_lost" and not e["undo"]]
            assert all(int(e["step"]) != work.index for e in lost), "a step with an unknown outcome was repeated"

    def must_be_undone(self, index: int) -> bool:
        """Report whether, by the log, an attempt has claimed the step and none was without effect."""
        step = self.plan.steps[index]
        if step.always or step.read_only or not step.has_undo:
            return False
        fields = self.store.step_fields(self.run_id, [index], ("status", "no_effect"))[index]
        granted = any(work.index == index and not work.side for work in self.grants)
        return granted and fields[0] != "unchanged" and not fields[1]

    # --- workers ------------------------------------------------------------------------------------

    def next_action(self, work: Work, how: str, *, dies: bool = False, twice: bool = False) -> None:
        """Do the next action of the attempt: journal, act, or report."""
        if not work.journalled:
            held = self.holds(work)
            assert self.store.journal(self.run_id, work.index, work.side, work.grant.fence, "", "{}") == held
            work.journalled = True
            if not held:
                self.works.remove(work)
        elif not work.ended:
            self._act(work, how)
        else:
            self.works.remove(work)
            (self._report_undo if work.side else self._report)(work, dies=dies, twice=twice)

    def finish(self, work: Work, how: str) -> None:
        while work in self.works:
            self.next_action(work, how)

    def _act(self, work: Work, how: str) -> None:
        i, step = work.index, self.plan.steps[work.index]
        ways = BACKWARD if work.side else FORWARD
        work.ended = how if how in ways else ways[0]
        if work.ended == "stopped" and self.store.state(self.run_id) != "aborting":
            work.ended = "changed"
        if work.ended == "preflight" or (step.read_only and not work.side):
            return
        if not self.target.touch(i, work.fence):
            assert not self.holds(work), "I9: the holder of a step was refused by its target"
            work.ended = "failed"
            return
        if work.side:
            if work.ended == "undone":
                self.target.undo(i, work.fence)
        elif work.ended == "unchanged" and i in self.target.present:
            work.ended = "changed"  # the unrecorded effect of an earlier attempt
        elif work.ended in {"changed", "half", "busy-half"}:
            self.target.apply(i, work.fence)

    def _report(self, work: Work, *, dies: bool, twice: bool) -> None:
        step = self.plan.steps[work.index]
        if work.ended in {"busy", "busy-half", "parked"}:
            if work.grant.attempt < TRIES[""] and self._retry(work, dies=dies, twice=twice):
                return
            work.ended = "failed"
        status = {"changed": "changed", "unchanged": "unchanged", "stopped": "cancelled"}.get(work.ended, "failed")
        if step.read_only and status == "changed":
            status = "unchanged"
        more: dict[str, Any] = {"stops": self.plan.stops(work.index)}
        if status in {"changed", "unchanged"}:
            more = {"next_link": work.rest[0] if work.rest else None}
        elif work.ended == "preflight":
            more["no_effect"] = work.grant.attempt == 1
        recorded = self._complete(work, status, twice=twice, **more)
        if dies or not recorded.accepted:
            return
        if recorded.advance:
            self.queue.send(Message(ADVANCE))
        if work.rest and status in {"changed", "unchanged"}:
            self.queue.send(Message(STEP, work.rest[0], work.rest[1:]))

    def _report_undo(self, work: Work, *, dies: bool, twice: bool) -> None:
        if work.ended in {"busy", "parked"}:
            if work.grant.attempt < TRIES["u"] and self._retry(work, dies=dies, twice=twice):
                return
            work.ended = "failed"
        recorded = self._complete(work, "undone" if work.ended == "undone" else "undo_failed", twice=twice)
        if recorded.accepted and recorded.advance and not dies:
            self.queue.send(Message(ADVANCE))

    def _complete(self, work: Work, status: str, *, twice: bool, **more: Any) -> Recorded:
        held = self.holds(work)
        before = self.stored.dump()

        def complete() -> Recorded:
            return self.store.complete(self.run_id, work.index, work.side, work.grant.fence, status, "{}", **more)

        recorded = complete()
        new = self.sync()
        assert recorded.accepted == held, "I4: an outcome of another attempt than the holder was counted"
        if not held:
            assert self.stored.dump() == before, "I14: a lost attempt changed the run"
            return recorded
        assert sum(event["event"] in {"step_ended", "undo_ended"} for event in new) == 1, "I4"
        del self.holders[work.key]
        if twice:
            after = self.stored.dump()
            assert complete().accepted
            assert self.stored.dump() == after, "I4: an outcome was counted twice"
        return recorded

    def _retry(self, work: Work, *, dies: bool, twice: bool) -> bool:
        """Report whether the attempt has ended: recorded as a retry, or superseded."""
        parked = work.ended == "parked"
        delay = 30.0 if parked else 0.0
        held = self.holds(work)
        times = (delay, 0.0 if parked else 10.0)
        always = not work.side and self.plan.steps[work.index].always
        answers = [
            self.store.retry(self.run_id, work.index, work.side, work.grant.fence, *times, "busy", always=always)
            for _ in range(2 if twice else 1)
        ]
        assert len(set(answers)) == 1
        if answers[0] == -1:
            return False
        assert answers[0] == held
        if held:
            del self.holders[work.key]
            if parked:
                self.store.look_at(self.run_id, self.store.now() + round(delay * 1000), sooner=True)
            elif not dies:
                self.queue.send(Message(UNDO if work.side else STEP, work.index, work.rest))
        return True

    def expire_lease(self, work: Work) -> None:
        """End the lease of an attempt; the worker may continue."""
        if self.holds(work):
            self.stored.end_lease(f"{work.side}{work.index}")

    def renew(self, worker: int) -> None:
        mine = [work for work in self.works if f"@{worker}/" in work.owner]
        asked = [(f"{work.side}{work.index}", work.owner.partition("/")[0] + "/") for work in mine]
        self.store.renew(self.run_id, asked)

    def settle(self, rounds: int = 40) -> None:
        """Sweep, deliver and act without faults until the run is terminal."""
        for _ in range(rounds):
            self.age(601)
            sweep(self.coordinator)
            while self.queue:
                work = self.deliver(self.queue.pop(0))
                if work is not None:
                    self.finish(work, "undone" if work.side else "changed")
            if self.is_settled():
                return
        raise AssertionError(f"I13: the run does not end: {self.stored.dump()[:3]}")

    def is_settled(self) -> bool:
        """Report whether no index of the sweeper names the run."""
        return self.store.live_count() == 0
