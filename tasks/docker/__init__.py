"""The `docker.*` operations: to import this is to have their implementations."""

from longshore.tasks.docker import changes, containers, gc, images, looks, programs, registry, run, spec, stores

__all__ = ["changes", "containers", "gc", "images", "looks", "programs", "registry", "run", "spec", "stores"]
