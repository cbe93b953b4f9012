"""The units of fanned-out steps. A wide fan-out is stored and dispatched in parts: a long script blocks Redis."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from longshore.orchestration.language.guards import GuardDecision, Unit
from longshore.orchestration.plans.compiled import StepId, as_id
from longshore.orchestration.store.indices import Indices
from longshore.orchestration.transitions import RunRecord

#: Units that one script stores. The scripts dispatch at most as many; see `prelude.lua`.
UNITS_AT_ONCE = 1000


def fan_out(index: int, decision: GuardDecision) -> list[object]:
    """The arguments of `open_level` for a step that is fanned out; without the items of a wide one."""
    units = decision.units or ()
    skipped = [unit for unit in units if unit.skip]
    items = () if len(units) > UNITS_AT_ONCE else units
    flat: list[object] = ["x", index, len(units), decision.at_once or len(units), decision.tolerated, decision.canary]
    flat += [len(skipped), len(items)]
    flat += [part for unit in skipped for part in (unit.item, unit.host, unit.skip)]
    return flat + [part for unit in items for part in (unit.item, unit.host)]


class FanOut(Indices):
    """Stores and dispatches units. Methods raise StoreUnavailable where Redis does not answer."""

    def store_wide(self, run_id: str, run: RunRecord, fanned: Mapping[int, GuardDecision]) -> list[object] | None:
        """Store the items of wide fan-outs, under a token of this decision.

        Returns index, token and number of units for each; None where a concurrent transition or decision was first.
        """
        stored: list[object] = []
        for index, decision in fanned.items():
            units = decision.units or ()
            if len(units) > UNITS_AT_ONCE:
                token = secrets.token_hex(8)
                if not self._store_units(run_id, run, index, token, units):
                    return None
                stored += [index, token, len(units)]
        return stored

    def _store_units(self, run_id: str, run: RunRecord, index: int, token: str, units: Sequence[Unit]) -> bool:
        for first in range(0, len(units), UNITS_AT_ONCE):
            items = [part for unit in units[first : first + UNITS_AT_ONCE] for part in (unit.item, unit.host)]
            args = (run.state, run.level, run.epoch, index, token, first, *items)
            if not self._run("store_units", run_id, *args):
                return False
        return True

    def dispatch_units(self, run_id: str, index: int) -> list[StepId]:
        """Dispatch further units of a wide fan-out, and return them; none where all that may run now are dispatched."""
        return [as_id(unit) for unit in str(self._run("dispatch_units", run_id, index)).split()]
