"""The context that an operation gets for one attempt: deadline, cancellation, logs, locks, earlier steps."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from longshore.orchestration.authoring.context import Context, HostFacts, current
from longshore.orchestration.errors import LongshoreError, StoreUnavailable
from longshore.orchestration.monitoring.output import pass_on
from longshore.orchestration.plans.compiled import unit_of
from longshore.orchestration.runs import report
from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.states import RunState
from longshore.orchestration.store.caches import Caches
from longshore.orchestration.store.locks import Holder, Locks
from longshore.orchestration.store.objects import Objects
from longshore.orchestration.store.records import Grant
from longshore.tasks.attempts.delivery import Delivery
from longshore.tasks.attempts.run_secrets import redaction_of
from longshore.tasks.host.engine.calls import raw_client
from longshore.tasks.host.engine.factory import engine_url
from longshore.tasks.host.facts import facts, labels

log = logging.getLogger(__name__)

#: Seconds between two reads of the run's state.
_STOP_POLL = 0.5


def context_of(delivery: Delivery, grant: Grant) -> Context:
    """The context of a claimed attempt; its deadline begins now."""
    # A file, or the answer of a service, can hold a secret that another step of the run names.
    delivery.redaction = redaction_of(delivery.loaded)
    context = Context(
        run_id=delivery.run_id,
        step=delivery.step.name,
        plan=delivery.plan.plan.name,
        attempt=grant.attempt,
        fence=int(grant.fence),
        unit=unit_of(delivery.step_id),
        item=json.loads(grant.item) if grant.item else None,
        host=HostFacts(delivery.host, labels(), facts()),
        deadline=time.monotonic() + delivery.step_timeout,
        has_upstream=bool(delivery.step.needs),
        asked_to_stop=_asked_to_stop(delivery),
        log=partial(_log, delivery),
        printed=partial(_printed, delivery),
        renew=partial(_renew, delivery),
        results=_EarlierSteps(delivery),
        files=delivery.loaded.file,
        objects=lambda: Objects(delivery.store),
        caches=lambda: Caches(delivery.store),
        make_engine=_engine,
    )
    context.lock = partial(_lock, delivery, grant, context)
    current.set(context)
    return context


def _lock(
    delivery: Delivery, grant: Grant, context: Context, name: str, what: str
) -> contextlib.AbstractContextManager[None]:
    return Locks(delivery.store).hold(
        name,
        what,
        run=delivery.run_id,
        step=context.part,
        host=delivery.host,
        why=delivery.operation.name,
        fence=int(grant.fence),
        check=context.check,
        sleep=context.sleep,
        waits=partial(_log_wait, delivery),
    )


def _log_wait(delivery: Delivery, other: Holder) -> None:
    text = f"{other.what} is held by run {other.run} step {other.step} on {other.host}"
    log.info("run %s step %s waits: %s", delivery.run_id, delivery.step.name, text)
    _log(delivery, f"waits: {text}")


def _renew(delivery: Delivery) -> bool:
    """Extend the lease of this attempt; False where another attempt holds the step."""
    try:
        return delivery.store.renew(delivery.run_id, [(f"{delivery.side}{delivery.step_id}", delivery.owner)]) > 0
    except StoreUnavailable:
        return True  # the lease decides


def _log(delivery: Delivery, text: str) -> None:
    _printed(delivery, "", text.splitlines())


def _printed(delivery: Delivery, stream: str, lines: Sequence[str]) -> None:
    pass_on()
    log_output(delivery, stream, lines)


def log_output(delivery: Delivery, stream: str, lines: Sequence[str]) -> None:
    """Add lines to the output of the step, without secrets. A step does not fail for its output."""
    with contextlib.suppress(StoreUnavailable):
        redacted = [delivery.redaction.text(line) for line in lines]
        delivery.store.add_log(delivery.run_id, delivery.step_id, redacted, stream)


def _asked_to_stop(delivery: Delivery) -> Callable[[], bool]:
    """A function that tells whether the run is being ended; reads Redis every half second at most."""
    read_at = time.monotonic()
    stop = False

    def ask() -> bool:
        nonlocal read_at, stop
        if not stop and not delivery.step.always and time.monotonic() - read_at >= _STOP_POLL:
            read_at = time.monotonic()
            with contextlib.suppress(LongshoreError):
                stop = delivery.store.state(delivery.run_id) == RunState.ABORTING
        return stop

    return ask


class _EarlierSteps(Mapping[str, StepReport]):
    """The reports of the steps before one, each read on access."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    @cached_property
    def _names(self) -> dict[str, int]:
        plan = self._delivery.plan
        return {plan.steps[i].name: i for i in sorted(plan.upstream(self._delivery.index))}

    def __getitem__(self, name: str) -> StepReport:
        index, delivery = self._names[name], self._delivery
        return report.read(delivery.store, delivery.run_id, delivery.plan, [index])[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _engine() -> Any:
    return raw_client(engine_url())
