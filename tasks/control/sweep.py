"""The sweep: advances the runs that are due, and discards entries that cannot be read."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping

from longshore.orchestration.errors import Damaged, WrongType
from longshore.orchestration.installation import integrity
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.settings import Settings
from longshore.orchestration.states import TERMINAL, RunState
from longshore.orchestration.store import audit
from longshore.orchestration.store.indices import BATCH
from longshore.orchestration.store.records import run_record
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.loaded_runs import Newer, NotOurs, UnknownOperation

log = logging.getLogger(__name__)

#: Seconds after which an inbox entry whose client died before writing the request is removed.
_ORPHAN = 60.0
#: The longest pause between two sweeps of a worker, in sweep intervals; it is never longer than an eighth of a lease.
LONGEST_PAUSE = 1.2
#: Seconds after which a sweep reads no more due runs.
_LONGEST_SWEEP = 2.0


def postponement(settings: Settings) -> float:
    """Seconds for which a swept run is not due: with the longest pause of the sweeps, a third of a lease."""
    return settings.lease / 3 - min(LONGEST_PAUSE * settings.sweep_interval, settings.lease / 8)


class Sweep:
    """The sweep of one worker."""

    def __init__(self, coordinator: Coordinator, patience: float | None = None) -> None:
        self.coordinator = coordinator
        settings = coordinator.store.settings
        #: Seconds for which an entry of the inbox is left to its message, and the same while messages wait in the
        #: control queue: the sweep would repeat their work, and delay them.
        self._patience = settings.sweep_interval if patience is None else patience
        self._patience_behind = settings.lease if patience is None else patience
        #: The entries of the inbox as of the last sweep: the score, and the time when it was first seen.
        self._entries: dict[str, tuple[float, float]] = {}
        self.store = coordinator.store
        self.lifecycle = coordinator.lifecycle
        #: Runs with an unreadable request that was recorded as a dead letter.
        self._unreadable: set[str] = set()
        #: Runs in the inbox without a request: the inbox score, and the time when this was first found.
        self._orphans: dict[str, tuple[float, float]] = {}

    def run(self) -> int:
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
            self.coordinator.clock.rest()
            return 0
        self.coordinator.look_at_clock()
        # Begun runs precede new ones. The interval is short enough that a run whose two control workers were killed,
        # one after the other, makes no progress for no longer than a lease.
        end = time.monotonic() + _LONGEST_SWEEP
        swept = 0
        new = self._selected(inbox)
        while True:
            due = self.store.due(postponement(self.store.settings), None if swept else now)
            swept += self._look_at_each(self.coordinator.with_work(due))
            # Requests that are left over are read by the next sweep; a due run was postponed by `due`.
            swept += self._look_at_each([run_id for run_id in new if run_id not in due], end)
            new = []
            if len(due) < BATCH or time.monotonic() > end:
                break
        self.lifecycle.purge_expired()
        return swept

    def _selected(self, inbox: Mapping[str, float]) -> list[str]:
        """The inbox entries to advance now.

        New entries are left out, since their messages are on the way, and so are those recently found without a
        request: a thousand of them would block the requests behind them.
        """
        found, now = [], time.monotonic()
        seen = {run_id: (at, now) for run_id, at in inbox.items()}
        self._entries = {
            run_id: (kept if (kept := self._entries.get(run_id, new))[0] == new[0] else new)
            for run_id, new in seen.items()
        }
        patience = self._patience
        if any(now - since >= patience for _, since in self._entries.values()) and self._control_waits():
            patience = self._patience_behind
        for run_id, (at, since) in self._entries.items():
            known = self._orphans.get(run_id)
            orphan = known is not None and known[0] == at and now - known[1] < _ORPHAN
            if not orphan and now - since >= patience:
                found.append(run_id)
        self._orphans = {run_id: known for run_id, known in self._orphans.items() if run_id in inbox}
        return self.lifecycle.admission.in_order(found)[:BATCH]

    def _look_at_each(self, found: Iterable[str], end: float = math.inf) -> int:
        """Advance runs until the time `end` of the steady clock; return how many."""
        wrong: list[str] = []
        count = 0
        for run_id in found:
            if time.monotonic() > end:
                break
            count += 1
            if not RUN_ID.fullmatch(run_id):
                self._discard_damaged(run_id, "the text is not a run id")
                continue
            try:
                self.coordinator.advance(run_id, recover=True)
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
        return count

    def _control_waits(self) -> bool:
        """Whether messages wait in the control queue."""
        prefix = self.store.settings.broker_prefix()
        return bool(self.store.call(self.store.client.llen, f"{prefix}{CONTROL}"))

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
        request = self.lifecycle.admission.request_of(run_id)
        if request is not None:  # its place would block waiting runs for ever
            self.lifecycle.admission.release(run_id, request)
        # One dead letter, from the index that contains the run.
        if integrity.discard_damaged(self.store, "live", [run_id], why):
            self.store.call(self.store.client.zrem, self.store.keys.inbox, run_id)
        else:
            integrity.discard_damaged(self.store, "inbox", [run_id], why)

    def _leave(self, run_id: str, why: UnknownOperation) -> None:
        """Record why a run with an operation that this worker lacks waits, and carry out its cancellation.

        The run can be cancelled as long as no other worker has begun it.
        """
        found = self.store.look(run_id)
        if not found.fields:
            self.lifecycle.create(run_id, why.loaded, found)
            audit.note_refusal(self.store, str(why), run=run_id, plan=why.loaded.plan.plan.name, actor=why.loaded.actor)
            found = self.store.look(run_id)
        if found.fields.get("state") != RunState.PENDING:
            return
        self.store.hold(run_id, str(why))
        cancels = [(command_id, command) for command_id, command in found.commands if command.get("kind") == "cancel"]
        for command_id, command in cancels[:1]:
            self.store.carry_out(run_id, command_id, command, 0, [])
            self.lifecycle.end(run_id, why.loaded, found.now)

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
