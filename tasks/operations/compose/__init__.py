"""The `compose.*` operations: to import this is to have their implementations."""

from longshore.tasks.operations.compose import down, images, lifecycle, programs, queries, revisions, rollback, up

__all__ = ["down", "images", "lifecycle", "programs", "queries", "revisions", "rollback", "up"]
