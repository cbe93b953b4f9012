"""One attempt: claim → render → journal → act → record, forward or backward.

Nothing is done before it is written down; nothing counts that is not recorded under the attempt's
own fence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from billiard.process import current_process
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

from longshore.orchestration import report, templates
from longshore.orchestration.breakers import Breakers, Verdict
from longshore.orchestration.checks import plain
from longshore.orchestration.compiled import CompiledPlan, CompiledStep, StepId, index_of, unit_of
from longshore.orchestration.context import HostFacts
from longshore.orchestration.durations import format_duration
from longshore.orchestration.errors import (
    Blocked,
    Delayed,
    LongshoreError,
    OperationError,
    Preflight,
    StepCancelled,
    StepTimeout,
    StoreUnavailable,
    Transient,
    Unsuccessful,
)
from longshore.orchestration.keys import Field
from longshore.orchestration.operations import Operation, Params, Retry, find
from longshore.orchestration.operations.base import service_of
from longshore.orchestration.plan import UndoSpec
from longshore.orchestration.report import StepReport
from longshore.orchestration.settings import MAX_DATA_BYTES, get_settings
from longshore.orchestration.states import STEP_GOOD, RunState, StepState, UndoState
from longshore.orchestration.store import Grant, Recorded, Store
from longshore.tasks.crash import point
from longshore.tasks.gate import tolerated
from longshore.tasks.operation import Context, Implementation, Outcome, implementation
from longshore.tasks.plans import LOST_WRITES, Loaded
from longshore.tasks.receipts import Ledger, Overtaken, Receipt
from longshore.tasks.scope import scope
from longshore.tasks.waiting import MakeCanvas, Parking, Place, Waiting

log = logging.getLogger(__name__)

#: A shorter delay is a Celery retry with a countdown; a longer one is parked in Redis (SEMANTICS 14).
LONGEST_COUNTDOWN = 2.0
#: An undo is tried longer than what it takes back.
UNDO_RETRY = Retry(attempts=6, initial=1.0, maximum=30.0)
#: Seconds between two looks at whether the run is being ended.
_STOP_POLL = 0.5
#: Seconds that an attempt waits for one before it to let go of its target.
_GHOST_PATIENCE = 30.0
#: Seconds that an outcome is held while Redis is away.
_RECORD_PATIENCE = 900.0


class Refused(Exception):
    """The claim was refused."""


class Reborn(Refused):
    """The run that this attempt is of was forgotten, and there is another one of its id."""


class AttemptFailed(Exception):
    """The step's final failure, recorded; raised so that its Celery task is a failed one."""


class TryAgain(Exception):
    """The attempt failed in a way that can pass. `delay` seconds; parked ones are sent by the sweeper."""

    def __init__(self, delay: float, *, parked: bool, error: str) -> None:
        super().__init__(error)
        self.delay = delay
        self.parked = parked
        self.error = error


class IsParked(Exception):
    """The step waits for something else than a worker: the delivery is done, its outcome comes later."""


def hostname(node: str = "") -> str:
    """The host that a step ran on, as the report names it: as it was set, else as the worker's node name says."""
    return get_settings().host or node.partition("@")[2] or socket.gethostname()


@dataclass
class Attempt:
    """What is known of one delivery of one step, or of one unit of it."""

    store: Store
    loaded: Loaded
    run_id: str
    step_id: StepId
    owner: str
    task_id: str
    #: For what an operation sends that is parked.
    canvas: MakeCanvas
    host: str = ""
    _side: str = ""
    #: The link that follows it in its chain, if any.
    next_link: int | None = None

    @property
    def plan(self) -> CompiledPlan:
        return self.loaded.plan

    @property
    def index(self) -> int:
        return index_of(self.step_id)

    @property
    def step(self) -> CompiledStep:
        return self.plan.steps[self.index]

    def _doing(self, operation: str) -> Implementation[Any]:
        """How an operation is carried out."""
        return implementation(operation)

    # --- forward ------------------------------------------------------------------------------

    def forward(self) -> Recorded:
        """Do the step. Raises Refused, TryAgain, AttemptFailed."""
        self._wait_for_service("")
        grant = self._claim("")
        point("step.claimed")
        began = time.monotonic()
        try:
            outcome = self._act(grant)
        except StepTimeout as error:
            return self._failed(grant, self._too_long(error.message, error.data), began)
        except SoftTimeLimitExceeded:
            return self._failed(grant, self._too_long("ran out of its time", {}), began)
        except OperationError as error:
            return self._failed(grant, error, began)
        except (Refused, IsParked):
            raise
        except Exception as error:  # an operation's own mistake must not lose the step
            log.exception("step %s of run %s", self.step.name, self.run_id)
            return self._failed(grant, OperationError(f"{type(error).__name__}: {error}"), began)
        point("step.acted")
        status = StepState.CHANGED if outcome.changed and not self.step.read_only else StepState.UNCHANGED
        body: dict[str, Any] = {"host": self.host, "s": round(time.monotonic() - began, 4)}
        # The last unit to end, whichever it is, ends the step; and too many of the others may have failed.
        stops = self.plan.stops(self.index)
        recorded = self._record("", grant, status, body, bulk_of(outcome), next_link=self.next_link, stops=stops)
        point("step.recorded")
        self._if_stale(recorded)
        self._note_version(grant.version + 1)
        self._it_answers(grant)
        return recorded

    def _act(self, grant: Grant) -> Outcome:
        context = self._context(grant, self._step_timeout())
        self._is_newest(grant)
        with self._receipt(grant, context) as (receipt, found):
            if found is not None:
                return Outcome(**found)
            outcome = self._act_on(grant, context)
            if receipt is not None and not outcome.hosts:
                receipt.done({"changed": outcome.changed, "data": outcome.data})
            return outcome

    def _act_on(self, grant: Grant, context: Context) -> Outcome:
        done: Implementation[Any] = self._doing(self.step.operation.name)
        params, rendered = self._params(grant)
        before = json.loads(grant.before) if grant.before else None
        if before is None:
            before = {} if self.step.read_only else done.before(context, params)
            if rendered or before or self._keeps_journal(done):
                journalled = self.store.journal(self.run_id, self.step_id, "", grant.fence, rendered, _json(before))
                if not journalled:
                    raise Refused("the step is another attempt's now")
        point("step.journalled")
        if isinstance(done, Waiting):
            self._park(grant, "", done.park(self._place(grant, ""), params))
        outcome = done.act(context, params, before)
        size = len(bulk_of(outcome))
        if size > MAX_DATA_BYTES:
            raise OperationError(f"its result of {size} bytes is larger than the {MAX_DATA_BYTES} that a step may have")
        self._check_hosts(outcome)
        return outcome

    def _check_hosts(self, outcome: Outcome) -> None:
        """A step on several hosts fails when more of them failed than is tolerated."""
        bad = [record for record in (host.as_record() for host in outcome.hosts) if record["status"] == "failed"]
        if len(bad) > tolerated(self.step.step.tolerate, len(outcome.hosts)):
            text = (
                f"{len(bad)} of {len(outcome.hosts)} hosts failed; the first: {bad[0]['host']}: {bad[0].get('error')}"
            )
            raise _HostsFailed(text, outcome)

    def _place(self, grant: Grant, side: str) -> Place:
        return Place(
            store=self.store,
            canvas=self.canvas,
            loaded=self.loaded,
            run_id=self.run_id,
            step_id=self.step_id,
            side=side,
            attempt=grant.attempt,
            fence=grant.fence,
            timeout=self.step.step.timeout,
            epoch=grant.epoch,
        )

    def _park(self, grant: Grant, side: str, parking: Parking) -> None:
        """Let go of the step; raises IsParked."""
        info = _json(parking.info | {"what": parking.what})
        if not self.store.park(self.run_id, self.step_id, side, grant.fence, parking.seconds, info, parking.what):
            raise Refused("the step is another attempt's now")
        point("step.parked")
        raise IsParked(parking.what)

    def _keeps_journal(self, done: Implementation[Any]) -> bool:
        """An operation that reads nothing before it acts leaves no trace of having begun."""
        own = getattr(done, "keeps_journal", type(done).before is not Implementation.before)
        return bool(own) and not self.step.read_only

    def _params(self, grant: Grant) -> tuple[Params, str]:
        """The parameters as rendered at the first claim, and their JSON where it is to be journalled."""
        raw = self.step.step.with_
        model = self.step.operation.params
        if grant.rendered:
            return validate_params(model, json.loads(grant.rendered)), ""
        templated = self.step.operation.templated(raw)
        if not templates.has_template(templated):
            return validate_params(model, raw), ""
        rendered = raw | render_params(templated, self._scope(templated, grant))
        return validate_params(model, rendered), _json(rendered)

    def _scope(self, raw: Any, grant: Grant) -> dict[str, Any]:
        """What templates may look at; only the steps that they name are read."""
        found = scope(self.store, self.loaded, self.run_id, raw, self.host)
        return found | ({"item": json.loads(grant.item)} if grant.item else {})

    def _too_long(self, message: str, data: dict[str, Any]) -> StepTimeout:
        return StepTimeout(f"{message} ({format_duration(self._step_timeout())})", data=data)

    def _step_timeout(self) -> float:
        return self.step.step.timeout or self.store.settings.step_timeout

    def _failed(self, grant: Grant, error: OperationError, began: float) -> Recorded:
        """Try again where that can help, else record the failure."""
        self._ask_again(grant, "", error)
        policy = self.plan.retry_policy(self.index)
        explicit = self.step.step.retry is not None or self.plan.plan.retry is not None
        passes = isinstance(error, Transient | Blocked) or (explicit and isinstance(error, Unsuccessful))
        cancelled = isinstance(error, StepCancelled)
        # Asked after in vain, or until the run was ended: it may have happened.
        unknown = isinstance(error, Delayed)
        if passes and grant.tries < policy.attempts:
            self._again(grant, "", policy, error)
        body: dict[str, Any] = {
            "error": str(error),
            "host": self.host,
            "s": round(time.monotonic() - began, 4),
        }
        bulk = _json({"data": error.data}) if error.data else ""
        if isinstance(error, _HostsFailed):
            body["changed"] = error.outcome.changed
            bulk = bulk_of(error.outcome)
        if unknown and self.plan.plan.on_unknown == "ask":
            self._ask_a_person(grant, str(error))
        recorded = self._record(
            "",
            grant,
            StepState.CANCELLED if cancelled else StepState.UNKNOWN if unknown else StepState.FAILED,
            body,
            bulk,
            # A later attempt cannot speak for the ones before it.
            no_effect=isinstance(error, Preflight | Blocked) and grant.attempt - grant.blocked == 1,
            stops=self.plan.stops(self.index),
        )
        point("step.recorded")
        self._if_stale(recorded)
        raise _Ended(recorded, str(error))

    # --- backward -----------------------------------------------------------------------------

    def backward(self) -> Recorded:
        """Take the step back. Raises Refused, TryAgain, AttemptFailed."""
        self._side = "u"
        self._wait_for_service("u")
        grant = self._claim("u")
        point("undo.claimed")
        began = time.monotonic()
        try:
            self._undo(grant)
        except OperationError as error:
            self._ask_again(grant, "u", error)
            if isinstance(error, Transient) and grant.tries < UNDO_RETRY.attempts:
                self._again(grant, "u", UNDO_RETRY, error)
            return self._end_undo(grant, UndoState.UNDO_FAILED, began, str(error))
        except SoftTimeLimitExceeded:
            return self._end_undo(grant, UndoState.UNDO_FAILED, began, "ran out of its time")
        except (Refused, IsParked):
            raise
        except Exception as error:  # see forward
            log.exception("undo of step %s of run %s", self.step.name, self.run_id)
            return self._end_undo(grant, UndoState.UNDO_FAILED, began, f"{type(error).__name__}: {error}")
        point("undo.acted")
        return self._end_undo(grant, UndoState.UNDONE, began, "")

    def _undo(self, grant: Grant) -> None:
        """Take the step back, if there is something to take back."""
        context = self._context(grant, self._step_timeout())
        with self._receipt(grant, context):
            self._undo_by(grant, context)

    def _undo_by(self, grant: Grant, context: Context) -> None:
        step = self.step
        status, data, info = self._left_behind()
        done = self._doing(step.operation.name)
        if not grant.before and self._keeps_journal(done):
            return  # its journal comes before its act: it never began
        before = json.loads(grant.before) if grant.before else {}
        if isinstance(step.step.undo, UndoSpec):
            self._own_undo(grant, context, step.step.undo, before, data)
            return
        params, _ = self._params(_with_rendered(grant, grant.step_rendered))
        if isinstance(done, Waiting):
            parking = done.park_undo(self._place(grant, "u"), params, info)
            if parking is not None:
                self._park(grant, "u", parking)
            return
        done.undo(context, params, before, data if status in STEP_GOOD else None)

    def _left_behind(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """How the step ended, the data that it recorded, and what it was parked for."""
        fields = self.store.steps_of(self.run_id, [self.step_id])
        outcome = json.loads(fields.get(f"{Field.OUTCOME}:{self.step_id}") or "{}")
        outcome |= json.loads(fields.get(f"bulk:{self.step_id}") or "{}")
        data = outcome.get("data") or {}
        info = json.loads(fields.get(f"{Field.PARKED}:{self.step_id}") or "{}")
        return fields.get(f"{Field.STATUS}:{self.step_id}", ""), data, info

    def _own_undo(
        self, grant: Grant, context: Context, undo: UndoSpec, before: dict[str, Any], data: dict[str, Any]
    ) -> None:
        """The undo that the plan gives: an operation of its own, rendered with what the step left."""
        operation = find(undo.op)
        if grant.rendered:
            rendered = json.loads(grant.rendered)
        else:
            templated = operation.templated(undo.with_)
            known = self._scope(templated, grant) | {"data": data, "before": before}
            rendered = undo.with_ | render_params(templated, known)
        params = validate_params(operation.params, rendered)
        context.step = f"{self.step.name}@undo"
        done = self._doing(operation.name)
        own_before = done.before(context, params)
        if not self.store.journal(self.run_id, self.step_id, "u", grant.fence, _json(rendered), ""):
            raise Refused("the undo is another attempt's now")
        if isinstance(done, Waiting):
            self._park(grant, "u", done.park(self._place(grant, "u"), params))
        done.act(context, params, own_before)

    def _end_undo(self, grant: Grant, status: UndoState, began: float, error: str) -> Recorded:
        body: dict[str, Any] = {"s": round(time.monotonic() - began, 4)}
        if error:
            body["error"] = error
        recorded = self._record("u", grant, status, body)
        point("undo.recorded")
        self._if_stale(recorded)
        if error:
            raise _Ended(recorded, error)
        self._it_answers(grant)
        return recorded

    # --- at the target ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _receipt(self, grant: Grant, context: Context) -> Iterator[tuple[Receipt | None, dict[str, Any] | None]]:
        """Hold the step's receipt while it is done or taken back; Refused where a later attempt has been here."""
        if not self.step.fenced:
            yield None, None
            return
        receipt = self._ledger.receipt(
            self.run_id,
            self.loaded.born,
            context.part,
            context.fence,
            self._side,
            epoch=grant.epoch,
            alone=_prefork(),
        )
        context.began = receipt.began
        with contextlib.ExitStack() as stack:
            try:
                found = stack.enter_context(receipt.held(context.remaining(_GHOST_PATIENCE), context.check))
            except Overtaken:
                raise Refused("a later attempt has been here") from None
            except OSError as error:
                _no_receipts(error)
                yield None, None
                return
            if receipt.earlier > grant.previous:
                # Each attempt is recorded before it leaves a receipt.
                self._hold_regressed(grant, 0, "an attempt has been here that its record knows nothing of")
            yield receipt, found

    @cached_property
    def _ledger(self) -> Ledger:
        settings = self.store.settings
        return Ledger(settings.state_dir, settings.namespace)

    def _is_newest(self, grant: Grant) -> None:
        """A run whose record is older than what was seen here has lost what Redis had acknowledged: it is held, and
        Refused is raised. Nothing was done.
        """
        if not self.step.fenced:
            return
        with contextlib.suppress(OSError):
            known = self._ledger.version(self.run_id, self.loaded.born)
            # What runs beside it may have noted a later one since it was claimed.
            if grant.version < known and self.store.version(self.run_id) < known:
                self._hold_regressed(grant, known, f"version {known} was seen, and now it is {grant.version}")
        self._note_version(grant.version)

    def _hold_regressed(self, grant: Grant, known: int, what: str) -> None:
        """Nothing was done yet; somebody has to look before anything is."""
        why = f"{LOST_WRITES}: step {self.step.name}: {what}"
        # Held first: each transition brings its version nearer to the one that was lost.
        self.store.suspend(self.run_id, "regressed", why, version=known)
        self.store.retry(self.run_id, self.step_id, self._side, grant.fence, 0.0, 0.0, why, counts=False)
        raise Refused(why)

    def _note_version(self, version: int) -> None:
        if self.step.fenced:
            with contextlib.suppress(OSError):
                self._ledger.seen(self.run_id, self.loaded.born, version)

    # --- both -----------------------------------------------------------------------------------

    def _claim(self, side: str) -> Grant:
        grant = self.store.claim(
            self.run_id, self.step_id, side, self.owner, self.task_id,
            always=not side and self.step.always, born=self.loaded.born,
        )  # fmt: skip
        if grant == "another run":
            raise Reborn(grant)
        if isinstance(grant, str):
            raise Refused(grant)
        return grant

    def _again(self, grant: Grant, side: str, policy: Retry, error: OperationError) -> None:
        """Note the retry and raise TryAgain; return where the run is ending, so that it is a failure."""
        delay = policy.delay(grant.tries, random.random())  # noqa: S311 - jitter
        settings = self.store.settings
        parked = delay > LONGEST_COUNTDOWN
        grace = 0.0 if parked else settings.lease
        text, always = str(error)[:500], self.step.always
        noted = self.store.retry(self.run_id, self.step_id, side, grant.fence, delay, grace, text, always=always)
        if noted == 0:
            raise Refused("the step is another attempt's now")
        if noted == 1:
            if parked:
                self.store.look_at(self.run_id, self.store.now() + round(delay * 1000), sooner=True)
            raise TryAgain(delay, parked=parked, error=str(error))

    # --- services that are down, and outcomes that are not known yet ------------------------------

    def _service(self, grant: Grant | None = None) -> str:
        found = grant.service if grant is not None else ""
        return found or service_of(self._operation(), self.host)

    def _operation(self) -> Operation:
        """What is carried out: backward, it may be the plan's own."""
        undo = self.step.step.undo
        return find(undo.op) if self._side and isinstance(undo, UndoSpec) else self.step.operation

    def _wait_for_service(self, side: str) -> None:
        """Leave the step where it is while the service that it needs is down; raises Refused."""
        service = self._service()
        if not service or (self.step.always and not side):
            return
        verdict = self._breakers.ask(service, self.run_id)
        if not verdict.allowed:
            self._suspend(service, verdict)
            raise Refused(verdict.why)

    def _suspend(self, service: str, verdict: Verdict) -> None:
        self.store.suspend(self.run_id, "breaker", verdict.why, service=service)
        self._breakers.wait(service, self.run_id)
        self.store.look_at(self.run_id, verdict.until, sooner=True)

    def _ask_again(self, grant: Grant, side: str, error: OperationError) -> None:
        """What is blocked or delayed comes again, and uses up no attempt: raises TryAgain. Returns for any other
        error, and where the run is ending.
        """
        if isinstance(error, Delayed):
            self._it_answers(grant)
            slow = self.store.settings.slow_retry * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            delay = slow if error.after is None else max(0.0, error.after)
            self._once_more(grant, side, delay, error, ask_for=self._step_timeout())
        service = self._service(grant)
        if isinstance(error, Blocked) and not (self.step.always and not side):
            service = error.service or service or self._operation().name
            verdict = self._breakers.trip(service, str(error), self.run_id)
            delay = max(0, verdict.until - self.store.now()) / 1000
            try:
                self._once_more(grant, side, delay, error, service=service)
            except TryAgain:
                point("step.blocked")
                self._suspend(service, verdict)
                raise

    def _once_more(
        self,
        grant: Grant,
        side: str,
        delay: float,
        error: OperationError,
        *,
        ask_for: float | None = None,
        service: str = "",
    ) -> None:
        """Park the step, its attempt not counted, and raise TryAgain; return where the run is ending, and where it
        was asked after for too long.
        """
        noted = self.store.retry(
            self.run_id, self.step_id, side, grant.fence, delay, 0.0, str(error)[:500],
            always=self.step.always, counts=False, ask_for=ask_for, service=service,
        )  # fmt: skip
        if noted == 0:
            raise Refused("the step is another attempt's now")
        if noted == 1:
            self.store.look_at(self.run_id, self.store.now() + round(delay * 1000), sooner=True)
            raise TryAgain(delay, parked=True, error=str(error))

    def _ask_a_person(self, grant: Grant, why: str) -> None:
        """Have the step wait for a word on what became of it; returns where the run is ending."""
        if self.step.always or self.store.state(self.run_id) != RunState.RUNNING:
            return
        settings, text = self.store.settings, "a word on whether it happened"
        info = _json({"unknown": why, "what": text})
        if not self.store.park(self.run_id, self.step_id, "", grant.fence, settings.ask_timeout, info, text):
            raise Refused("the step is another attempt's now")
        self.store.suspend(self.run_id, "unknown", why)
        raise IsParked(text)

    def _it_answers(self, grant: Grant) -> None:
        """The service was there: whoever waits for it may go on."""
        if service := self._service(grant):
            self._breakers.close(service)

    @cached_property
    def _breakers(self) -> Breakers:
        return Breakers(self.store)

    def _context(self, grant: Grant, timeout: float) -> Context:
        return Context(
            run_id=self.run_id,
            step=self.step.name,
            plan=self.plan.plan.name,
            attempt=grant.attempt,
            fence=int(grant.fence),
            unit=unit_of(self.step_id),
            item=json.loads(grant.item) if grant.item else None,
            host=HostFacts(self.host),
            deadline=time.monotonic() + timeout,
            has_upstream=bool(self.step.needs),
            asked_to_stop=self._asked_to_stop(),
            log=self._log,
            renew=self._renew,
            results=_Upstream(self),
            files=self.loaded.file,
            make_engine=_engine,
        )

    def _renew(self) -> bool:
        """Extend this attempt's own lease; False where the step is another attempt's."""
        try:
            return self.store.renew(self.run_id, [(f"{self._side}{self.step_id}", self.owner)]) > 0
        except StoreUnavailable:
            return True  # the lease decides

    def _log(self, text: str) -> None:
        """Keep what the step prints; its output is not worth failing for."""
        try:
            self.store.add_log(self.run_id, self.step_id, text.splitlines())
        except StoreUnavailable:
            return

    def _asked_to_stop(self) -> Callable[[], bool]:
        """Whether the run is ending; asks Redis now and then, and goes on where that does not answer."""
        looked_at = time.monotonic()
        stop = False

        def ask() -> bool:
            nonlocal looked_at, stop
            if not stop and not self.step.always and time.monotonic() - looked_at >= _STOP_POLL:
                looked_at = time.monotonic()
                try:
                    stop = self.store.state(self.run_id) == RunState.ABORTING
                except LongshoreError:
                    return stop  # Redis does not say
            return stop

        return ask

    def _record(
        self,
        side: str,
        grant: Grant,
        status: str,
        body: dict[str, Any],
        bulk: str = "",
        **more: Any,
    ) -> Recorded:
        """Record an outcome; while Redis is away, wait for it: what was done must not be lost."""
        error = str(body.get("error", ""))[:500].encode("utf-8", "replace").decode()
        patience = time.monotonic() + _RECORD_PATIENCE
        while True:
            try:
                return self.store.complete(
                    self.run_id, self.step_id, side, grant.fence, status, _json(body),
                    bulk=bulk, error=error, **more,
                )  # fmt: skip
            except StoreUnavailable:
                if time.monotonic() >= patience:
                    raise
                log.warning("run %s step %s: Redis is away, its outcome waits", self.run_id, self.step.name)
                time.sleep(1.0)

    def _if_stale(self, recorded: Recorded) -> None:
        if not recorded.accepted:
            log.warning("run %s step %s: the outcome of a lost attempt was refused", self.run_id, self.step.name)
            raise Refused("the step is another attempt's now")


class _HostsFailed(OperationError):
    """Too many hosts failed; what the others did is kept."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class _Upstream(Mapping[str, StepReport]):
    """The steps before one, read when they are asked for."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._names = {attempt.plan.steps[i].name: i for i in sorted(attempt.plan.upstream(attempt.index))}

    def __getitem__(self, name: str) -> StepReport:
        index = self._names[name]
        return report.read(self._attempt.store, self._attempt.run_id, self._attempt.plan, [index])[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _prefork() -> bool:
    """Whether this process does one step at a time, and may be ended for it."""
    return bool(getattr(current_process(), "daemon", False))


@cache
def _warned(text: str) -> None:
    log.warning("%s", text)


def _no_receipts(error: OSError) -> None:
    _warned(f"receipts cannot be written, so a stopped worker that wakes up is not fenced off: {error}")


def _engine() -> Any:
    from longshore.tasks.engine import engine_url  # noqa: PLC0415 - docker is an extra
    from longshore.tasks.engine_client import raw_client  # noqa: PLC0415

    return raw_client(engine_url())


class _Ended(AttemptFailed):
    """A final failure, with what became of it."""

    def __init__(self, recorded: Recorded, error: str) -> None:
        super().__init__(error)
        self.recorded = recorded


def _json(value: Any) -> str:
    """As Redis can have it: half a surrogate pair, which is no text, becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()


def bulk_of(outcome: Outcome) -> str:
    """What an outcome may have much of, as JSON; '' where it has nothing. OperationError for what is no JSON."""
    bulk: dict[str, Any] = {"data": outcome.data} if outcome.data else {}
    if outcome.hosts:
        bulk["hosts"] = [host.as_record() for host in outcome.hosts]
    try:
        return _json(bulk) if bulk else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise OperationError(f"its result is not what JSON can hold: {error}") from None


def _with_rendered(grant: Grant, rendered: str) -> Grant:
    return replace(grant, rendered=rendered, step_rendered=rendered)


def render_params(raw: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    try:
        rendered = templates.render(raw, scope)
    except templates.TemplateProblem as error:
        raise Preflight(str(error)) from None
    return rendered  # type: ignore[no-any-return]


def validate_params(model: type[Params], values: dict[str, Any]) -> Params:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Preflight(f"parameter {where}: {plain(first['msg'])}" if where else plain(first["msg"])) from None
