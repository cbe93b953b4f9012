"""Lost messages and lost attempts: resends, and the end of work that no worker will do."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence

from longshore.orchestration.messaging.canvas import STEP, UNDO
from longshore.orchestration.plans.compiled import CompiledPlan, StepId, as_id, index_of
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.store.connection import as_number, milliseconds
from longshore.orchestration.store.hosts import Hosts
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.queue_lengths import oldest_message
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.control.dispatch import away, hosts_of, send_next, silent_limit
from longshore.tasks.external_wait import MakeCanvas

#: Seconds of a time limit that never passes.
_NEVER = 1e9
#: The longest time for which a message counts as under way, ms; see `resend.lua`.
_LONGEST_GRACE = 600_000


class LostWork:
    """Finds the lost messages and attempts of runs, for the sweeper."""

    def __init__(self, store: Store, canvas: MakeCanvas) -> None:
        self.store = store
        self.canvas = canvas
        self._lease = milliseconds(store.settings.lease)
        #: The time of the oldest message of each queue, with the time of the steady clock when it was read.
        self._heads: dict[str, tuple[float, int | None]] = {}

    def expire(self, run_id: str, plan: CompiledPlan, now: int) -> bool:
        """Expire the attempts whose worker has not renewed its lease; return whether there were any."""
        ask_for = self.store.settings.ask_timeout if plan.plan.on_unknown == "ask" else None
        expired = self.store.expired(run_id, now)
        for member in expired:
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
        return bool(expired)

    def give_up(self, run_id: str, plan: CompiledPlan, step_id: StepId, side: str, why: str) -> None:
        """Record the end of a step that no attempt will complete."""
        status = UndoState.UNDO_FAILED if side else StepState.FAILED
        outcome = json.dumps({"error": why}, ensure_ascii=False)
        stops = not side and plan.stops(index_of(step_id))
        recorded = self.store.complete(run_id, step_id, side, "", status, outcome, error=why, stops=stops)
        send_next(self.store, self.canvas, run_id, plan, recorded.next_units)

    def resend(
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
        kinds = (Field.STATUS, Field.NOT_BEFORE, Field.SENT_UNTIL, Field.SENT, Field.RESENT)
        rows = self.store.step_fields(run_id, leaves, [f"{side}{kind}" for kind in kinds])
        queued = self._still_queued(plan, side, rows, hosts, run)
        waited_for = [i for i in leaves if i not in absent.silent]
        again, refused = self.store.resend(run_id, side, waited_for, hosts, limit if timed else _NEVER, queued)
        more, given_up = self.store.resend(run_id, side, list(absent.silent), hosts, soon if timed else _NEVER)
        canvas = self.canvas(run_id, hosts)
        for step_id in [*again, *more]:
            canvas.send_single(task, plan, step_id)
        for step_id in refused:
            step, host = plan.steps[index_of(step_id)], hosts.get(step_id, "")
            queue = step.undo_queue_at(host) if undoing else step.queue_at(host)
            why = f"no worker of the queue {queue} claimed the step within {limit:g} s"
            self.give_up(
                run_id, plan, step_id, side, f"host did not answer: {self._describe(host)}{why}" if host else why
            )
        for step_id in given_up:
            self.give_up(run_id, plan, step_id, side, f"host did not answer: {absent.silent[step_id]}")
        refused += given_up
        if again or more or refused:
            rows = self.store.step_fields(run_id, leaves, [f"{side}{kind}" for kind in kinds])
        due = _next_message([row for i, row in rows.items() if i not in queued], self._lease, run.opened)
        if due is not None:
            self.store.look_at(run_id, due, sooner=True)
        if refused or left_out:
            canvas.send_advance(plan.plan.name)
        return rows.values()

    def _still_queued(
        self,
        plan: CompiledPlan,
        side: str,
        rows: Mapping[StepId, Sequence[str | None]],
        hosts: Mapping[StepId, str],
        run: RunRecord,
    ) -> set[StepId]:
        """The steps whose overdue message still waits in its queue: a message sent earlier is at the head of the queue.

        Without this, a queue that needs more than a lease would get each of its messages again, and be even slower.
        """
        queues: dict[str, list[tuple[StepId, int]]] = {}
        for i, (status, _, until, sent, resent) in rows.items():
            first = as_number(sent or run.opened) or 0
            grace = min(_LONGEST_GRACE, self._lease * 2 ** min(as_number(resent) or 0, 20))
            latest = first if until is None else (as_number(until) or 0) - grace
            if status == StepState.READY and latest + grace <= run.now:
                step, host = plan.steps[index_of(i)], hosts.get(i, "")
                queue = step.undo_queue_at(host) if side else step.queue_at(host)
                queues.setdefault(queue, []).append((i, latest))
        found: set[StepId] = set()
        for queue, overdue in queues.items():
            oldest = self._oldest(queue)
            found |= {i for i, latest in overdue if oldest is not None and oldest <= latest}
        return found

    def _oldest(self, queue: str) -> int | None:
        """The time of the oldest message of a queue, as of the last second: many runs may wait for one queue."""
        now = time.monotonic()
        known = self._heads.get(queue)
        if known is None or known[0] <= now - 1:
            self._heads[queue] = known = (now, oldest_message(self.store, queue))
        return known[1]

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


def _next_message(rows: Collection[Sequence[str | None]], lease: int, opened: int) -> int | None:
    """The time at which the next parked retry is due or the next message counts as lost, ms.

    The first message of a step, sent at the time `opened` by default, is under way for one `lease`.
    """
    times: list[int | None] = []
    for status, due, until, sent, _ in rows:
        if status == StepState.RETRYING and due:
            times.append(as_number(due))
        elif status == StepState.READY and until:
            times.append(as_number(until))
        elif status == StepState.READY and (at := as_number(sent or opened)) is not None:
            times.append(at + lease)
    return min((at for at in times if at is not None), default=None)
