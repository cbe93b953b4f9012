"""A sweep of a coordinator, as in the sweeper of a worker."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.control.sweep import Sweep

_sweeps: WeakKeyDictionary[Coordinator, Sweep] = WeakKeyDictionary()


def sweep(coordinator: Coordinator) -> int:
    """Sweep once, and return the number of advanced runs. Each coordinator has one `Sweep` object."""
    return _sweeps.setdefault(coordinator, Sweep(coordinator, patience=0.0)).run()
