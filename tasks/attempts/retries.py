"""Retries of an attempt: after a transient error, while a service is down, and while an outcome is not known.

Each method notes the retry in the record and returns it; the caller ends the attempt with that result.
"""

from __future__ import annotations

import random
from functools import cached_property

from longshore.orchestration.errors import (
    Blocked,
    Delayed,
    InDoubt,
    OperationError,
    Permanent,
    Preflight,
    StepCancelled,
    StepTimeout,
    Transient,
    Unsuccessful,
)
from longshore.orchestration.operations import Retry
from longshore.orchestration.operations.base import service_of
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import BreakerDecision, Breakers
from longshore.orchestration.store.records import Grant
from longshore.orchestration.store.run_store import ASKED
from longshore.tasks.attempts.delivery import Delivery, Refused, RetryScheduled, WaitsOutside, as_json
from longshore.tasks.crash_points import point

#: A shorter delay is a Celery retry with a countdown; a longer one is parked in Redis.
LONGEST_COUNTDOWN = 2.0


class RetryPolicy:
    """Decides on the next attempt of one delivery."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def require_service(self) -> None:
        """Suspend the run and raise Refused while the breaker of the operation's service is open."""
        service = self._service()
        if not service or self._must_run:
            return
        decision = self._breakers.ask(service, self._delivery.run_id)
        if not decision.allowed:
            self._suspend(service, decision)
            raise Refused(decision.why)

    def is_retried(self, error: OperationError) -> bool:
        """Whether an error is retried: a temporary one by any policy, by that of the step or the plan each other error
        that is not marked permanent. The catalogue raises Unsuccessful for what may succeed later.
        """
        delivery = self._delivery
        if isinstance(error, Transient | Blocked):
            return True
        if not delivery.plan.retries_every_error(delivery.index):
            return False
        if delivery.step.operation.function is None:
            return isinstance(error, Unsuccessful | StepTimeout)
        return not isinstance(error, Permanent | Preflight | StepCancelled | Delayed | InDoubt)

    def after_transient_error(self, grant: Grant, policy: Retry, error: OperationError) -> RetryScheduled | None:
        """The next attempt by the step's policy, which counts; None while the run is being ended."""
        delay = policy.delay(grant.tries, random.random())  # noqa: S311 - jitter
        return self._schedule(grant, delay, error, parked=delay > LONGEST_COUNTDOWN, counts=True)

    def after_delay_or_block(self, grant: Grant, error: OperationError) -> RetryScheduled | None:
        """The next attempt after Delayed or Blocked, which does not count; None for other errors, while the run is
        being ended, and where a delayed outcome was asked for longer than the step's timeout.
        """
        scheduled = None
        if isinstance(error, Delayed):
            self.service_answered(grant)
            slow = self._delivery.store.settings.slow_retry * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            delay = slow if error.after is None else max(0.0, error.after)
            scheduled = self._schedule(grant, delay, error, ask_for=self._delivery.step_timeout)
        if scheduled is None and isinstance(error, Blocked) and not self._must_run:
            service = error.service or self._service(grant) or self._delivery.operation.name
            decision = self._breakers.trip(service, str(error), self._delivery.run_id)
            delay = max(0, decision.until - self._delivery.store.now()) / 1000
            scheduled = self._schedule(grant, delay, error, service=service)
            if scheduled is not None:
                point("step.blocked")
                self._suspend(service, decision)
        return scheduled

    def ask_a_person(self, grant: Grant, why: str) -> WaitsOutside | None:
        """Suspend the run until a person resolves the step; None where the run is being ended."""
        delivery = self._delivery
        if delivery.step.always or delivery.store.state(delivery.run_id) != RunState.RUNNING:
            return None
        info, seconds = as_json({"unknown": why, "what": ASKED}), delivery.store.settings.ask_timeout
        if not delivery.store.park(delivery.run_id, delivery.step_id, "", grant.fence, seconds, info, ASKED):
            raise Refused("another attempt holds the step now")
        delivery.store.suspend(delivery.run_id, "unknown", why)
        return WaitsOutside(ASKED)

    def service_answered(self, grant: Grant) -> None:
        """Close the breaker of the service, so that the runs that wait for it continue."""
        if service := self._service(grant):
            self._breakers.close(service)

    def _schedule(
        self,
        grant: Grant,
        delay: float,
        error: OperationError,
        *,
        parked: bool = True,
        counts: bool = False,
        ask_for: float | None = None,
        service: str = "",
    ) -> RetryScheduled | None:
        delivery = self._delivery
        grace = 0.0 if parked else delivery.store.settings.lease
        noted = delivery.wait_for_redis(
            lambda: delivery.store.retry(
                delivery.run_id, delivery.step_id, delivery.side, grant.fence, delay, grace, str(error)[:500],
                always=delivery.step.always, counts=counts, ask_for=ask_for, service=service,
            )
        )  # fmt: skip
        if noted == 0:
            raise Refused("another attempt holds the step now")
        if noted != 1:
            return None
        if parked:
            delivery.store.look_at(delivery.run_id, delivery.store.now() + round(delay * 1000), sooner=True)
        return RetryScheduled(delay, parked, str(error))

    def _suspend(self, service: str, decision: BreakerDecision) -> None:
        delivery = self._delivery
        delivery.store.suspend(delivery.run_id, "breaker", decision.why, service=service)
        self._breakers.wait(service, delivery.run_id)
        delivery.store.look_at(delivery.run_id, decision.until, sooner=True)

    @property
    def _must_run(self) -> bool:
        """An always step runs whether or not its service is down."""
        return self._delivery.step.always and not self._delivery.side

    def _service(self, grant: Grant | None = None) -> str:
        found = grant.service if grant is not None else ""
        return found or service_of(self._delivery.operation, self._delivery.host)

    @cached_property
    def _breakers(self) -> Breakers:
        return Breakers(self._delivery.store)
