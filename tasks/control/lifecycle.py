"""Admission, readmission, release and purge of runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from longshore.orchestration.errors import Damaged, WrongType
from longshore.orchestration.installation import integrity
from longshore.orchestration.messaging import signing
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.shown_params import shown_params
from longshore.orchestration.states import TERMINAL, RunState
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission, AdmissionRequest
from longshore.orchestration.store.breakers import Breakers, services
from longshore.orchestration.store.indices import SAFETY
from longshore.orchestration.store.records import SCHEMA_VERSION, Ending, RunSnapshot
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import MakeCanvas
from longshore.tasks.loaded_runs import Loaded

log = logging.getLogger(__name__)

#: Seconds after which a run that waits for the runs that it cancels is due again.
_LOOK_AGAIN = 60.0
#: Runs that one purge checks for a place that they no longer need.
_EXAMINED = 50
#: Seconds between two purges, in a whole installation.
_TIDY_EVERY = 60.0
#: Runs that one purge deletes at most.
_FORGOTTEN = 200


class RunLifecycle:
    """The run lifecycle of one installation. Every call is safe to repeat; the sweeper completes interrupted ones."""

    def __init__(self, store: Store, breakers: Breakers, canvas: MakeCanvas) -> None:
        self.store = store
        self.breakers = breakers
        self.canvas = canvas
        self.admission = Admission(store)
        self._cursor = 0

    def create(self, run_id: str, loaded: Loaded, found: RunSnapshot) -> tuple[RunSnapshot, bool]:
        """Create the record of a run, once; return the run, and whether it was admitted too.

        A run without limits is admitted in the same round trip. The entry of the inbox is removed with it: from here on
        the sweep finds the run by its record.
        """
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
        if loaded.params:
            fields["params"] = json.dumps(shown_params(loaded.params), ensure_ascii=False)
        if loaded.parent:
            fields["parent"] = json.dumps(loaded.parent)
        if plan.timeout is not None:
            fields["timeout"] = round(plan.timeout * 1000)
        if plan.on_failure == "keep":
            fields["keep"] = "1"
        noted = audit.entry("start", run=run_id, plan=plan.name, actor=loaded.actor, origin=loaded.origin)
        free = not (loaded.admission.parents or self.admission.limited(loaded.admission))
        admit = self.admission.keys_without_limits(loaded.admission) if free else ()
        created, fields_now = self.store.create(run_id, fields, inbox=found.inbox, audit=noted, admit=admit)
        point("advance.created")
        return replace(found, fields=fields_now, inbox=None), created and free

    def may_start(self, run_id: str, loaded: Loaded, now: int, *, admitted: bool = False) -> bool:
        """Whether a pending run may begin; where not, its record contains the reason.

        `admitted`: the run was admitted just now.
        """
        limit = "" if admitted else self._limit(run_id, loaded.admission)
        if not limit:
            # Only an admitted run asks the breaker: the half-open trial must be able to begin.
            return not self._is_held_by_service(run_id, loaded.plan)
        request = loaded.admission
        if limit == "gone":
            # The run has ended, or its admission entry was deleted by hand: the record decides.
            if self.store.state(run_id) == RunState.PENDING:
                self.admission.readmit_request(run_id, request)
                self.store.look_at(run_id, now)
            return False
        why = self.admission.why_not(request, limit)
        if limit == "key" and request.on_limit == "skip":
            self.store.command(run_id, "cancel", reason=f"not run: {why.removeprefix('the run waits for admission: ')}")
            self.store.look_at(run_id, now)
            return False
        if limit == "key" and request.on_limit == "cancel_running":
            self._cancel_other_runs(run_id, request)
        self.store.hold(run_id, why)
        # A release makes the run due, and so does a purge: admission brings its due time forward.
        again = _LOOK_AGAIN if request.on_limit == "cancel_running" else SAFETY
        self.store.look_at(run_id, now + round(1000 * again))
        return False

    def _limit(self, run_id: str, request: AdmissionRequest) -> str:
        """The limit that a run waits for; '' where the run is admitted."""
        if not request.parents and self.admission.limited(request):
            self._start(self.admission.earlier(run_id))
        limit = self.admission.admit(run_id, request)
        if limit == "gone" and self.admission.remember(run_id, request):
            return self.admission.admit(run_id, request)
        return limit

    def _is_held_by_service(self, run_id: str, plan: CompiledPlan) -> bool:
        down = [service for service in services(plan) if self.breakers.is_open(service)]
        if not down:
            return False
        verdict = self.breakers.ask(down[0], run_id)
        if verdict.allowed and len(down) == 1:
            return False
        # A run that needs two unavailable services proves nothing about either: no half-open trial.
        self.breakers.give_back(down[0], run_id)
        self.store.hold(run_id, verdict.why)
        self.breakers.wait(down[0], run_id)
        self.store.look_at(run_id, max(verdict.until, self.store.now() + 1000))
        return True

    def _cancel_other_runs(self, run_id: str, request: AdmissionRequest) -> None:
        """Cancel the runs that hold the run's concurrency key, each once."""
        for other in self.admission.holders(request):
            note = f"cr:{other}"
            if not self.store.has_mark(run_id, note):
                self.store.command(other, "cancel", reason=f"replaced by run {run_id}")
                self.canvas(other, None).send_advance(self.store.fields(other).get("plan", other))
                self.store.set_mark(run_id, note)

    def admit_waiting(self, released: AdmissionRequest | None = None) -> None:
        """Start the waiting runs that the limits admit after the release of a run, or, without one, at all.

        If a message is lost, the next sweep starts them.
        """
        self._start(
            self.admission.next() if released is None else self.admission.wake(self.admission.queues_of(released))
        )

    def _start(self, admitted: Iterable[tuple[str, AdmissionRequest]]) -> None:
        for run_id, request in admitted:
            self.store.look_at(run_id, self.store.now(), sooner=True)
            self.canvas(run_id, None).send_advance(request.plan)

    def finish(
        self,
        run_id: str,
        request: AdmissionRequest,
        run: RunRecord,
        state: RunState,
        not_run: Sequence[int],
        *,
        last: bool,
    ) -> Ending:
        """End a run and release its place in one script. `last`: nothing else follows the end."""
        held = self.admission.held_keys(request)
        return self.store.finish(run_id, run.state, state, not_run, run.epoch, release=held, last=last)

    def end(self, run_id: str, loaded: Loaded, ended: int) -> None:
        """Remove an ended run from the index of live runs, unless the run was reopened meanwhile."""
        self.release(run_id, loaded.admission, ended)
        self.store.remove_from_live(run_id)
        state = self.store.state(run_id)
        if state and RunState(state) not in TERMINAL:
            self.readmit(run_id, loaded.admission)
            self.store.look_at(run_id, self.store.now())

    def release(self, run_id: str, request: AdmissionRequest, ended: int) -> None:
        """Release the place of an ended run to others, and start its retention."""
        self.store.add_to_ended(run_id, ended)
        self.admission.release(run_id, request)
        self.admit_waiting(request)

    def readmit(self, run_id: str, request: AdmissionRequest) -> None:
        """Give a reopened run its place, whatever the limits, and end its retention."""
        self.store.take_over(run_id)
        self.admission.readmit_request(run_id, request)

    # --- ended runs -------------------------------------------------------------------------------

    def purge_expired(self) -> None:
        """Delete runs whose retention has passed, and release places of deleted runs; at most once in 60 s."""
        if not self.store.may_purge(_TIDY_EVERY):
            return
        integrity.clean(self.store)
        for run_id in self.store.ended_since(self.store.settings.retention, _FORGOTTEN):
            try:
                self.forget(run_id)
            except WrongType:
                why = ", ".join(map(str, integrity.wrong_keys_of(self.store, run_id)))
                integrity.discard_damaged(self.store, "ended", [run_id], f"the run cannot be purged: {why}")
        self._cursor, known = self.admission.known_page(self._cursor, _EXAMINED)
        for run_id, request in known.items():
            if self._is_over(run_id):
                self.admission.release(run_id, request)
            elif self.admission.is_forgotten(run_id, request):
                self.store.look_at(run_id, self.store.now(), sooner=True)
        self.admit_waiting()

    def _is_over(self, run_id: str) -> bool:
        """Whether a run has ended, is deleted, or is damaged: no later event would release its place."""
        try:
            state = self.store.state(run_id)
            return state in TERMINAL if state is not None else self.store.body(run_id) is None
        except (WrongType, Damaged):
            return True

    def _is_there(self, run_id: str) -> bool:
        try:
            return self.store.body(run_id) is not None
        except (WrongType, Damaged):
            return False

    def forget(self, run_id: str) -> bool:
        """Delete an ended run; return whether it is gone. A child is stored for as long as its parent."""
        parent = self.store.parent_of(run_id)
        if parent and self._is_there(parent):
            self.store.add_to_ended(run_id, self.store.now(), again=True)
            return False
        children = self.store.children_of(run_id)
        self._record_request(run_id)
        gone = self.store.forget(run_id)
        if gone:
            log.info("run %s was purged", run_id)
            for child in children:
                self.forget(child)
        return gone

    def _record_request(self, run_id: str) -> None:
        """Record the signed request of an ended run as accepted for as long as a copy of it could start the run again.

        The signature is older than the record of the run.
        """
        if signing.ring(self.store.settings) is None:
            return
        run, now = self.store.fields(run_id), self.store.now()
        created = run.get("created", "")
        may_be_valid = now - (int(created) if created.isdecimal() else now) < 1000 * signing.REMEMBERED
        if run.get("state") in TERMINAL and run.get("instance_id") and may_be_valid:
            accepted = self.store.keys.accepted(run["instance_id"])
            self.store.call(self.store.client.set, accepted, "1", ex=signing.REMEMBERED)
