"""The `job.*` operations: to import this is to have their implementations."""

from longshore.tasks.operations.jobs import discovery, log_follower, snapshot, stack, worker

__all__ = ["discovery", "log_follower", "snapshot", "stack", "worker"]
