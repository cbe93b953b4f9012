"""The `compose.*` operations: to import this is to have their implementations."""

from longshore.tasks.compose import down, images, looks, power, programs, revisions, rollback, up

__all__ = ["down", "images", "looks", "power", "programs", "revisions", "rollback", "up"]
