"""The implementations of the operations, one module or package per family."""
