"""The `deployed.*` operations: to import this is to have their implementations."""

from longshore.tasks.deployed import look, restart, starts, survey

__all__ = ["look", "restart", "starts", "survey"]
