"""One delivery of a step's message: the step, its claim, its record, and how the attempt can end."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.language.secrets import Redaction
from longshore.orchestration.operations import Operation, find
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep, StepId, index_of
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store.records import Grant, Recorded
from longshore.orchestration.store.run_store import Store
from longshore.tasks.crash_points import point
from longshore.tasks.external_wait import ExternalWait, MakeCanvas, WaitContext
from longshore.tasks.loaded_runs import Loaded

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds that a claimed step waits for Redis to come back.
_REDIS_TIMEOUT = 900.0
#: The same before the claim; after that Celery retries the task.
_CLAIM_TIMEOUT = 30.0


class Refused(Exception):
    """The claim was refused, or another attempt holds the step now: this delivery has no effect on the record."""


class AnotherInstance(Refused):
    """The run of this message was deleted, and another run has its id."""


@dataclass(frozen=True)
class Ended:
    """The attempt is recorded. `error` is the final failure, or ''."""

    recorded: Recorded
    error: str = ""


@dataclass(frozen=True)
class RetryScheduled:
    """The record notes a retry in `delay` seconds.

    Of a parked one the sweeper sends the message; of any other, Celery.
    """

    delay: float
    parked: bool
    error: str


@dataclass(frozen=True)
class WaitsOutside:
    """The step waits for an external event: its outcome is recorded later, without a worker."""

    what: str


Result = Ended | RetryScheduled | WaitsOutside


def hostname(node: str = "") -> str:
    """The host of a step as reports name it: the setting `host`, or else the host part of the worker's node name."""
    return get_settings().host or node.partition("@")[2] or socket.gethostname()


@dataclass
class Delivery:
    """One delivery of one step, or of one unit of it; `side` is 'u' for its compensation."""

    store: Store
    loaded: Loaded
    run_id: str
    step_id: StepId
    #: Unique to this delivery, so that its own repeated claim gets the same answer.
    owner: str
    task_id: str
    #: Sends the messages of operations that wait outside.
    canvas: MakeCanvas
    host: str = ""
    side: str = ""
    #: The step that follows in the chain, if any.
    next_link: int | None = None
    #: The secrets of the run that this worker can read, once the attempt has begun.
    redaction: Redaction = field(default_factory=Redaction)
    #: The claim, where it was made together with the record of the link before.
    granted: Grant | None = None
    #: The delivery of the next link, which this process may run itself as long as `may_follow` says so.
    following: Delivery | None = None
    may_follow: Callable[[], bool] = lambda: True

    @property
    def plan(self) -> CompiledPlan:
        return self.loaded.plan

    @property
    def index(self) -> int:
        return index_of(self.step_id)

    @property
    def step(self) -> CompiledStep:
        return self.plan.steps[self.index]

    @property
    def name(self) -> str:
        return self.plan.name_of(self.step_id)

    @property
    def operation(self) -> Operation:
        """The operation of the attempt; that of a compensation can be the plan's own."""
        undo = self.step.step.undo
        return find(undo.op) if self.side and isinstance(undo, UndoSpec) else self.step.operation

    @property
    def retry_queue(self) -> str | None:
        """The queue of the next attempt: that of this host, where the effect is on this host; else None."""
        if not self.step.stays(self.side):
            return None
        return self.step.undo_queue_at(self.host) if self.side else self.step.queue_at(self.host)

    @property
    def step_timeout(self) -> float:
        """Seconds for one attempt."""
        return self.step.step.timeout or self.store.settings.step_timeout

    def claim(self) -> Grant:
        """Claim the step for this delivery. Raises Refused, AnotherInstance, StoreUnavailable."""
        if self.granted is not None:
            return self.granted
        # Under the same owner: where the answer was lost, the script repeats it.
        grant = self.wait_for_redis(
            lambda: self.store.claim(
                self.run_id, self.step_id, self.side, self.owner, self.task_id,
                always=not self.side and self.step.always, instance_id=self.loaded.instance_id, host=self.host,
                stays=self.step.stays(self.side),
            ),
            _CLAIM_TIMEOUT,
        )  # fmt: skip
        if grant == "another run":
            raise AnotherInstance(grant)
        if isinstance(grant, str):
            raise Refused(grant)
        return grant

    def record(self, grant: Grant, status: str, body: dict[str, Any], bulk: str = "", **more: Any) -> Recorded:
        """Record the outcome under the attempt's fence; with `next_link`, claim that link for this process if it may.

        Raises Refused where another attempt holds the step now.
        """
        if more.get("next_link") is not None and self.following is not None and self.may_follow():
            link = self.following
            more["ahead"] = (link.owner, link.task_id, link.host, link.step.stays(""))
        redacted = self.redaction.data(body)
        error = str(redacted.get("error", ""))[:500].encode("utf-8", "replace").decode()
        text = as_json(redacted)
        recorded = self.wait_for_redis(
            lambda: self.store.complete(
                self.run_id, self.step_id, self.side, grant.fence, status, text, bulk=bulk, error=error, **more
            )
        )
        point("undo.recorded" if self.side else "step.recorded")
        if not recorded.accepted:
            log.warning("run %s step %s: the outcome of a superseded attempt was refused", self.run_id, self.step.name)
            raise Refused("another attempt holds the step now")
        return recorded

    def journal(self, grant: Grant, rendered: str, before: str) -> None:
        """Journal what a later attempt and the compensation need. Raises Refused."""
        if not self.wait_for_redis(
            lambda: self.store.journal(self.run_id, self.step_id, self.side, grant.fence, rendered, before)
        ):
            raise Refused("another attempt holds the step now")

    def park(self, grant: Grant, wait: ExternalWait) -> WaitsOutside:
        """Release the step until the external event, or the time limit. Raises Refused."""
        info = as_json(wait.info | {"what": wait.what})
        if not self.store.park(self.run_id, self.step_id, self.side, grant.fence, wait.seconds, info, wait.what):
            raise Refused("another attempt holds the step now")
        point("step.parked")
        return WaitsOutside(wait.what)

    def wait_context(self, grant: Grant) -> WaitContext:
        """The arguments of an operation that waits outside."""
        return WaitContext(
            store=self.store,
            canvas=self.canvas,
            loaded=self.loaded,
            run_id=self.run_id,
            step_id=self.step_id,
            side=self.side,
            attempt=grant.attempt,
            fence=grant.fence,
            timeout=self.step.step.timeout,
            epoch=grant.epoch,
        )

    def wait_for_redis(self, call: Callable[[], T], seconds: float = _REDIS_TIMEOUT) -> T:
        """Repeat a call while Redis is away: a claimed step must not fail for that. Raises StoreUnavailable at last."""
        until = time.monotonic() + seconds
        while True:
            try:
                return call()
            except StoreUnavailable:
                if time.monotonic() >= until:
                    raise
                log.warning("run %s step %s waits: Redis does not answer", self.run_id, self.step.name)
                time.sleep(1.0)


def as_json(value: Any) -> str:
    """JSON that Redis can store: half a surrogate pair becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()
