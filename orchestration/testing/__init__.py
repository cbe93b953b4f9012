"""To try plans and operations of one's own without a server, a worker or an engine.

    from longshore.orchestration.testing import Bench

    def test_a_failed_migration_starts_the_shop_again():
        bench = Bench()
        bench.fail("migrate")
        report = bench.run(plan, {"tag": "2.1"})
        assert report.state == "undone"
        assert report.step("start").status == "changed"

The reducer, the scripts, the driver and the runner are those of production; the server (fakeredis), the engine,
the messages and the clock are in memory. `pip install 'longshore[testing]'`. With pytest, `longshore_bench` is
a fixture that gives a fresh one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: The doing lies in a package that only machines with workers need.
_HOMES = {
    "Sandbox": "simulation.sandbox",
    "Done": "simulation.sandbox",
    "MemoryEngine": "simulation.engine",
    "SimulatedFailure": "simulation.failure_matrix",
    "simulate": "simulation.failure_matrix",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"longshore.tasks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
