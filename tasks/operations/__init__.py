"""The implementations of the operations, one module or package a family."""

# Registers the implementation of the operations that an application defines.
from longshore.tasks.operations import functions

__all__ = ["functions"]
