"""The doing: Celery tasks, and the implementations of the operations, one module a family."""
