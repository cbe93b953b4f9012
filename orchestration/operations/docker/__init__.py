"""The `docker.*` operations: containers, images, networks and volumes of an engine."""

from longshore.orchestration.operations.docker import containers, gc, images, networks_volumes, programs, queries

__all__ = ["containers", "gc", "images", "networks_volumes", "programs", "queries"]
