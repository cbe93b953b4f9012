"""The coordinator of runs: reads the record, asks the reducer, applies the transition, sends the messages.

Any process may call `advance`, at any time, any number of times.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from celery import Celery

from longshore.orchestration import saga, transitions
from longshore.orchestration.errors import Damaged, WrongType
from longshore.orchestration.installation import integrity
from longshore.orchestration.jobs import schedule
from longshore.orchestration.language.guards import GuardDecision
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.messaging.canvas import STEP, UNDO, Canvas
from longshore.orchestration.plans.compiled import CompiledPlan, StepId, as_id, index_of
from longshore.orchestration.plans.labels import JOB_LABEL
from longshore.orchestration.runs import report
from longshore.orchestration.states import TERMINAL, RunState, StepState, UndoState
from longshore.orchestration.store import audit
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.clock import Clock
from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.hosts import Hosts
from longshore.orchestration.store.indices import BATCH, SAFETY
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.run_store import SCHEMA_VERSION, RunSnapshot, Store, run_record
from longshore.orchestration.transitions import RunRecord, StepRecord
from longshore.tasks.control.commands import Commands
from longshore.tasks.control.dispatch import away, hosts_of, in_flight, send_next, silent_limit
from longshore.tasks.control.event_forwarder import EventForwarder
from longshore.tasks.control.external_waits import ExternalWaits
from longshore.tasks.control.lifecycle import RunLifecycle
from longshore.tasks.control.receipt_comparison import Comparison
from longshore.tasks.control.root_task import RootTask
from longshore.tasks.control.step_planner import StepPlanner
from longshore.tasks.control.suspension import unsuspend_if_possible
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import MakeCanvas
from longshore.tasks.loaded_runs import LOST_WRITES, Loaded, Newer, NotOurs, Plans, UnknownOperation

log = logging.getLogger(__name__)

#: Seconds after which an inbox entry whose client died before writing the request is removed.
_ORPHAN = 60.0
#: Seconds after which a sweep reads no more due runs.
_LONGEST_SWEEP = 2.0
#: Seconds of a time limit that never passes.
_NEVER = 1e9


class Coordinator:
    """Advances and sweeps the runs of one installation."""

    def __init__(
        self, app: Celery, store: Store, plans: Plans, canvas: MakeCanvas | None = None, node: str = ""
    ) -> None:
        self.store = store
        self.plans = plans
        self.canvas = canvas or (lambda run_id, hosts: Canvas(app, run_id, hosts))
        self.external_waits = ExternalWaits(store, plans, self.canvas)
        self.forwarder = EventForwarder(store, app=app)
        self.root = RootTask(app)
        #: The worker of this coordinator.
        self.node = node
        self.breakers = Breakers(store)
        self.comparison = Comparison(store)
        self.lifecycle = RunLifecycle(store, self.breakers, self.canvas)
        self.commands = Commands(store, self.lifecycle.forget, self.lifecycle.readmit)
        self.clock = Clock(store)
        #: Whether an expired lease counts now.
        self.may_expire_leases = True
        #: Runs with an unreadable request that was recorded as a dead letter.
        self._unreadable: set[str] = set()
        #: Runs in the inbox without a request: the inbox score, and the time when this was first found.
        self._orphans: dict[str, tuple[float, float]] = {}

    def advance(self, run_id: str, *, recover: bool = False) -> RunState | None:
        """Advance the run as far as possible now; return its state, None where there is no such run.

        `recover` also finds lost messages and workers, and applies time limits: the sweeper's part, because the sweeper
        has compared Redis's clock.
        """
        loaded, found, mark = self._look(run_id)
        if recover and self._has_jumped(run_id, found):
            found = self.store.look(run_id)
        # After a time without sweeps, the workers that saw the clock before have one lease to notice a jump.
        timed = recover and self.may_expire_leases and self.clock.agrees(found.now)
        if timed:
            self._expire(run_id, loaded.plan, found.now)
            found = self.store.look(run_id)
        run = _record(found, timed)
        if not recover and (found.waits or run.state is RunState.SUSPENDED):
            # The run was not due for long, and may be in progress from here on.
            self.store.look_at(run_id, found.now + round(1000 * self.store.settings.lease / 3), sooner=True)
        lifted, lift_at = unsuspend_if_possible(self.store, self.breakers, run_id, loaded.plan, run, found)
        if lifted:
            found = self.store.look(run_id)
            run = _record(found, timed)
            timed = recover = True  # its dispatched steps are due now
        if run.state is RunState.PENDING and not self.lifecycle.may_start(run_id, loaded, found.now):
            if mark is not None:
                self.store.seen(run_id, mark)
            return run.state
        if run.state is RunState.PENDING:
            point("advance.admitted")
        waits = found.waits
        while True:
            if waits and self.external_waits.settle(run_id, loaded, run, waits, run.now):
                found = self.store.look(run_id)
                run = _record(found, timed)
            before = run.state
            run = self._decide_until_it_waits(run_id, loaded, run, timed=timed)
            if run.state is before or not waits:
                break
            # The state has changed: external waits may depend on it.
            found = self.store.look(run_id)
            run, waits = _record(found, timed), found.waits
        if mark is not None:
            self.store.seen(run_id, mark)
        self.forwarder.tell(run_id, loaded.plan)
        if run.state in TERMINAL:
            self._end(run_id, loaded, found, run.state)
            return run.state
        if waits:
            self.store.look_at(run_id, min(waits.values()), sooner=True)
        if run.deadline is not None and run.state is RunState.RUNNING:
            self.store.look_at(run_id, run.deadline, sooner=True)
        if recover:
            version = self.store.version(run_id)  # before the steps are read
            rows = self._resend(run_id, loaded.plan, run, timed=timed)
            due = [*waits.values(), *filter(None, (run.deadline, run.undo_deadline, lift_at))]
            if timed and run.now:  # an unsuspended run was decided without a time, and is due again soon
                self._postpone(run_id, run, version, rows, due)
        return run.state

    def _end(self, run_id: str, loaded: Loaded, found: RunSnapshot, state: RunState) -> None:
        """Perform everything that follows the end of a run; each part may be repeated."""
        point("advance.ended")
        self._note_job(run_id, loaded, found.now)
        self.root.ended(run_id, loaded.plan.plan.name, state, self.store.fields(run_id), self.node)
        self.external_waits.advance_parent(run_id, found.fields | {"state": state})
        self._rest(run_id, loaded, as_number(found.fields.get("ended")) or found.now)

    def _postpone(
        self, run_id: str, run: RunRecord, version: int, rows: Collection[Sequence[str | None]], due: list[int]
    ) -> None:
        """Postpone a run without a message or an attempt in progress until something is due.

        A command, the end of a child or of a task, and an admission make the run due earlier.
        """
        now = run.now
        if run.state is not RunState.SUSPENDED and (run.left <= 0 or not rows):
            return
        for status, not_before, _ in rows:
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

    def _has_jumped(self, run_id: str, found: RunSnapshot) -> bool:
        """Correct the run's times after a jump of Redis's clock; return whether there was anything to correct."""
        if not found.fields:
            return False
        jumps = self.clock.jumps
        known = as_number(found.fields.get("jumps")) or 0
        return jumps.number > known and self.store.shift(run_id, jumps.number, jumps.total)

    def _look(self, run_id: str) -> tuple[Loaded, RunSnapshot, float | None]:
        """The run, created where necessary and with its commands carried out, and its inbox score.

        Raises NotOurs for a run that this worker must not change.
        """
        loaded = self.plans.get(run_id)
        found = self.store.look(run_id)
        mark = found.inbox
        if not found.fields:
            # The run may have been deleted since its plan was read.
            loaded = self.plans.get(run_id, again=True)
            self._create(run_id, loaded, found.now)
            found = self.store.look(run_id)
        if found.fields.get("instance_id", loaded.instance_id) != loaded.instance_id:
            loaded = self.plans.get(run_id, again=True)
        run_record(found.fields, found.now)  # raises Damaged before anything is changed
        if (as_number(found.fields.get("v", 0)) or 0) > SCHEMA_VERSION:
            raise Newer(f"run {run_id} was begun by a newer version", remedy="upgrade this worker")
        if known := self.plans.regressed(run_id, as_number(found.fields.get("version", 0)) or 0):
            why = f"{LOST_WRITES}: version {known} was seen, and now it is {found.fields.get('version', 0)}"
            self.store.suspend(run_id, "regressed", why, version=known)
            found = self.store.look(run_id)
        rested = found.fields.get("state") in TERMINAL
        if self.commands.carry_out(run_id, loaded, found):
            found = self.store.look(run_id)
            if rested and found.fields.get("state") not in TERMINAL:
                self.root.again(run_id, loaded.plan.plan.name, self.node)
        return loaded, found, mark

    def _note_job(self, run_id: str, loaded: Loaded, now: int) -> None:
        """Record the result of a job: three failures in a row hold its schedule."""
        if not loaded.plan.plan.labels.get(JOB_LABEL):
            return
        run, steps = self.store.everything(run_id)
        job = report.build(run_id, loaded.plan, run, steps, now).job
        if job is not None and job.result is not None:
            result = "failed" if job.restart == "failed" else job.result
            key = f"{job.name}@{loaded.plan.plan.target}"
            schedule.record_result(self.store, key, run_id, result, int(run["ended"]))

    def _rest(self, run_id: str, loaded: Loaded, ended: int) -> None:
        """Remove an ended run from the index of live runs, unless the run was reopened meanwhile."""
        self.lifecycle.release(run_id, loaded.wanted, ended)
        self.store.remove_from_live(run_id)
        state = self.store.state(run_id)
        if state and RunState(state) not in TERMINAL:
            self.lifecycle.readmit(run_id, loaded.wanted)
            self.store.look_at(run_id, self.store.now())

    def sweep(self) -> int:
        """Advance every run that is due or in the inbox; return how many."""
        try:
            return self._sweep()
        except WrongType:
            if not integrity.repair(self.store):
                raise
            return self._sweep()

    def _sweep(self) -> int:
        now, live, inbox = self.store.touch()
        if not live and not inbox:
            # An idle installation is not written to, unless a run's retention has passed.
            if self.store.ended_since(self.store.settings.retention, 1):
                self.lifecycle.purge_expired()
            self.clock.rest()
            return 0
        self.look_at_clock()
        # Begun runs precede new ones. The interval is short enough that a run whose two control workers were killed,
        # one after the other, stands still for no longer than a lease.
        end = time.monotonic() + _LONGEST_SWEEP
        selection_of = 0
        wanted = self._wanted(inbox)
        while True:
            due = self.store.due(self.store.settings.lease / 3, None if selection_of else now)
            found = dict.fromkeys([*due, *wanted])
            wanted = []
            self._look_at_each(found)
            selection_of += len(found)
            if len(due) < BATCH or time.monotonic() > end:
                break
        self.lifecycle.purge_expired()
        return selection_of

    def _wanted(self, inbox: Mapping[str, float]) -> list[str]:
        """The inbox entries to advance now.

        Entries recently found without a request are left out: a thousand of them would block the requests behind them.
        """
        found = []
        for run_id, at in inbox.items():
            known = self._orphans.get(run_id)
            if known is None or known[0] != at or time.monotonic() - known[1] >= _ORPHAN:
                found.append(run_id)
        self._orphans = {run_id: known for run_id, known in self._orphans.items() if run_id in inbox}
        return found[:BATCH]

    def _look_at_each(self, found: Iterable[str]) -> None:
        wrong: list[str] = []
        for run_id in found:
            if not RUN_ID.fullmatch(run_id):
                self._discard_damaged(run_id, "it is no run id")
                continue
            try:
                self.advance(run_id, recover=True)
            except UnknownOperation as error:
                self._leave(run_id, error)
            except Newer as why:
                log.info("%s", why)
                # The sweep has postponed the run: make it due again for a worker that knows its version.
                self.store.look_at(run_id, self.store.now(), sooner=True)
            except NotOurs:
                self._forget_orphan(run_id)
            except Damaged as error:
                self._put_away(run_id, error)
            except WrongType:
                wrong.append(run_id)
            except Exception:  # one damaged run must not block the others
                log.exception("run %s cannot be advanced", run_id)
        if wrong and not integrity.repair(self.store):
            for run_id in wrong:
                if keys := integrity.wrong_keys_of(self.store, run_id):
                    self._discard_damaged(run_id, ", ".join(map(str, keys)))

    def _put_away(self, run_id: str, why: Damaged) -> None:
        """Record a run that cannot be read as a dead letter.

        A run that has begun stays in the index while its record is whole: workers that know its plan continue it.
        """
        fields = self.store.fields(run_id)
        try:
            begun = bool(fields) and run_record(fields, 0).state not in TERMINAL
        except Damaged:
            begun = False
        if not begun:
            self._discard_damaged(run_id, str(why))
        elif run_id not in self._unreadable:
            self._unreadable.add(run_id)
            self.store.dead_letter(self.store.keys.of(run_id).request, run_id, str(why))

    def _discard_damaged(self, run_id: str, why: str) -> None:
        """Remove a damaged run from the indices, until a command for it arrives."""
        wanted = self.lifecycle.admission.wanted(run_id)
        if wanted is not None:  # its place would block waiting runs for ever
            self.lifecycle.admission.release(run_id, wanted)
        # One dead letter, from the index that contains the run.
        if integrity.discard_damaged(self.store, "live", [run_id], why):
            self.store.call(self.store.client.zrem, self.store.keys.inbox, run_id)
        else:
            integrity.discard_damaged(self.store, "inbox", [run_id], why)

    def look_at_clock(self) -> None:
        """Compare Redis's clock, on which the sweeper's decisions depend."""
        self.may_expire_leases = self.clock.look()

    # --- beginning and commands -------------------------------------------------------------------

    def _create(self, run_id: str, loaded: Loaded, now: int) -> None:
        plan = loaded.plan.plan
        fields: dict[str, object] = {
            "v": SCHEMA_VERSION,
            "plan": plan.name,
            "digest": loaded.digest,
            "steps": len(loaded.plan),
            "actor": loaded.actor,
            "instance_id": loaded.instance_id,
            "request": loaded.request,
        }
        if (jumps := self.clock.read_jumps()).number:
            fields |= {"jumps": jumps.number, "jumped": jumps.total}
        if loaded.parent:
            fields["parent"] = json.dumps(loaded.parent)
        if plan.timeout is not None:
            fields["timeout"] = round(plan.timeout * 1000)
        if plan.on_failure == "keep":
            fields["keep"] = "1"
        if self.store.create(run_id, fields, now):
            audit.note(self.store, "start", run=run_id, plan=plan.name, actor=loaded.actor, origin=loaded.origin)
        point("advance.created")

    def _leave(self, run_id: str, why: UnknownOperation) -> None:
        """Record why a run with an operation that this worker lacks waits, and carry out its cancellation.

        The run can be cancelled as long as no other worker has begun it.
        """
        found = self.store.look(run_id)
        if not found.fields:
            self._create(run_id, why.loaded, found.now)
            audit.note_refusal(self.store, str(why), run=run_id, plan=why.loaded.plan.plan.name, actor=why.loaded.actor)
            found = self.store.look(run_id)
        if found.fields.get("state") != RunState.PENDING:
            return
        self.store.hold(run_id, str(why))
        cancels = [(command_id, command) for command_id, command in found.commands if command.get("kind") == "cancel"]
        for command_id, command in cancels[:1]:
            self.store.carry_out(run_id, command_id, command, 0, [])
            self._rest(run_id, why.loaded, found.now)

    def _forget_orphan(self, run_id: str) -> None:
        """Remove an inbox entry without a request: its client died before writing it, and was promised nothing.

        A run that has begun stays in the index: its request may have been replaced by another one, and workers that
        know the run continue it.
        """
        found = self.store.look(run_id)
        if found.fields and found.fields.get("state") not in TERMINAL:
            return
        mark = found.inbox
        if mark is None:
            self.store.remove_from_live(run_id)
            return
        known = self._orphans.get(run_id)
        if known is None or known[0] != mark:
            known = self._orphans[run_id] = (mark, time.monotonic())
        if time.monotonic() - known[1] < _ORPHAN:
            return
        self.store.seen(run_id, mark)
        self.store.remove_from_live(run_id)
        del self._orphans[run_id]

    # --- forward and backward ---------------------------------------------------------------------

    def _decide_until_it_waits(self, run_id: str, loaded: Loaded, run: RunRecord, *, timed: bool) -> RunRecord:
        plan = loaded.plan
        while True:
            records = self.store.step_records(run_id, saga.wanted(plan, run), units=saga.wants_units(run))
            transition = saga.decide(plan, run, records, StepPlanner(self.store, loaded, run_id))
            if transition is None:
                return run
            point("advance.decided")
            applied = self._apply(run_id, plan, run, records, transition)
            point("advance.applied")
            if applied:
                self._dispatch(run_id, plan, transition, anew=run.epoch > 0)
            seen = self.store.look(run_id)
            after = _record(seen, timed)
            if not applied and (after.state, after.level, after.undo_level, after.left) == (
                run.state,
                run.level,
                run.undo_level,
                run.left,
            ):
                return after  # refused without a change: the run waits for work in progress
            run = after

    def _apply(
        self,
        run_id: str,
        plan: CompiledPlan,
        run: RunRecord,
        records: dict[int, StepRecord],
        transition: saga.Transition,
    ) -> bool:
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
                    self._give_up(run_id, plan, i, "u", "the undo ran out of its time")
                return True
            case transitions.Finish(state, not_run):
                return self.store.finish(run_id, run.state, state, not_run, run.epoch)

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

    # --- lost messages and attempts ---------------------------------------------------------------

    def _expire(self, run_id: str, plan: CompiledPlan, now: int) -> None:
        """Expire the attempts whose worker has not renewed its lease."""
        ask_for = self.store.settings.ask_timeout if plan.plan.on_unknown == "ask" else None
        for member in self.store.expired(run_id, now):
            side = "u" if member.startswith("u") else ""
            step_id = as_id(member.removeprefix("u"))
            if index_of(step_id) >= len(plan):
                self.store.drop_lease(run_id, member, "the plan has no such step")
                continue
            step = plan.steps[index_of(step_id)]
            _, following = self.store.expire(
                run_id,
                step_id,
                side,
                # Every undo can be repeated; a forward step only where its operation declares so.
                repeatable=bool(side) or step.repeatable,
                stops=not side and plan.stops(step.index),
                always=not side and step.always,
                ask_for=ask_for,
            )
            send_next(self.store, self.canvas, run_id, plan, following)

    def _give_up(self, run_id: str, plan: CompiledPlan, step_id: StepId, side: str, why: str) -> None:
        """Record the end of a step that no attempt will complete."""
        status = UndoState.UNDO_FAILED if side else StepState.FAILED
        outcome = json.dumps({"error": why}, ensure_ascii=False)
        stops = not side and plan.stops(index_of(step_id))
        recorded = self.store.complete(run_id, step_id, side, "", status, outcome, error=why, stops=stops)
        send_next(self.store, self.canvas, run_id, plan, recorded.next_units)

    def _resend(
        self, run_id: str, plan: CompiledPlan, run: RunRecord, *, timed: bool
    ) -> Collection[Sequence[str | None]]:
        """Resend lost messages and due retries, each singly. Unless `timed`, no step is given up.

        Returns for each part of the batch its status, the earliest time of its next attempt, and the time until which
        its message counts as in flight.
        """
        if run.left <= 0:
            return ()
        undoing = run.state is RunState.UNDOING
        level = run.undo_level if undoing else run.level
        if level is None or not 0 <= level < len(plan.levels) or run.state is RunState.ABORTING:
            return ()
        side, task = ("u", UNDO) if undoing else ("", STEP)
        # A suspension does not hold back an always step.
        held = run.state is RunState.SUSPENDED
        members = [i for i in plan.levels[level] if not held or plan.steps[i].always]
        if not members or (held and run.was is not RunState.RUNNING):
            return ()
        leaves = self.store.expanded(run_id, members)
        hosts = hosts_of(self.store, run_id, plan, leaves, side)
        absent = away(self.store, plan, leaves, hosts, side)
        left_out = self._leave_out(run_id, plan, absent.drained)
        limit, soon = self.store.settings.claim_timeout, silent_limit(self.store.settings)
        waited_for = [i for i in leaves if i not in absent.silent]
        again, refused = self.store.resend(run_id, side, waited_for, hosts, limit if timed else _NEVER)
        more, given_up = self.store.resend(run_id, side, list(absent.silent), hosts, soon if timed else _NEVER)
        canvas = self.canvas(run_id, hosts)
        for step_id in [*again, *more]:
            canvas.send_single(task, plan, step_id)
        for step_id in refused:
            step, host = plan.steps[index_of(step_id)], hosts.get(step_id, "")
            queue = step.undo_queue_at(host) if undoing else step.queue_at(host)
            why = f"no worker of the queue {queue} took it within {limit:g} s"
            self._give_up(
                run_id, plan, step_id, side, f"host did not answer: {self._describe(host)}{why}" if host else why
            )
        for step_id in given_up:
            self._give_up(run_id, plan, step_id, side, f"host did not answer: {absent.silent[step_id]}")
        refused += given_up
        kinds = (Field.STATUS, Field.NOT_BEFORE, Field.SENT_UNTIL)
        rows = self.store.step_fields(run_id, leaves, [f"{side}{kind}" for kind in kinds]).values()
        due = _next_message(rows)
        if due is not None:
            self.store.look_at(run_id, due, sooner=True)
        if refused or left_out:
            canvas.send_advance(plan.plan.name)
        return rows

    def _leave_out(self, run_id: str, plan: CompiledPlan, drained: Mapping[StepId, str]) -> bool:
        """Skip the parts without an attempt whose host was drained meanwhile; return whether there are any."""
        done = False
        rows = self.store.step_fields(run_id, list(drained), (Field.STATUS, Field.ATTEMPTS))
        for i, (status, attempts) in rows.items():
            if status == StepState.READY and not attempts:
                recorded = self.store.complete(
                    run_id, i, "", "", StepState.SKIPPED, "{}", error=drained[i], no_effect=True
                )
                send_next(self.store, self.canvas, run_id, plan, recorded.next_units)
                done = True
        return done

    def _describe(self, host: str) -> str:
        """The reason why a host claims no work, as the beginning of an error message."""
        found = Hosts(self.store).find(host)
        why = found.why_not() if found is not None else ""
        return f"{why}; " if why else ""


def _next_message(rows: Collection[Sequence[str | None]]) -> int | None:
    """The time at which the next parked retry is due or the next message counts as lost, ms."""
    times = [as_number(due) for status, due, _ in rows if status == StepState.RETRYING and due]
    times += [as_number(until) for status, _, until in rows if status == StepState.READY and until]
    return min((at for at in times if at is not None), default=None)


def _record(found: RunSnapshot, timed: bool) -> RunRecord:
    """The reducer's view of a run; without `timed`, at time 0, at which no time limit has passed."""
    return run_record(found.fields, found.now if timed else 0)
