"""One attempt: claim → render → journal → act → record, forward or backward.

Nothing is done before it is written down; nothing counts that is not recorded under the attempt's
own fence.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

from longshore.orchestration import templates
from longshore.orchestration.checks import plain
from longshore.orchestration.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.durations import format_duration
from longshore.orchestration.errors import (
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
from longshore.orchestration.operations import Params, Retry, find
from longshore.orchestration.plan import UndoSpec
from longshore.orchestration.settings import MAX_DATA_BYTES
from longshore.orchestration.states import RunState, StepState, UndoState
from longshore.orchestration.store import Grant, Recorded, Store
from longshore.tasks.crash import point
from longshore.tasks.operation import Context, Implementation, Outcome, implementation
from longshore.tasks.plans import Loaded

log = logging.getLogger(__name__)

#: A shorter delay is a Celery retry with a countdown; a longer one is parked in Redis (SEMANTICS 14).
LONGEST_COUNTDOWN = 2.0
#: An undo is tried longer than what it takes back.
UNDO_RETRY = Retry(attempts=6, initial=1.0, maximum=30.0)
#: Seconds between two looks at whether the run is being ended.
_STOP_POLL = 0.5
#: Seconds that an outcome is held while Redis is away.
_RECORD_PATIENCE = 900.0


class Refused(Exception):
    """The claim was refused."""


class AttemptFailed(Exception):
    """The step's final failure, recorded; raised so that its Celery task is a failed one."""


class TryAgain(Exception):
    """The attempt failed in a way that can pass. `delay` seconds; parked ones are sent by the sweeper."""

    def __init__(self, delay: float, *, parked: bool, error: str) -> None:
        super().__init__(error)
        self.delay = delay
        self.parked = parked
        self.error = error


@lru_cache(maxsize=1)
def hostname() -> str:
    """The host that a step ran on, as the report names it."""
    return socket.gethostname()


@dataclass
class Attempt:
    """What is known of one delivery of one step."""

    store: Store
    loaded: Loaded
    run_id: str
    index: int
    owner: str
    task_id: str
    #: The link that follows it in its chain, if any.
    next_link: int | None = None

    @property
    def plan(self) -> CompiledPlan:
        return self.loaded.plan

    @property
    def step(self) -> CompiledStep:
        return self.plan.steps[self.index]

    # --- forward ------------------------------------------------------------------------------

    def forward(self) -> Recorded:
        """Do the step. Raises Refused, TryAgain, AttemptFailed."""
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
        except Exception as error:  # an operation's own mistake must not lose the step
            log.exception("step %s of run %s", self.step.name, self.run_id)
            return self._failed(grant, OperationError(f"{type(error).__name__}: {error}"), began)
        point("step.acted")
        status = StepState.CHANGED if outcome.changed and not self.step.read_only else StepState.UNCHANGED
        body: dict[str, Any] = {"host": hostname(), "s": round(time.monotonic() - began, 4)}
        if outcome.data:
            body["data"] = outcome.data
        recorded = self._record("", grant, status, body, next_link=self.next_link)
        point("step.recorded")
        self._if_stale(recorded)
        return recorded

    def _act(self, grant: Grant) -> Outcome:
        context = self._context(grant, self._step_timeout())
        done: Implementation[Any] = implementation(self.step.operation.name)
        params, rendered = self._params(grant)
        before = json.loads(grant.before) if grant.before else None
        if before is None:
            before = {} if self.step.read_only else done.before(context, params)
            if rendered or before or self._keeps_journal(done):
                journalled = self.store.journal(self.run_id, self.index, "", grant.fence, rendered, _json(before))
                if not journalled:
                    raise Refused("the step is another attempt's now")
        point("step.journalled")
        outcome = done.act(context, params, before)
        size = len(_json(outcome.data)) if outcome.data else 0
        if size > MAX_DATA_BYTES:
            raise OperationError(f"its result of {size} bytes is larger than {MAX_DATA_BYTES}")
        return outcome

    def _keeps_journal(self, done: Implementation[Any]) -> bool:
        """An operation that reads nothing before it acts leaves no trace of having begun."""
        return not self.step.read_only and type(done).before is not Implementation.before

    def _params(self, grant: Grant) -> tuple[Params, str]:
        """The parameters as rendered at the first claim, and their JSON where it is to be journalled."""
        raw = self.step.step.with_
        model = self.step.operation.params
        if grant.rendered:
            return validate_params(model, json.loads(grant.rendered)), ""
        templated = self.step.operation.templated(raw)
        if not templates.has_template(templated):
            return validate_params(model, raw), ""
        rendered = raw | render_params(templated, self._scope(templated))
        return validate_params(model, rendered), _json(rendered)

    def _scope(self, raw: Any) -> dict[str, Any]:
        """What templates may look at; only the steps that they name are read."""
        names = sorted(templates.references(raw).steps)
        indices = [self.plan.index[name] for name in names if name in self.plan.index]
        rows = self.store.step_fields(self.run_id, indices, (Field.STATUS, Field.OUTCOME))
        steps = {}
        for i, (status, outcome) in rows.items():
            body = json.loads(outcome) if outcome else {}
            steps[self.plan.steps[i].name] = {
                "status": status or StepState.PENDING,
                "changed": status == StepState.CHANGED,
                "data": body.get("data", {}),
                "error": body.get("error"),
            }
        return {
            "params": self.loaded.params,
            "steps": steps,
            "run": {"id": self.run_id, "name": self.plan.plan.name},
            "host": {"name": hostname(), "labels": {}, "facts": {}},
        }

    def _too_long(self, message: str, data: dict[str, Any]) -> StepTimeout:
        return StepTimeout(f"{message} ({format_duration(self._step_timeout())})", data=data)

    def _step_timeout(self) -> float:
        return self.step.step.timeout or self.store.settings.step_timeout

    def _failed(self, grant: Grant, error: OperationError, began: float) -> Recorded:
        """Try again where that can help, else record the failure."""
        policy = self.plan.retry_policy(self.index)
        explicit = self.step.step.retry is not None or self.plan.plan.retry is not None
        passes = isinstance(error, Transient) or (explicit and isinstance(error, Unsuccessful))
        cancelled = isinstance(error, StepCancelled)
        if passes and grant.attempt < policy.attempts:
            self._again(grant, "", policy, error)
        body: dict[str, Any] = {
            "error": str(error),
            "host": hostname(),
            "s": round(time.monotonic() - began, 4),
        }
        if error.data:
            body["data"] = error.data
        recorded = self._record(
            "",
            grant,
            StepState.CANCELLED if cancelled else StepState.FAILED,
            body,
            # A later attempt cannot speak for the ones before it.
            no_effect=isinstance(error, Preflight) and grant.attempt == 1,
            stops=self.plan.stops(self.index),
        )
        point("step.recorded")
        self._if_stale(recorded)
        raise _Ended(recorded, str(error))

    # --- backward -----------------------------------------------------------------------------

    def backward(self) -> Recorded:
        """Take the step back. Raises Refused, TryAgain, AttemptFailed."""
        grant = self._claim("u")
        point("undo.claimed")
        began = time.monotonic()
        try:
            undone = self._undo(grant)
        except OperationError as error:
            if isinstance(error, Transient) and grant.attempt < UNDO_RETRY.attempts:
                self._again(grant, "u", UNDO_RETRY, error)
            return self._end_undo(grant, UndoState.UNDO_FAILED, began, str(error))
        except SoftTimeLimitExceeded:
            return self._end_undo(grant, UndoState.UNDO_FAILED, began, "ran out of its time")
        except Exception as error:  # see forward
            log.exception("undo of step %s of run %s", self.step.name, self.run_id)
            return self._end_undo(grant, UndoState.UNDO_FAILED, began, f"{type(error).__name__}: {error}")
        point("undo.acted")
        log.debug("undo of %s: %s", self.step.name, "undone" if undone else "nothing to undo")
        return self._end_undo(grant, UndoState.UNDONE, began, "")

    def _undo(self, grant: Grant) -> bool:
        """Whether there was something to take back."""
        step = self.step
        outcome = json.loads(grant.outcome) if grant.outcome else {}
        data = outcome.get("data") if self._was_done() else None
        done = implementation(step.operation.name)
        if not grant.before and self._keeps_journal(done):
            return False  # its journal comes before its act: it never began
        before = json.loads(grant.before) if grant.before else {}
        context = self._context(grant, self._step_timeout())
        if isinstance(step.step.undo, UndoSpec):
            return self._own_undo(grant, context, step.step.undo, before, outcome.get("data") or {})
        params, _ = self._params(_with_rendered(grant, grant.step_rendered))
        return done.undo(context, params, before, data).changed

    def _was_done(self) -> bool:
        rows = self.store.step_fields(self.run_id, [self.index], (Field.STATUS,))
        return rows[self.index][0] in {StepState.CHANGED, StepState.UNCHANGED}

    def _own_undo(
        self, grant: Grant, context: Context, undo: UndoSpec, before: dict[str, Any], data: dict[str, Any]
    ) -> bool:
        """The undo that the plan gives: an operation of its own, rendered with what the step left."""
        operation = find(undo.op)
        if grant.rendered:
            rendered = json.loads(grant.rendered)
        else:
            templated = operation.templated(undo.with_)
            scope = self._scope(templated) | {"data": data, "before": before}
            rendered = undo.with_ | render_params(templated, scope)
        params = validate_params(operation.params, rendered)
        context.step = f"{self.step.name}.undo"
        done = implementation(operation.name)
        own_before = done.before(context, params)
        if not self.store.journal(self.run_id, self.index, "u", grant.fence, _json(rendered), ""):
            raise Refused("the undo is another attempt's now")
        return done.act(context, params, own_before).changed

    def _end_undo(self, grant: Grant, status: UndoState, began: float, error: str) -> Recorded:
        body: dict[str, Any] = {"s": round(time.monotonic() - began, 4)}
        if error:
            body["error"] = error
        recorded = self._record("u", grant, status, body)
        point("undo.recorded")
        self._if_stale(recorded)
        if error:
            raise _Ended(recorded, error)
        return recorded

    # --- both -----------------------------------------------------------------------------------

    def _claim(self, side: str) -> Grant:
        grant = self.store.claim(self.run_id, self.index, side, self.owner, self.task_id)
        if isinstance(grant, str):
            raise Refused(grant)
        return grant

    def _again(self, grant: Grant, side: str, policy: Retry, error: OperationError) -> None:
        """Note the retry and raise TryAgain; return where the run is ending, so that it is a failure."""
        delay = policy.delay(grant.attempt, random.random())  # noqa: S311 - jitter
        settings = self.store.settings
        parked = delay > LONGEST_COUNTDOWN
        grace = 0.0 if parked else settings.lease
        text, always = str(error)[:500], self.step.always
        noted = self.store.retry(self.run_id, self.index, side, grant.fence, delay, grace, text, always=always)
        if noted == 0:
            raise Refused("the step is another attempt's now")
        if noted == 1:
            if parked:
                self.store.look_at(self.run_id, self.store.now() + round(delay * 1000), sooner=True)
            raise TryAgain(delay, parked=parked, error=str(error))

    def _context(self, grant: Grant, timeout: float) -> Context:
        return Context(
            run_id=self.run_id,
            step=self.step.name,
            plan=self.plan.plan.name,
            attempt=grant.attempt,
            fence=int(grant.fence),
            deadline=time.monotonic() + timeout,
            has_upstream=bool(self.step.needs),
            asked_to_stop=self._asked_to_stop(),
            log=self._log,
            files=self.loaded.file,
        )

    def _log(self, text: str) -> None:
        """Keep what the step prints; its output is not worth failing for."""
        try:
            self.store.add_log(self.run_id, self.index, text.splitlines())
        except StoreUnavailable:
            log.debug("run %s step %s: its output is not kept, Redis is away", self.run_id, self.step.name)

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
                    log.debug("run %s: Redis does not say whether to stop", self.run_id)
            return stop

        return ask

    def _record(self, side: str, grant: Grant, status: str, body: dict[str, Any], **more: Any) -> Recorded:
        """Record an outcome; while Redis is away, wait for it: what was done must not be lost."""
        error = str(body.get("error", ""))[:500]
        patience = time.monotonic() + _RECORD_PATIENCE
        while True:
            try:
                return self.store.complete(
                    self.run_id, self.index, side, grant.fence, status, _json(body), error=error, **more
                )
            except StoreUnavailable:
                if time.monotonic() >= patience:
                    raise
                log.warning("run %s step %s: Redis is away, its outcome waits", self.run_id, self.step.name)
                time.sleep(1.0)

    def _if_stale(self, recorded: Recorded) -> None:
        if not recorded.accepted:
            log.warning("run %s step %s: the outcome of a lost attempt was refused", self.run_id, self.step.name)
            raise Refused("the step is another attempt's now")


class _Ended(AttemptFailed):
    """A final failure, with what became of it."""

    def __init__(self, recorded: Recorded, error: str) -> None:
        super().__init__(error)
        self.recorded = recorded


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _with_rendered(grant: Grant, rendered: str) -> Grant:
    return Grant(grant.fence, grant.attempt, rendered, rendered, grant.before, grant.outcome, grant.first_started)


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
