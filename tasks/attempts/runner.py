"""One attempt at a step: claim, render, journal, act, record; forward, or backward for its compensation.

Every effect is journalled before it happens, and counts only when it is recorded under the attempt's own fence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from longshore.orchestration.authoring.context import current
from longshore.orchestration.errors import (
    Blocked,
    Delayed,
    InDoubt,
    NotAllowed,
    OperationError,
    Preflight,
    StepCancelled,
    StepTimeout,
    StoreUnavailable,
    Transient,
    Unsuccessful,
)
from longshore.orchestration.language import secrets, templates
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.monitoring import logs
from longshore.orchestration.monitoring.output import captured
from longshore.orchestration.operations import Operation, Params, Retry, find
from longshore.orchestration.operations.results import as_mapping
from longshore.orchestration.plans.compiled import tolerated
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.settings import MAX_DATA_BYTES
from longshore.orchestration.states import STEP_GOOD, StepState, UndoState
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import Grant
from longshore.tasks.attempts.contexts import context_of, log_output
from longshore.tasks.attempts.delivery import Delivery, Ended, Refused, Result, WaitsOutside, as_json
from longshore.tasks.attempts.fencing import Fence
from longshore.tasks.attempts.params import render_step, reveal_params
from longshore.tasks.attempts.receipts import Receipt
from longshore.tasks.attempts.retries import RetryPolicy
from longshore.tasks.attempts.scope import scope
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import WaitingImplementation
from longshore.tasks.host import policy, secret_sources
from longshore.tasks.implementation import Context, Implementation, Outcome, implementation

log = logging.getLogger(__name__)

#: A compensation is retried longer than its step.
UNDO_RETRY = Retry(attempts=6, initial=1.0, maximum=30.0)


def allowed_implementation(operation: str) -> Implementation[Any]:
    """The implementation of an operation. Raises NotAllowed where this worker may not run it."""
    policy.check_operation(operation)
    return implementation(operation)


class Attempt:
    """The attempt of one delivery."""

    def __init__(
        self,
        delivery: Delivery,
        *,
        fence: Fence | None = None,
        implementation_of: Callable[[str], Implementation[Any]] = allowed_implementation,
        read_secret: Callable[[str], str] = secret_sources.read,
    ) -> None:
        self._delivery = delivery
        self._fence = fence if fence is not None else Fence(delivery)
        self._retries = RetryPolicy(delivery)
        self._implementation_of = implementation_of
        self._read_secret = read_secret
        #: Whether no attempt at the step can have had an effect.
        self._untouched = False

    def run(self) -> Result:
        """Run the step, or its compensation. Raises Refused; StoreUnavailable where Redis stays away."""
        self._retries.require_service()
        grant = self._delivery.claim()
        point("undo.claimed" if self._delivery.side else "step.claimed")
        began = time.monotonic()
        # A later attempt cannot vouch for the ones before it.
        self._untouched = first = grant.attempt - grant.blocked == 1
        failure: OperationError
        try:
            with self._attempt_noted(grant):
                done = self._compensate(grant) if self._delivery.side else self._act(grant)
        except StepTimeout as error:
            failure = self._timed_out(error.message, error.data)
        except SoftTimeLimitExceeded:
            failure = self._timed_out("exceeded its time limit", {})
        except OperationError as error:
            failure = error
            if self._delivery.operation.function is not None:
                self._log_traceback(error)
        except (Refused, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - an exception of an operation must not lose the step
            failure = self._unexpected(error)
        else:
            if isinstance(done, WaitsOutside):
                return done
            point("undo.acted" if self._delivery.side else "step.acted")
            return self._succeeded(grant, done, began)
        # Outside of the except clause: the exception's context may hold a secret.
        failure = self._redacted(failure)
        self._untouched = self._untouched or (first and isinstance(failure, Preflight | Blocked))
        self._note_refusal(failure)
        return self._undo_failed(grant, failure, began) if self._delivery.side else self._failed(grant, failure, began)

    # --- the end ------------------------------------------------------------------------------

    def _succeeded(self, grant: Grant, outcome: Outcome, began: float) -> Ended:
        delivery = self._delivery
        body: dict[str, Any] = {"s": _seconds_since(began)}
        if delivery.side:
            body |= _standing(outcome.data)
            recorded = delivery.record(grant, UndoState.UNDONE, body)
        else:
            changed = outcome.changed and not delivery.step.read_only
            recorded = delivery.record(
                grant,
                StepState.CHANGED if changed else StepState.UNCHANGED,
                {"host": delivery.host} | body,
                bulk_of(outcome),
                next_link=delivery.next_link,
                # The last unit ends the step, and too many of the others may have failed.
                stops=delivery.plan.stops(delivery.index),
            )
            self._fence.note_version(grant.version + 1)
        self._retries.service_answered(grant)
        return Ended(recorded)

    def _failed(self, grant: Grant, error: OperationError, began: float) -> Result:
        delivery = self._delivery
        if (scheduled := self._retries.after_delay_or_block(grant, error)) is not None:
            return scheduled
        retry = delivery.plan.retry_policy(delivery.index)
        if self._retries.is_retried(error) and grant.tries < retry.attempts:
            scheduled = self._retries.after_transient_error(grant, retry, error)
            if scheduled is not None:
                return scheduled
        # The effect may have happened: the service never gave the outcome.
        unknown = isinstance(error, Delayed | InDoubt)
        if unknown and delivery.plan.plan.on_unknown == "ask":
            asked = self._retries.ask_a_person(grant, str(error))
            if asked is not None:
                return asked
        cancelled = isinstance(error, StepCancelled)
        body: dict[str, Any] = {"error": str(error), "host": delivery.host, "s": _seconds_since(began)}
        bulk = as_json({"data": error.data}) if error.data else ""
        if isinstance(error, _HostsFailed):
            body["changed"] = error.outcome.changed
            bulk = bulk_of(error.outcome)
        recorded = delivery.record(
            grant,
            StepState.CANCELLED if cancelled else StepState.UNKNOWN if unknown else StepState.FAILED,
            body,
            bulk,
            no_effect=self._untouched,
            stops=delivery.plan.stops(delivery.index),
        )
        return Ended(recorded, str(error))

    def _undo_failed(self, grant: Grant, error: OperationError, began: float) -> Result:
        scheduled = self._retries.after_delay_or_block(grant, error)
        if scheduled is None and isinstance(error, Transient) and grant.tries < UNDO_RETRY.attempts:
            scheduled = self._retries.after_transient_error(grant, UNDO_RETRY, error)
        if scheduled is not None:
            return scheduled
        body = {"s": _seconds_since(began), "error": str(error)} | _standing(error.data)
        return Ended(self._delivery.record(grant, UndoState.UNDO_FAILED, body), str(error))

    # --- forward ------------------------------------------------------------------------------

    def _act(self, grant: Grant) -> Outcome | WaitsOutside:
        context = context_of(self._delivery, grant)
        self._fence.require_newest(grant)
        with self._fence.receipt(grant, context) as (receipt, found):
            if found is not None:
                return Outcome(**found)
            if receipt is not None and grant.before:
                receipt.journal = [grant.rendered, grant.before]
            outcome = self._act_on(grant, context, receipt)
            if isinstance(outcome, WaitsOutside):
                return outcome
            if receipt is not None and not outcome.hosts:
                receipt.done({"changed": outcome.changed, "data": outcome.data})
            return outcome

    def _act_on(self, grant: Grant, context: Context, receipt: Receipt | None = None) -> Outcome | WaitsOutside:
        delivery = self._delivery
        done = self._implementation_of(delivery.step.operation.name)
        # The journal comes before the act: without an entry, no earlier attempt has acted.
        self._untouched = self._untouched or (not grant.before and self._keeps_journal(done))
        params, rendered = self._params(grant, context, grant.rendered)
        before = json.loads(grant.before) if grant.before else None
        if before is None:
            before = {} if delivery.step.read_only else done.before(context, params)
            stays = delivery.step.stays("") and not delivery.step.read_only
            if rendered or before or stays or self._keeps_journal(done):
                text = as_json(delivery.redaction.data(before))
                delivery.journal(grant, rendered, text)
                if receipt is not None:
                    receipt.journalled(rendered, text)
        point("step.journalled")
        self._untouched = False
        if isinstance(done, WaitingImplementation):
            return delivery.park(grant, done.park(delivery.wait_context(grant), params))
        outcome = self._without_secrets(done.act(context, params, before))
        size = len(bulk_of(outcome))
        if size > MAX_DATA_BYTES:
            raise OperationError(f"the result of {size} bytes exceeds the {MAX_DATA_BYTES} bytes of a step")
        self._check_hosts(outcome)
        return outcome

    def _check_hosts(self, outcome: Outcome) -> None:
        """A step on several hosts fails when more hosts failed than `tolerate` admits."""
        bad = [record for record in (host.as_record() for host in outcome.hosts) if record["status"] == "failed"]
        if len(bad) > tolerated(self._delivery.step.step.tolerate, len(outcome.hosts)):
            first = f"{bad[0]['host']}: {bad[0].get('error')}"
            raise _HostsFailed(f"{len(bad)} of {len(outcome.hosts)} hosts failed; the first: {first}", outcome)

    def _keeps_journal(self, done: Implementation[Any]) -> bool:
        """Whether a journal entry proves that the attempt began: an operation without `before` leaves none."""
        own = getattr(done, "keeps_journal", type(done).before is not Implementation.before)
        return bool(own) and not self._delivery.step.read_only

    # --- backward -----------------------------------------------------------------------------

    def _compensate(self, grant: Grant) -> Outcome | WaitsOutside:
        context = context_of(self._delivery, grant)
        self._fence.require_newest(grant)
        with self._fence.receipt(grant, context):
            done = self._compensate_in(grant, context)
            if isinstance(done, WaitsOutside):
                return done
            return self._without_secrets(Outcome(changed=True, data=_standing(done.data) if done is not None else {}))

    def _compensate_in(self, grant: Grant, context: Context) -> Outcome | WaitsOutside | None:
        delivery, step = self._delivery, self._delivery.step
        status, data, info = self._recorded_outcome()
        done = self._implementation_of(step.operation.name)
        if not grant.before and self._keeps_journal(done):
            return None  # the journal comes before the act: the step never began
        before = json.loads(grant.before) if grant.before else {}
        if isinstance(step.step.undo, UndoSpec):
            return self._compensate_by(step.step.undo, grant, context, before, data)
        params, _ = self._params(grant, context, grant.step_rendered)
        if isinstance(done, WaitingImplementation):
            wait = done.park_undo(delivery.wait_context(grant), params, info)
            return delivery.park(grant, wait) if wait is not None else None
        return done.undo(context, params, before, data if status in STEP_GOOD else None)

    def _compensate_by(
        self, undo: UndoSpec, grant: Grant, context: Context, before: dict[str, Any], data: dict[str, Any]
    ) -> WaitsOutside | None:
        """Run the operation that the plan gives as compensation, with the step's data and journal in its templates."""
        delivery, operation = self._delivery, find(undo.op)
        if grant.rendered:
            rendered = json.loads(grant.rendered)
        else:
            templated = operation.templated(undo.with_)
            known = self._scope([templated, delivery.step.inside], grant) | {"data": data, "before": before}
            rendered = render_step(undo.with_, templated, delivery.step.inside, known)
        params = self._revealed(operation, rendered, context)
        context.step = f"{delivery.step.name}@undo"
        done = self._implementation_of(operation.name)
        own_before = done.before(context, params)
        delivery.journal(grant, as_json(rendered), "")
        if isinstance(done, WaitingImplementation):
            return delivery.park(grant, done.park(delivery.wait_context(grant), params))
        done.act(context, params, own_before)
        return None

    def _recorded_outcome(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Status and data of the step, and the external event that it waited for."""
        delivery = self._delivery
        fields = delivery.wait_for_redis(lambda: delivery.store.steps_of(delivery.run_id, [delivery.step_id]))
        outcome = json.loads(fields.get(f"{Field.OUTCOME}:{delivery.step_id}") or "{}")
        outcome |= json.loads(fields.get(f"bulk:{delivery.step_id}") or "{}")
        info = json.loads(fields.get(f"{Field.PARKED}:{delivery.step_id}") or "{}")
        return fields.get(f"{Field.STATUS}:{delivery.step_id}", ""), outcome.get("data") or {}, info

    # --- parameters ---------------------------------------------------------------------------

    def _params(self, grant: Grant, context: Context, journalled: str) -> tuple[Params, str]:
        """The parameters as the first claim rendered them, and their JSON where it has to be journalled."""
        step = self._delivery.step
        operation, raw = step.operation, step.step.with_
        if journalled:
            return self._revealed(operation, json.loads(journalled), context), ""
        templated = operation.templated(raw)
        if not templates.has_template([templated, step.inside]):
            return self._revealed(operation, raw, context), ""
        known = self._scope([templated, step.inside], grant)
        rendered = render_step(raw, templated, step.inside, known)
        return self._revealed(operation, rendered, context), as_json(rendered)

    def _revealed(self, operation: Operation, rendered: dict[str, Any], context: Context) -> Params:
        redaction = self._delivery.redaction
        params, context.container = reveal_params(
            operation, rendered, self._delivery.step.inside, redaction, self._read_secret
        )
        context.redact, context.redact_data = redaction.text, redaction.data
        return params

    def _scope(self, raw: Any, grant: Grant) -> dict[str, Any]:
        """The values that the templates inside `raw` name; only those steps are read."""
        delivery = self._delivery
        found = delivery.wait_for_redis(
            lambda: scope(delivery.store, delivery.loaded, delivery.run_id, raw, delivery.host)
        )
        return found | ({"item": json.loads(grant.item)} if grant.item else {})

    # --- errors and secrets -------------------------------------------------------------------

    def _without_secrets(self, outcome: Outcome) -> Outcome:
        redaction = self._delivery.redaction
        if not redaction.values:
            return outcome
        hosts = [
            replace(
                host,
                error=redaction.text(str(host.error)) if host.error else host.error,
                data=redaction.data(as_mapping(host.data)) if host.data is not None else None,
            )
            for host in outcome.hosts
        ]
        return Outcome(outcome.changed, redaction.data(outcome.data), hosts)

    def _redacted(self, error: OperationError) -> OperationError:
        """The error without secrets, and without the exceptions that it was raised from."""
        if self._delivery.redaction.values:
            secrets.no_value(error, self._delivery.redaction)
            error.__cause__ = error.__context__ = None
        return error

    def _unexpected(self, error: Exception) -> OperationError:
        delivery = self._delivery
        text = self._log_traceback(error)
        log.error("step %s of run %s\n%s", delivery.step.name, delivery.run_id, text)
        return Unsuccessful(f"{type(error).__name__}: {error}")

    def _log_traceback(self, error: Exception) -> str:
        """Add the traceback of an operation to the output of the step; return it without secrets."""
        text = self._delivery.redaction.text("".join(traceback.format_exception(error)))
        log_output(self._delivery, "stderr", text.splitlines())
        return text

    def _timed_out(self, message: str, data: dict[str, Any]) -> OperationError:
        if self._delivery.side:
            return OperationError(message, data=data)
        return StepTimeout(f"{message} ({format_duration(self._delivery.step_timeout)})", data=data)

    def _note_refusal(self, error: OperationError) -> None:
        """Add an operation that this worker may not run to the audit trail."""
        if isinstance(error, NotAllowed):
            delivery, loaded = self._delivery, self._delivery.loaded
            note_refusal(
                delivery.store, str(error), run=delivery.run_id, step=delivery.step.name, plan=delivery.plan.plan.name,
                actor=loaded.actor, origin=loaded.origin,
            )  # fmt: skip

    @contextlib.contextmanager
    def _attempt_noted(self, grant: Grant) -> Iterator[None]:
        """Logs and traces carry the number of the attempt, and the step's output that of an own operation."""
        delivery = self._delivery
        logs.add(attempt=grant.attempt)
        own = delivery.operation.function is not None
        with captured(partial(log_output, delivery)) if own else contextlib.nullcontext():
            try:
                with self._traced(grant):
                    yield
            finally:
                current.set(None)

    @contextlib.contextmanager
    def _traced(self, grant: Grant) -> Iterator[None]:
        delivery = self._delivery
        if not delivery.store.settings.tracing:
            yield
            return
        from longshore.orchestration.monitoring import tracing  # noqa: PLC0415 - needs the extra otel

        with tracing.attempt(
            delivery.run_id,
            delivery.loaded.instance_id,
            delivery.loaded.trace,
            delivery.name,
            undo=bool(delivery.side),
            number=grant.attempt,
        ):
            yield


class _HostsFailed(OperationError):
    """More hosts failed than the step tolerates; the outcome of the others is kept."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def bulk_of(outcome: Outcome) -> str:
    """Data and hosts of an outcome as JSON; '' where it has none. Raises OperationError for values outside of JSON."""
    bulk: dict[str, Any] = {"data": outcome.data} if outcome.data else {}
    if outcome.hosts:
        bulk["hosts"] = [host.as_record() for host in outcome.hosts]
    try:
        return as_json(bulk) if bulk else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise OperationError(f"the result cannot be written as JSON: {error}") from None


def _standing(data: dict[str, Any]) -> dict[str, Any]:
    """The running versions after a compensation, for its record."""
    return {"standing": data["standing"]} if data.get("standing") else {}


def _seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 4)
