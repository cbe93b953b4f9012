"""Wide fan-outs, whose units are dispatched in parts."""

from __future__ import annotations

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.store.run_store import Store
from longshore.orchestration.testing import Sandbox


def test_wide_fan_out_beside_many_steps_is_dispatched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit waits for the end of another unit, for any number of other steps in the level."""
    parts: list[int] = []
    dispatch_units = Store.dispatch_units

    def record_units(store: Store, run_id: str, index: int) -> list[StepId]:
        units = dispatch_units(store, run_id, index)
        parts.append(len(units))
        return units

    monkeypatch.setattr(Store, "dispatch_units", record_units)
    plan = Plan("wide")
    for number in range(20):
        plan.step(f"s{number}", "noop.execute")
    plan.step("each", "noop.execute").foreach(list(range(1010)))
    assert Sandbox().run(plan).state == "succeeded"
    assert parts == [10, 0]
