"""Attempts that come again: after an error that passes, a service that is down, an outcome that is not known yet."""

from __future__ import annotations

import random
from functools import cached_property

from longshore.orchestration.errors import (
    Blocked,
    Delayed,
    OperationError,
)
from longshore.orchestration.operations import Retry
from longshore.orchestration.operations.base import service_of
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import BreakerDecision, Breakers
from longshore.orchestration.store.run_store import ASKED, Grant
from longshore.tasks.attempts.base import ClaimedStep, Refused, TryAgain, WaitsOutside, as_json
from longshore.tasks.crash_points import point

#: A shorter delay is a Celery retry with a countdown; a longer one is parked in Redis (SEMANTICS 14).
LONGEST_COUNTDOWN = 2.0


class RetryPolicy(ClaimedStep):
    """Notes in the record when it comes again, and raises TryAgain."""

    def _again(self, grant: Grant, side: str, policy: Retry, error: OperationError) -> None:
        """Note the retry and raise TryAgain; return where the run is ending, so that it is a failure."""
        delay = policy.delay(grant.tries, random.random())  # noqa: S311 - jitter
        self._once_more(grant, side, delay, error, parked=delay > LONGEST_COUNTDOWN, counts=True)

    def _wait_for_service(self, side: str) -> None:
        """Leave the step where it is while the service that it needs is down; raises Refused."""
        service = self._service()
        if not service or (self.step.always and not side):
            return
        verdict = self._breakers.ask(service, self.run_id)
        if not verdict.allowed:
            self._suspend(service, verdict)
            raise Refused(verdict.why)

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
        parked: bool = True,
        counts: bool = False,
        ask_for: float | None = None,
        service: str = "",
    ) -> None:
        """Note that it comes again and raise TryAgain; return where the run is ending, and where it was asked after
        for too long. What is not parked is sent by Celery itself.
        """
        grace = 0.0 if parked else self.store.settings.lease
        noted = self._patiently(
            lambda: self.store.retry(
                self.run_id, self.step_id, side, grant.fence, delay, grace, str(error)[:500],
                always=self.step.always, counts=counts, ask_for=ask_for, service=service,
            )
        )  # fmt: skip
        if noted == 0:
            raise Refused("the step is another attempt's now")
        if noted == 1:
            if parked:
                self.store.look_at(self.run_id, self.store.now() + round(delay * 1000), sooner=True)
            raise TryAgain(delay, parked=parked, error=str(error))

    def _ask_a_person(self, grant: Grant, why: str) -> None:
        """Have the step wait for a word on what became of it; returns where the run is ending."""
        if self.step.always or self.store.state(self.run_id) != RunState.RUNNING:
            return
        info, seconds = as_json({"unknown": why, "what": ASKED}), self.store.settings.ask_timeout
        if not self.store.park(self.run_id, self.step_id, "", grant.fence, seconds, info, ASKED):
            raise Refused("the step is another attempt's now")
        self.store.suspend(self.run_id, "unknown", why)
        raise WaitsOutside(ASKED)

    def _suspend(self, service: str, verdict: BreakerDecision) -> None:
        self.store.suspend(self.run_id, "breaker", verdict.why, service=service)
        self._breakers.wait(service, self.run_id)
        self.store.look_at(self.run_id, verdict.until, sooner=True)

    def _it_answers(self, grant: Grant) -> None:
        """The service was there: whoever waits for it may go on."""
        if service := self._service(grant):
            self._breakers.close(service)

    def _service(self, grant: Grant | None = None) -> str:
        found = grant.service if grant is not None else ""
        return found or service_of(self._operation(), self.host)

    @cached_property
    def _breakers(self) -> Breakers:
        return Breakers(self.store)
