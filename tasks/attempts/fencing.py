"""The fence of an attempt on its host: no superseded attempt acts, and a lost write of Redis is noticed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any

from billiard.process import current_process

from longshore.orchestration.store.records import Grant
from longshore.tasks.attempts.delivery import Delivery, Refused
from longshore.tasks.attempts.receipts import Ledger, Receipt, StaleAttempt
from longshore.tasks.implementation import Context
from longshore.tasks.loaded_runs import LOST_WRITES

log = logging.getLogger(__name__)

#: Seconds that an attempt waits for a superseded one to release the receipt.
_ZOMBIE_TIMEOUT = 30.0


class Fence:
    """Keeps a receipt beside each effect (`longshore.tasks.attempts.receipts`)."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    @contextlib.contextmanager
    def receipt(self, grant: Grant, context: Context) -> Iterator[tuple[Receipt | None, dict[str, Any] | None]]:
        """Hold the receipt during the effect; gives it, and the outcome of an attempt that could not record its own.

        Raises Refused where a later attempt has acted here.
        """
        delivery = self._delivery
        if not delivery.step.fenced:
            yield None, None
            return
        receipt = self._ledger.receipt(
            delivery.run_id,
            delivery.loaded.instance_id,
            context.part,
            context.fence,
            delivery.side,
            epoch=grant.epoch,
            alone=_prefork(),
        )
        context.began = receipt.began
        with contextlib.ExitStack() as stack:
            try:
                found = stack.enter_context(receipt.held(context.remaining(_ZOMBIE_TIMEOUT), context.check))
            except StaleAttempt:
                raise Refused("a later attempt has acted on this host") from None
            except OSError as error:
                _warn_once(f"receipts cannot be written, so a stopped worker that wakes up is not fenced: {error}")
                yield None, None
                return
            if receipt.earlier > grant.previous:
                # Each attempt is recorded before it leaves a receipt.
                self._suspend(grant, 0, "this host has the receipt of an attempt that the record does not have")
            yield receipt, found

    def require_newest(self, grant: Grant) -> None:
        """Suspend the run and raise Refused where its record is older than this host has seen; nothing is done yet."""
        delivery = self._delivery
        if not delivery.step.fenced:
            return
        with contextlib.suppress(OSError):
            known = self._ledger.version(delivery.run_id, delivery.loaded.instance_id)
            # A parallel step may have noted a later version since the claim.
            if grant.version < known and delivery.store.version(delivery.run_id) < known:
                self._suspend(grant, known, f"version {known} was seen before, and the record has {grant.version}")
        self.note_version(grant.version)

    def note_version(self, version: int) -> None:
        if self._delivery.step.fenced:
            with contextlib.suppress(OSError):
                self._ledger.seen(self._delivery.run_id, self._delivery.loaded.instance_id, version)

    def _suspend(self, grant: Grant, known: int, what: str) -> None:
        delivery = self._delivery
        why = f"{LOST_WRITES}: step {delivery.step.name}: {what}"
        # The run is held first: each transition brings its version nearer to the lost one.
        delivery.store.suspend(delivery.run_id, "regressed", why, version=known)
        delivery.store.retry(delivery.run_id, delivery.step_id, delivery.side, grant.fence, 0.0, 0.0, why, counts=False)
        raise Refused(why)

    @cached_property
    def _ledger(self) -> Ledger:
        settings = self._delivery.store.settings
        return Ledger(settings.state_dir, settings.ledger_name)


class NoFence(Fence):
    """For runs in memory: no process survives another."""

    @contextlib.contextmanager
    def receipt(self, grant: Grant, context: Context) -> Iterator[tuple[None, None]]:
        yield None, None

    def require_newest(self, grant: Grant) -> None:
        return

    def note_version(self, version: int) -> None:
        return


def _prefork() -> bool:
    """Whether this process runs one step at a time, so that it can be killed for that step."""
    return bool(getattr(current_process(), "daemon", False))


@cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
