"""The `docker.*` operations. Importing this package registers their implementations."""

from longshore.tasks.operations.docker import (
    containers,
    gc,
    images,
    networks_volumes,
    programs,
    queries,
    registry,
    run,
    spec,
    updates,
)

__all__ = [
    "containers",
    "gc",
    "images",
    "networks_volumes",
    "programs",
    "queries",
    "registry",
    "run",
    "spec",
    "updates",
]
