"""The coordinator of runs: reads the record, asks the reducer, applies the transition, sends the messages.

Any process may call `advance`, at any time, any number of times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from celery import Celery

from longshore.orchestration import saga, transitions
from longshore.orchestration.jobs import schedule
from longshore.orchestration.language.guards import GuardDecision
from longshore.orchestration.messaging.canvas import Canvas
from longshore.orchestration.plans.compiled import CompiledPlan, StepId, index_of
from longshore.orchestration.plans.labels import JOB_LABEL
from longshore.orchestration.runs import report
from longshore.orchestration.states import TERMINAL, RunState, StepState, UndoState
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.clock import Clock
from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.fan_out import UNITS_AT_ONCE
from longshore.orchestration.store.indices import SAFETY
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import SCHEMA_VERSION, Ending, RunSnapshot, run_record
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord, StepRecord
from longshore.tasks.control.commands import Commands
from longshore.tasks.control.dispatch import hosts_of, in_flight, send_more
from longshore.tasks.control.event_forwarder import EventForwarder
from longshore.tasks.control.external_waits import ExternalWaits
from longshore.tasks.control.lifecycle import RunLifecycle
from longshore.tasks.control.lost_work import LostWork
from longshore.tasks.control.receipt_comparison import Comparison
from longshore.tasks.control.step_planner import StepPlanner
from longshore.tasks.control.suspension import unsuspend_if_possible
from longshore.tasks.control.task_events import TaskEvents
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import MakeCanvas
from longshore.tasks.loaded_runs import LOST_WRITES, Loaded, Newer, Plans


class Coordinator:
    """Advances the runs of one installation."""

    def __init__(
        self, app: Celery, store: Store, plans: Plans, canvas: MakeCanvas | None = None, node: str = ""
    ) -> None:
        self.store = store
        self.plans = plans
        self.canvas = canvas or (lambda run_id, hosts: Canvas(app, run_id, hosts))
        self.external_waits = ExternalWaits(store, plans, self.canvas)
        self.forwarder = EventForwarder(store, app=app)
        self.task_events = TaskEvents(app, store, node)
        self.breakers = Breakers(store)
        self.comparison = Comparison(store)
        self.lifecycle = RunLifecycle(store, self.breakers, self.canvas)
        self.commands = Commands(store, self.lifecycle.forget, self.lifecycle.readmit)
        self.lost_work = LostWork(store, self.canvas)
        self.clock = Clock(store)
        #: Whether an expired lease counts now.
        self.may_expire_leases = True

    def advance(self, run_id: str, *, recover: bool = False) -> RunState | None:
        """Advance the run as far as possible now; return its state.

        `recover` also finds lost messages and workers, and applies time limits: the sweeper's part, because the sweeper
        has compared Redis's clock. Raises NotOurs for a run that this worker must not change.

        The record is read again only after a step of this function has changed it: each new read is commented.
        """
        loaded, found, admitted = self._look(run_id)
        mark = found.inbox
        if recover and self._has_jumped(run_id, found):
            found = self.store.look(run_id)  # its times have moved
        # After a time without sweeps, the workers that saw the clock before have one lease to notice a jump.
        timed = recover and self.may_expire_leases and self.clock.agrees(found.now)
        if timed and self.lost_work.expire(run_id, loaded.plan, found.now):
            found = self.store.look(run_id)  # attempts have ended
        run = _record(found, timed)
        if not recover and (found.waits or run.state is RunState.SUSPENDED):
            # The run was not due for long, and may be in progress from here on.
            self.store.look_at(run_id, found.now + round(1000 * self.store.settings.lease / 3), sooner=True)
        lifted, lift_at = unsuspend_if_possible(self.store, self.breakers, run_id, loaded.plan, run, found)
        if lifted:
            found = self.store.look(run_id)  # the run is live again
            run = _record(found, timed)
            timed = recover = True  # its dispatched steps are due now
        if run.state is RunState.PENDING and not self.lifecycle.may_start(run_id, loaded, found.now, admitted=admitted):
            if mark is not None:
                self.store.seen(run_id, mark)
            return run.state
        if run.state is RunState.PENDING:
            point("advance.admitted")
        waits, sends = found.waits, list[int]()
        while True:
            if waits:
                settled = self.external_waits.settle(run_id, loaded, run, waits, run.now, recover=timed)
                sends += settled.due
                if settled.ended:
                    found = self.store.look(run_id)  # external waits have ended
                    run = _record(found, timed)
            before = run.state
            run, rests = self._decide_until_it_waits(run_id, loaded, run, timed=timed, recover=recover)
            if run.state is before or not waits:
                break
            found = self.store.look(run_id)  # external waits may depend on the new state
            run, waits = _record(found, timed), found.waits
        if mark is not None:
            self.store.seen(run_id, mark)
        self.forwarder.tell(run_id, loaded.plan)
        if run.state in TERMINAL:
            self._end(run_id, loaded, found, run.state, rests=rests)
            return run.state
        if waits:
            self.store.look_at(run_id, min([*waits.values(), *sends]), sooner=True)
        if run.deadline is not None and run.state is RunState.RUNNING:
            self.store.look_at(run_id, run.deadline, sooner=True)
        if recover:
            version = self.store.version(run_id)  # before the steps are read
            rows = self.lost_work.resend(run_id, loaded.plan, run, timed=timed)
            due = [*waits.values(), *sends, *filter(None, (run.deadline, run.undo_deadline, lift_at))]
            if timed and run.now:  # an unsuspended run was decided without a time, and is due again soon
                self._postpone(run_id, run, version, rows, due)
        return run.state

    def look_at_clock(self) -> None:
        """Compare Redis's clock, on which the sweeper's decisions depend."""
        self.may_expire_leases = self.clock.look()

    def with_work(self, run_ids: Sequence[str]) -> list[str]:
        """The due runs without those in which each open step runs under a lease: there, a sweep has nothing to do.

        A run that this process has not read before stays, so that each worker verifies its request.
        This check costs a tenth of `advance`, so that one worker can sweep ten times as many runs.
        """
        store = self.store
        now = store.now()
        if not (self.may_expire_leases and self.clock.agrees(now)) or self.forwarder.listens():
            return list(run_ids)
        until = now + round(1000 * store.settings.lease / 3)
        jumps = self.clock.jumps.number
        resting = {
            run_id
            for run_id, found in store.under_lease(run_ids, now, until).items()
            if found.jumps >= jumps
            and self.plans.has_seen(run_id, found.instance_id)
            and not self.plans.regressed(run_id, found.instance_id, found.version)
        }
        return [run_id for run_id in run_ids if run_id not in resting]

    # --- reading ----------------------------------------------------------------------------------

    def _look(self, run_id: str) -> tuple[Loaded, RunSnapshot, bool]:
        """The run, created where necessary and with its commands carried out, and whether it was admitted just now.

        Raises NotOurs for a run that this worker must not change.
        """
        loaded = self.plans.cached(run_id)
        found = self.store.look(run_id, request=loaded is None)
        admitted = False
        if loaded is None:
            loaded = self.plans.read(run_id, found.request, found.fields)
        elif not found.fields or found.fields.get("instance_id", loaded.instance_id) != loaded.instance_id:
            # The run was deleted since its plan was read, and another run may have its id.
            loaded = self.plans.get(run_id, again=True)
        if not found.fields:
            found, admitted = self.lifecycle.create(run_id, loaded, found)
        run_record(found.fields, found.now)  # raises Damaged before anything is changed
        if (as_number(found.fields.get("v", 0)) or 0) > SCHEMA_VERSION:
            raise Newer(f"run {run_id} was started by a newer version", remedy="upgrade this worker")
        instance_id, version = found.fields.get("instance_id", ""), as_number(found.fields.get("version")) or 0
        if known := self.plans.regressed(run_id, instance_id, version):
            why = f"{LOST_WRITES}: version {known} was seen before, and the record has {found.fields.get('version', 0)}"
            self.store.suspend(run_id, "regressed", why, version=known)
            found = self.store.look(run_id)  # suspended
        rested = found.fields.get("state") in TERMINAL
        if self.commands.carry_out(run_id, loaded, found):
            # The commands have changed the run; its entry in the inbox is removed only as it was found before them.
            found = replace(self.store.look(run_id), inbox=found.inbox)
            if rested and found.fields.get("state") not in TERMINAL:
                self.task_events.root_reopened(run_id, loaded.plan.plan.name)
        return loaded, found, admitted

    def _has_jumped(self, run_id: str, found: RunSnapshot) -> bool:
        """Correct the run's times after a jump of Redis's clock; return whether there was anything to correct."""
        jumps = self.clock.jumps
        known = as_number(found.fields.get("jumps")) or 0
        return jumps.number > known and self.store.shift(run_id, jumps.number, jumps.total)

    # --- forward and backward ---------------------------------------------------------------------

    def _decide_until_it_waits(
        self, run_id: str, loaded: Loaded, run: RunRecord, *, timed: bool, recover: bool
    ) -> tuple[RunRecord, bool]:
        """Apply transitions until the run waits or has ended; return its record, and whether the run rests already."""
        plan = loaded.plan
        while True:
            indices = saga.steps_read(plan, run)
            if run.state is RunState.PENDING and not run.epoch:
                records = dict.fromkeys(indices, StepRecord())  # no step has a record yet
            else:
                records = self.store.step_records(run_id, indices, units=saga.wants_units(run))
            transition = saga.decide(plan, run, records, StepPlanner(self.store, loaded, run_id))
            if transition is None:
                return run, False
            point("advance.decided")
            applied = self._apply(run_id, loaded, run, records, transition)
            point("advance.applied")
            if applied:
                self._dispatch(run_id, plan, transition, anew=run.epoch > 0)
            if applied and isinstance(transition, transitions.Finish):
                return replace(run, state=transition.state), applied is Ending.RESTED
            opened = _opened(run, transition) if applied and not recover else None
            if opened is not None and (plan.plan.timeout is None or run.deadline is not None):
                return opened, False
            seen = self.store.look(run_id)  # changed by the transition, or by a concurrent one
            after = _record(seen, timed)
            if not applied and (after.state, after.level, after.undo_level, after.left) == (
                run.state,
                run.level,
                run.undo_level,
                run.left,
            ):
                return after, False  # refused without a change: the run waits for work in progress
            run = after

    def _apply(
        self,
        run_id: str,
        loaded: Loaded,
        run: RunRecord,
        records: dict[int, StepRecord],
        transition: saga.Transition,
    ) -> bool | Ending:
        plan = loaded.plan
        match transition:
            case transitions.OpenLevel(state, level, ready, skipped):
                return self.store.open_level(
                    run_id, run, state, level, ready, skipped, hosts=transition.hosts, tainted=transition.tainted,
                    failed=transition.failed, fanned=transition.fanned, stopped_by=transition.stopped_by,
                )  # fmt: skip
            case transitions.OpenUndo(level, ready, impossible, held_back):
                return self.store.open_undo(run_id, run, level, ready, impossible, held_back)
            case transitions.Abort(cause, error):
                return self.store.abort(run_id, cause, error)
            case transitions.Drain(steps):
                self.store.drain(run_id, ((i, plan.steps[index_of(i)].always) for i in steps))
                return True
            case transitions.Compare(ending):
                return self.comparison.advance(run_id, plan, run, ending=ending)
            case transitions.Unsuspend():
                return self._unsuspend(run_id, plan, run)
            case transitions.GiveUpUndo(steps):
                for i in steps:
                    self.lost_work.give_up(run_id, plan, i, "u", "the undo exceeded its time limit")
                return True
            case transitions.Finish(state, not_run):
                last = not (loaded.parent or plan.plan.labels.get(JOB_LABEL) or self.forwarder.listens())
                return self.lifecycle.finish(run_id, loaded.admission, run, state, not_run, last=last)

    def _unsuspend(self, run_id: str, plan: CompiledPlan, run: RunRecord) -> bool:
        """Unsuspend a suspended run."""
        side, ids = in_flight(self.store, run_id, plan, run)
        hold = self.store.fields(run_id).get("hold", "")
        return self.store.unsuspend(run_id, hold, run.epoch, side, ids)

    def _dispatch(self, run_id: str, plan: CompiledPlan, transition: saga.Transition, *, anew: bool) -> None:
        """Send the messages of the steps that the transition made ready. The sweeper resends lost ones."""
        match transition:
            case transitions.OpenLevel(state, _, ready, _) if transition.stopped_by is None:
                leaves: list[StepId] = [*ready, *self._first_units(run_id, transition.fanned)]
                if leaves:
                    # A step that begins for the first time, for any host, cannot be bound to one yet.
                    bound = transition.hosts or transition.fanned or anew or state is RunState.FINISHING
                    hosts = hosts_of(self.store, run_id, plan, leaves) if bound else {}
                    may_chain = state is RunState.RUNNING and not anew
                    self.canvas(run_id, hosts).send_level(plan, leaves, may_chain=may_chain)
                for step, decision in transition.fanned.items():
                    if len(decision.units or ()) > UNITS_AT_ONCE:
                        send_more(self.store, self.canvas, run_id, plan, step)
            case transitions.OpenUndo(_, undone, _) if undone:
                self.canvas(run_id, hosts_of(self.store, run_id, plan, undone, "u")).send_undo(plan, undone)
            case _:
                return
        point("advance.dispatched")

    def _first_units(self, run_id: str, fanned: Mapping[int, GuardDecision]) -> list[StepId]:
        """The units of just fanned-out steps that are not held back."""
        leaves = self.store.expanded(run_id, tuple(fanned)) if fanned else []
        rows = self.store.step_fields(run_id, leaves, (Field.STATUS,))
        return [i for i, (status,) in rows.items() if status == StepState.READY]

    # --- the end, and times without work --------------------------------------------------------------

    def _end(self, run_id: str, loaded: Loaded, found: RunSnapshot, state: RunState, *, rests: bool) -> None:
        """Perform everything that follows the end of a run; each part may be repeated. `rests`: the run needs none."""
        point("advance.ended")
        if loaded.plan.plan.labels.get(JOB_LABEL):
            self._note_job(run_id, loaded, found.now)
            self.forwarder.tell(run_id, loaded.plan)  # the result may have opened the breaker of the job
        if self.task_events.wanted:
            self.task_events.root_ended(run_id, loaded.plan.plan.name, state, self.store.fields(run_id))
        if rests:
            return
        self.external_waits.advance_parent(run_id, found.fields | {"state": state})
        self.lifecycle.end(run_id, loaded, as_number(found.fields.get("ended")) or found.now)

    def _note_job(self, run_id: str, loaded: Loaded, now: int) -> None:
        """Record the result of a job: three failures in a row hold its schedule."""
        run, steps = self.store.everything(run_id)
        job = report.build(run_id, loaded.plan, run, steps, now).job
        if job is not None and job.result is not None:
            result = "failed" if job.restart == "failed" else job.result
            key = f"{job.name}@{loaded.plan.plan.target}"
            schedule.record_result(self.store, key, run_id, result, int(run["ended"]))

    def _postpone(
        self, run_id: str, run: RunRecord, version: int, rows: Collection[Sequence[str | None]], due: list[int]
    ) -> None:
        """Postpone a run without a message or an attempt in progress until something is due.

        A command, the end of a child or of a task, and an admission make the run due earlier.
        """
        now = run.now
        if run.state is not RunState.SUSPENDED and (run.left <= 0 or not rows):
            return
        for status, not_before, *_ in rows:
            at = as_number(not_before) or 0
            if status in {StepState.RUNNING, UndoState.UNDOING, StepState.READY}:
                return
            if status == StepState.RETRYING:
                if at <= now:
                    return
                due.append(at)
        until = min([*due, now + round(1000 * SAFETY)])
        lease = self.store.settings.lease / 3
        if until > now + 1000 * lease and not self.store.has_leases(run_id):
            self.store.postpone(run_id, until, version, lease)


def _opened(run: RunRecord, transition: saga.Transition) -> RunRecord | None:
    """The record of a run that waits for the steps of the level just opened; None where the level may have ended."""
    if not isinstance(transition, transitions.OpenLevel) or not transition.ready or transition.stopped_by is not None:
        return None
    return replace(run, state=transition.state, level=transition.level, left=len(transition.ready))


def _record(found: RunSnapshot, timed: bool) -> RunRecord:
    """The reducer's view of a run; without `timed`, at time 0, at which no time limit has passed."""
    return run_record(found.fields, found.now if timed else 0)
