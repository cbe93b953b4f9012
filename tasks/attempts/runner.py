"""One attempt: claim → render → journal → act → record, forward or backward.

Nothing is done before it is written down; nothing counts that is not recorded under the attempt's
own fence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

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
    plain,
)
from longshore.orchestration.language import secrets, templates
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.monitoring import logs, tracing
from longshore.orchestration.operations import Operation, Params, Retry, find
from longshore.orchestration.plans.compiled import tolerated
from longshore.orchestration.plans.model import INSIDE, UndoSpec
from longshore.orchestration.settings import MAX_DATA_BYTES
from longshore.orchestration.states import STEP_GOOD, StepState, UndoState
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.run_store import Grant, Recorded
from longshore.tasks.attempts.base import AttemptFailed, Refused, WaitsOutside, as_json
from longshore.tasks.attempts.fencing import Fence
from longshore.tasks.attempts.receipts import Receipt
from longshore.tasks.attempts.retries import RetryPolicy
from longshore.tasks.attempts.scope import scope
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import WaitingImplementation
from longshore.tasks.host import secret_sources
from longshore.tasks.implementation import Context, Implementation, Outcome

log = logging.getLogger(__name__)

#: An undo is tried longer than what it takes back.
UNDO_RETRY = Retry(attempts=6, initial=1.0, maximum=30.0)


class Attempt(Fence, RetryPolicy):
    """One delivery of one step, or of one unit of it, carried out."""

    # --- forward ------------------------------------------------------------------------------

    def forward(self) -> Recorded:
        """Do the step. Raises Refused, TryAgain, AttemptFailed."""
        self._wait_for_service("")
        grant = self._claim("")
        point("step.claimed")
        began = time.monotonic()
        failure: OperationError
        try:
            with self._told_of(grant, ""):
                outcome = self._act(grant)
        except StepTimeout as error:
            failure = self._too_long(error.message, error.data)
        except SoftTimeLimitExceeded:
            failure = self._too_long("ran out of its time", {})
        except OperationError as error:
            failure = error
        except (Refused, WaitsOutside, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - an operation's own mistake must not lose the step
            failure = self._mistake(error)
        else:
            return self._succeeded(grant, outcome, began)
        # Out of reach of what it was raised from, which may tell a secret.
        return self._failed(grant, self._told(failure), began)

    def _succeeded(self, grant: Grant, outcome: Outcome, began: float) -> Recorded:
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
            if receipt is not None and grant.before:
                receipt.journal = [grant.rendered, grant.before]
            outcome = self._without_secrets(self._act_on(grant, context, receipt))
            if receipt is not None and not outcome.hosts:
                receipt.done({"changed": outcome.changed, "data": outcome.data})
            return outcome

    def _act_on(self, grant: Grant, context: Context, receipt: Receipt | None = None) -> Outcome:
        done: Implementation[Any] = self._doing(self.step.operation.name)
        params, rendered = self._params(grant, context)
        before = json.loads(grant.before) if grant.before else None
        if before is None:
            before = {} if self.step.read_only else done.before(context, params)
            stays = self.step.stays("") and not self.step.read_only
            if rendered or before or stays or self._keeps_journal(done):
                text = as_json(self.redaction.data(before))
                journalled = self._patiently(
                    lambda: self.store.journal(self.run_id, self.step_id, "", grant.fence, rendered, text)
                )
                if not journalled:
                    raise Refused("the step is another attempt's now")
                if receipt is not None:
                    receipt.journalled(rendered, text)
        point("step.journalled")
        if isinstance(done, WaitingImplementation):
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

    def _keeps_journal(self, done: Implementation[Any]) -> bool:
        """An operation that reads nothing before it acts leaves no trace of having begun."""
        own = getattr(done, "keeps_journal", type(done).before is not Implementation.before)
        return bool(own) and not self.step.read_only

    def _params(self, grant: Grant, context: Context) -> tuple[Params, str]:
        """The parameters as rendered at the first claim, and their JSON where it is to be journalled.

        The context is told the container that it is done in, and what must not be told.
        """
        operation, raw = self.step.operation, self.step.step.with_
        if grant.rendered:
            return self._ready(operation, json.loads(grant.rendered), context), ""
        templated = operation.templated(raw)
        if not templates.has_template([templated, self.step.inside]):
            return self._ready(operation, raw, context), ""
        known = self._scope([templated, self.step.inside], grant)
        rendered = render_step(raw, templated, self.step.inside, known)
        return self._ready(operation, rendered, context), as_json(rendered)

    def _ready(self, operation: Operation, rendered: dict[str, Any], context: Context) -> Params:
        """What was rendered, as the operation takes it."""
        params, context.container = reveal_params(operation, rendered, self.step.inside, self.redaction)
        context.redact = self.redaction.text
        context.redact_data = self.redaction.data
        return params

    def _without_secrets(self, outcome: Outcome) -> Outcome:
        if not self.redaction.values:
            return outcome
        hosts = [replace(host, error=self.redaction.text(host.error)) if host.error else host for host in outcome.hosts]
        return Outcome(outcome.changed, self.redaction.data(outcome.data), hosts)

    def _told(self, error: OperationError) -> OperationError:
        """An error as it may be told: nothing in it, nor in what it was raised from, is a secret."""
        if self.redaction.values:
            secrets.no_value(error, self.redaction)
            error.__cause__ = error.__context__ = None
        return error

    def _mistake(self, error: Exception) -> OperationError:
        told = self.redaction.text("".join(traceback.format_exception(error)))
        log.error("step %s of run %s\n%s", self.step.name, self.run_id, told)
        return OperationError(f"{type(error).__name__}: {error}")

    def _scope(self, raw: Any, grant: Grant) -> dict[str, Any]:
        """What templates may look at; only the steps that they name are read."""
        found = self._patiently(lambda: scope(self.store, self.loaded, self.run_id, raw, self.host))
        return found | ({"item": json.loads(grant.item)} if grant.item else {})

    def _too_long(self, message: str, data: dict[str, Any]) -> StepTimeout:
        return StepTimeout(f"{message} ({format_duration(self._step_timeout())})", data=data)

    def _failed(self, grant: Grant, error: OperationError, began: float) -> Recorded:
        """Try again where that can help, else record the failure."""
        self._note_refusal(error)
        self._ask_again(grant, "", error)
        policy = self.plan.retry_policy(self.index)
        explicit = self.step.step.retry is not None or self.plan.plan.retry is not None
        passes = isinstance(error, Transient | Blocked) or (explicit and isinstance(error, Unsuccessful))
        cancelled = isinstance(error, StepCancelled)
        # Asked after in vain, or until the run was ended: it may have happened.
        unknown = isinstance(error, Delayed | InDoubt)
        if passes and grant.tries < policy.attempts:
            self._again(grant, "", policy, error)
        body: dict[str, Any] = {
            "error": str(error),
            "host": self.host,
            "s": round(time.monotonic() - began, 4),
        }
        bulk = as_json({"data": error.data}) if error.data else ""
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

    @contextlib.contextmanager
    def _told_of(self, grant: Grant, side: str) -> Iterator[None]:
        """Logs and traces know which attempt it is."""
        logs.add(attempt=grant.attempt)
        with contextlib.ExitStack() as stack:
            if self.store.settings.tracing:
                part = self.plan.name_of(self.step_id)
                stack.enter_context(
                    tracing.attempt(
                        self.run_id,
                        self.loaded.instance_id,
                        self.loaded.trace,
                        part,
                        undo=bool(side),
                        number=grant.attempt,
                    )
                )
            yield

    def _note_refusal(self, error: OperationError) -> None:
        """What this worker may not do at all stands in the audit trail."""
        if isinstance(error, NotAllowed):
            loaded = self.loaded
            note_refusal(
                self.store, str(error), run=self.run_id, step=self.step.name, plan=self.plan.plan.name,
                actor=loaded.actor, origin=loaded.origin,
            )  # fmt: skip

    # --- backward -----------------------------------------------------------------------------

    def backward(self) -> Recorded:
        """Take the step back. Raises Refused, TryAgain, AttemptFailed."""
        self._side = "u"
        self._wait_for_service("u")
        grant = self._claim("u")
        point("undo.claimed")
        began = time.monotonic()
        failure: OperationError
        try:
            with self._told_of(grant, "u"):
                self._undo(grant)
        except OperationError as error:
            failure = error
        except SoftTimeLimitExceeded:
            failure = OperationError("ran out of its time")
        except (Refused, WaitsOutside, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - see forward
            failure = self._mistake(error)
        else:
            point("undo.acted")
            return self._end_undo(grant, UndoState.UNDONE, began, "")
        failure = self._told(failure)
        self._note_refusal(failure)
        self._ask_again(grant, "u", failure)
        if isinstance(failure, Transient) and grant.tries < UNDO_RETRY.attempts:
            self._again(grant, "u", UNDO_RETRY, failure)
        return self._end_undo(grant, UndoState.UNDO_FAILED, began, str(failure))

    def _undo(self, grant: Grant) -> None:
        """Take the step back, if there is something to take back."""
        context = self._context(grant, self._step_timeout())
        self._is_newest(grant)
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
        params, _ = self._params(_with_rendered(grant, grant.step_rendered), context)
        if isinstance(done, WaitingImplementation):
            parking = done.park_undo(self._place(grant, "u"), params, info)
            if parking is not None:
                self._park(grant, "u", parking)
            return
        done.undo(context, params, before, data if status in STEP_GOOD else None)

    def _left_behind(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """How the step ended, the data that it recorded, and what it was parked for."""
        fields = self._patiently(lambda: self.store.steps_of(self.run_id, [self.step_id]))
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
            known = self._scope([templated, self.step.inside], grant) | {"data": data, "before": before}
            rendered = render_step(undo.with_, templated, self.step.inside, known)
        params = self._ready(operation, rendered, context)
        context.step = f"{self.step.name}@undo"
        done = self._doing(operation.name)
        own_before = done.before(context, params)
        text = as_json(rendered)  # with marks where secrets are
        if not self._patiently(lambda: self.store.journal(self.run_id, self.step_id, "u", grant.fence, text, "")):
            raise Refused("the undo is another attempt's now")
        if isinstance(done, WaitingImplementation):
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


class _HostsFailed(OperationError):
    """Too many hosts failed; what the others did is kept."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class _Ended(AttemptFailed):
    """A final failure, with what became of it."""

    def __init__(self, recorded: Recorded, error: str) -> None:
        super().__init__(error)
        self.recorded = recorded


def bulk_of(outcome: Outcome) -> str:
    """What an outcome may have much of, as JSON; '' where it has nothing. OperationError for what is no JSON."""
    bulk: dict[str, Any] = {"data": outcome.data} if outcome.data else {}
    if outcome.hosts:
        bulk["hosts"] = [host.as_record() for host in outcome.hosts]
    try:
        return as_json(bulk) if bulk else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise OperationError(f"its result is not what JSON can hold: {error}") from None


def _with_rendered(grant: Grant, rendered: str) -> Grant:
    return replace(grant, rendered=rendered, step_rendered=rendered)


def render_step(raw: dict[str, Any], templated: dict[str, Any], inside: str, known: dict[str, Any]) -> dict[str, Any]:
    """The parameters with marks in the place of secrets, and what is stored beside them."""
    marks = secrets.SecretMarks()
    rendered = raw | render_params(templated, known | {templates.SECRET: marks})
    if marks.used:
        rendered[secrets.WORD] = marks.word
    if inside:
        rendered[INSIDE] = render_params({INSIDE: inside}, known)[INSIDE]
    return rendered


def reveal_params(
    operation: Operation, rendered: dict[str, Any], inside: str, redaction: secrets.Redaction
) -> tuple[Params, str]:
    """What was rendered, with its secrets, as the operation takes it; and the container that it is done in."""
    values = dict(rendered)
    inside = values.pop(INSIDE, inside)
    if word := values.pop(secrets.WORD, ""):
        values = secrets.reveal(values, word, redaction.values, secret_sources.read)
    return validate_params(operation.params, values), inside


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
        told = plain(first["msg"])
        # A path that leads upwards was made by a template: no plan may write one.
        kind = NotAllowed if "has a .. in it" in told else Preflight
        raise kind(f"parameter {where}: {told}" if where else told) from None
