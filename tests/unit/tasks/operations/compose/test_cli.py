"""Errors of the Compose command line."""

from __future__ import annotations

import pytest

from longshore.orchestration.errors import OperationError, Preflight
from longshore.tasks.host.machine import process
from longshore.tasks.operations.compose.cli import _classified


@pytest.mark.parametrize(
    ("stderr", "kind", "says"),
    [
        ("docker: unknown command: docker compose\n\nRun 'docker --help'\n", Preflight, "not installed"),
        ("docker: 'compose' is not a docker command.\nSee 'docker --help'\n", Preflight, "not installed"),
        ("Error response from daemon: port is already allocated\n", OperationError, "stop the process"),
    ],
)  # fmt: skip
def test_error_of_compose_names_its_cause(stderr: str, kind: type[OperationError], says: str) -> None:
    error = _classified("config", process.Completed(1, "", stderr, truncated=False, duration_ms=1))

    assert type(error) is kind
    assert says in str(error)
