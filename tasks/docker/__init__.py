"""The `docker.*` operations: to import this is to have their implementations."""

from longshore.tasks.docker import containers, images, looks, programs, run, spec, stores

__all__ = ["containers", "images", "looks", "programs", "run", "spec", "stores"]
