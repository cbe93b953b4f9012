"""Attempts that are fenced off at their target, and that notice what Redis has lost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any

from billiard.process import current_process

from longshore.orchestration.store.run_store import Grant
from longshore.tasks.attempts.base import ClaimedStep, Refused
from longshore.tasks.attempts.receipts import Ledger, Receipt, StaleAttempt
from longshore.tasks.implementation import Context
from longshore.tasks.loaded_runs import LOST_WRITES

log = logging.getLogger(__name__)

#: Seconds that an attempt waits for one before it to let go of its target.
_GHOST_PATIENCE = 30.0


class Fence(ClaimedStep):
    """Leaves a receipt beside what it does (`longshore.tasks.attempts.receipts`)."""

    @contextlib.contextmanager
    def _receipt(self, grant: Grant, context: Context) -> Iterator[tuple[Receipt | None, dict[str, Any] | None]]:
        """Hold the step's receipt while it is done or taken back; Refused where a later attempt has been here."""
        if not self.step.fenced:
            yield None, None
            return
        receipt = self._ledger.receipt(
            self.run_id,
            self.loaded.instance_id,
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
            except StaleAttempt:
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
            known = self._ledger.version(self.run_id, self.loaded.instance_id)
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
                self._ledger.seen(self.run_id, self.loaded.instance_id, version)


def _prefork() -> bool:
    """Whether this process does one step at a time, and may be ended for it."""
    return bool(getattr(current_process(), "daemon", False))


@cache
def _warned(text: str) -> None:
    log.warning("%s", text)


def _no_receipts(error: OSError) -> None:
    _warned(f"receipts cannot be written, so a stopped worker that wakes up is not fenced off: {error}")
