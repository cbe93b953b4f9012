"""The `deployed.*` operations: to import this is to have their implementations."""

from longshore.tasks.deployed import look, restart, starts, survey

__all__ = ["inputs", "look", "restart", "starts", "survey"]
