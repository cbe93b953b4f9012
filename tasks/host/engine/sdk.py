"""The Docker SDK, an optional dependency that only a call of the engine imports."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import OperationError


def sdk() -> Any:
    """The package `docker`. Raises OperationError where it is not installed."""
    try:
        import docker  # noqa: PLC0415 - an extra; 0.17 s that a worker without an engine need not pay
    except ImportError as error:
        raise OperationError("the Docker SDK is missing", remedy="pip install 'longshore[docker]'") from error
    return docker
