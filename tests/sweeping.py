"""One sweep of a coordinator, as the thread of a worker's main process runs it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.control.sweep import Sweep

_sweeps: WeakKeyDictionary[Coordinator, Sweep] = WeakKeyDictionary()


def sweep(coordinator: Coordinator) -> int:
    """Sweep once; return how many runs were advanced. A coordinator keeps its sweep."""
    return _sweeps.setdefault(coordinator, Sweep(coordinator, patience=0.0)).run()
