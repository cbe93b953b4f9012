"""The catalogue of operations: names, parameters, results and promises, without their doing."""

from longshore.orchestration.operations import command, compose, docker, file, noop
from longshore.orchestration.operations.base import (
    NO_RETRY,
    Kind,
    Operation,
    Params,
    Result,
    Retry,
    Undo,
    all_operations,
    find,
    register,
)

__all__ = [
    "NO_RETRY",
    "Kind",
    "Operation",
    "Params",
    "Result",
    "Retry",
    "Undo",
    "all_operations",
    "command",
    "compose",
    "docker",
    "file",
    "find",
    "noop",
    "register",
]
