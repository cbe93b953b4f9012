"""The `job.*` operations. Importing this package registers their implementations."""

from longshore.tasks.operations.jobs import discovery, log_follower, snapshot, stack, worker

__all__ = ["discovery", "log_follower", "snapshot", "stack", "worker"]
