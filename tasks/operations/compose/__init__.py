"""The `compose.*` operations. Importing this package registers their implementations."""

from longshore.tasks.operations.compose import down, images, lifecycle, programs, queries, revisions, rollback, up

__all__ = ["down", "images", "lifecycle", "programs", "queries", "revisions", "rollback", "up"]
