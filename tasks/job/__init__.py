"""The `job.*` operations: to import this is to have their implementations."""

from longshore.tasks.job import found, snapshot, stack, worker

__all__ = ["found", "snapshot", "stack", "worker"]
