"""The `stacks.*` operations. Importing this package registers their implementations."""

from longshore.tasks.operations.stacks import inspect_host, inventory, restart, start_facts

__all__ = ["inspect_host", "inventory", "restart", "start_facts"]
