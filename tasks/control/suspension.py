"""Unsuspend runs that wait for an unavailable service."""

from __future__ import annotations

import random

from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.states import RunState
from longshore.orchestration.store.breakers import Breakers
from longshore.orchestration.store.records import RunSnapshot
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.transitions import RunRecord
from longshore.tasks.control.dispatch import in_flight
from longshore.tasks.crash_points import point


def unsuspend_if_possible(
    store: Store, breakers: Breakers, run_id: str, plan: CompiledPlan, run: RunRecord, found: RunSnapshot
) -> tuple[bool, int | None]:
    """Unsuspend a run whose service is back, or that is the half-open trial of it.

    Returns whether the run was unsuspended and, where its breaker refuses, the time of the next check, ms.
    """
    if run.state is not RunState.SUSPENDED or found.fields.get("hold") != "breaker":
        return False, None
    service = found.fields.get("service", "")
    verdict = breakers.ask(service, run_id)
    if not verdict.allowed:
        breakers.wait(service, run_id)
        store.look_at(run_id, verdict.until, sooner=True)
        return False, verdict.until
    side, ids = in_flight(store, run_id, plan, run)
    # Spread the runs over time; the half-open trial begins now.
    delay = 0.0 if verdict.probe else store.settings.retry_spread * random.random()  # noqa: S311
    lifted = store.unsuspend(run_id, "breaker", run.epoch, side, ids, delay=delay)
    store.look_at(run_id, store.now() + round(1000 * delay), sooner=True)
    point("run.lifted")
    return lifted, None
