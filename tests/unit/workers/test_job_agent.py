"""The search for orphaned job containers."""

from __future__ import annotations

import threading

import pytest

from longshore.orchestration.settings import Settings
from longshore.tasks.host import facts
from longshore.tasks.simulation.memory_store import MemoryStore
from longshore.workers.job_agent import JobWatch


@pytest.mark.parametrize(("engine", "searches"), [("27.0.1", 1), ("", 1), (None, 0)])
def test_hosts_without_an_engine_are_not_searched(
    engine: str | None, searches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_engine", {"docker": engine})
    watch = JobWatch(MemoryStore(Settings()), "web1", ("docker",))
    found: list[str] = []
    monkeypatch.setattr(watch, "finish", lambda: found.append("searched"))

    watch.poll()
    for thread in threading.enumerate():
        if thread.name.startswith("longshore-jobs"):
            thread.join()

    assert len(found) == searches
