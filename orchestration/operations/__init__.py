"""The catalogue of operations: names, parameters, results and promises, without their doing."""

from longshore.orchestration.operations import approval, celery, command, compose, docker, file, noop, subplan
from longshore.orchestration.operations.base import (
    BACKOFF,
    NO_RETRY,
    Kind,
    Operation,
    Params,
    Result,
    Retry,
    Undo,
    Waits,
    all_operations,
    find,
    known,
    register,
)

__all__ = [
    "BACKOFF",
    "NO_RETRY",
    "Kind",
    "Operation",
    "Params",
    "Result",
    "Retry",
    "Undo",
    "Waits",
    "all_operations",
    "approval",
    "celery",
    "command",
    "compose",
    "docker",
    "file",
    "find",
    "known",
    "noop",
    "register",
    "subplan",
]
