"""Tests of plans and custom operations without a server, a worker or an engine.

    from longshore.orchestration.testing import Sandbox

    def test_a_failed_migration_starts_the_shop_again():
        sandbox = Sandbox()
        sandbox.fail("migrate")
        report = sandbox.run(plan, {"tag": "2.1"})
        assert report.state == "undone"
        assert report.step("start").status == "changed"

Reducer, scripts, coordinator and runner are those of production; the Redis server (fakeredis), the engine, the messages
and the clock are in memory. Install with `pip install 'longshore[testing]'`. With pytest, the fixture
`longshore_sandbox` is a new Sandbox for each test.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: The implementation is in the package `longshore.tasks`, which only machines with workers have.
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


__all__ = sorted(_HOMES)  # noqa: PLE0605


def __dir__() -> list[str]:
    return __all__
