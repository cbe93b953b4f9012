"""An operation without effects, for simulations, examples and benchmarks."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import Kind, Operation, Params, Result, Undo, register


class NoopParams(Params):
    """`fail` makes the step fail, with the given text as its error."""

    sleep: Duration = 0.0
    fail: bool | str = False
    changed: bool = True
    data: dict[str, Any] = {}


NOOP = register(
    Operation(
        name="noop.execute",
        params=NoopParams,
        result=Result,
        queue="noop",
        kind=Kind.ACTS,
        undo=Undo.FULL,
        effect=False,
        summary="Have no effect: sleep, fail, or return the given data",
    )
)
