"""Which errors of built-in operations are retried: the table of docs/concepts/plan-language.md."""

from __future__ import annotations

from typing import Any

import pytest

from longshore.orchestration import Plan
from longshore.orchestration.errors import InDoubt, OperationError, Permanent, Preflight, Transient, Unsuccessful
from longshore.orchestration.testing import Sandbox
from longshore.tasks.implementation import implementation


@pytest.mark.parametrize(
    ("error", "without", "with_retry"),
    [
        (Transient("busy"), 4, 3),
        (Unsuccessful("exit code 1"), 1, 3),
        (ZeroDivisionError("a bug"), 1, 3),
        (OperationError("the engine reports an error"), 1, 1),
        (Preflight("no such image"), 1, 1),
        (InDoubt("no response"), 1, 1),
        (Permanent("declined"), 1, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_error_of_a_built_in_operation_is_retried_as_documented(
    error: Exception, without: int, with_retry: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(implementation("noop.execute"), "act", fails, raising=False)
    attempts = []
    for retries in (None, 2):
        plan = Plan("p")
        step = plan.step("a", "noop.execute")
        if retries:
            step.retry(retries)
        attempts.append(Sandbox().run(plan).step("a").attempts)

    assert attempts == [without, with_retry]
