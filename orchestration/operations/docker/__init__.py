"""The `docker.*` operations: containers, images, networks and volumes of an engine."""

from longshore.orchestration.operations.docker import containers, gc, images, looks, programs, stores

__all__ = ["containers", "gc", "images", "looks", "programs", "stores"]
