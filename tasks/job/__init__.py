"""The `job.*` operations: to import this is to have their implementations."""

from longshore.tasks.job import follow, found, snapshot, stack, worker

__all__ = ["follow", "found", "snapshot", "stack", "worker"]
