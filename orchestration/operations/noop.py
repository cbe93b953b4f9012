"""An operation without effects, for simulations, examples and benchmarks."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo, register


class NoopParams(Params):
    """The operation is for examples, tests and benchmarks."""

    sleep: Duration = Field(0.0, description="Time that the step takes")
    fail: bool | str = Field(default=False, description="true, or the text of an error: the step fails")
    changed: bool = Field(default=True, description="Whether the step is changed")
    data: dict[str, Any] = Field({}, description="The result")


class NoopResult(Result):
    """The given `data`."""


NOOP = register(
    name="noop.execute",
    params=NoopParams,
    result=NoopResult,
    queue="noop",
    kind=Kind.ACTS,
    undo=Undo.FULL,
    effect=False,
    summary="Have no effect: sleep, fail, or return the given data",
    about=About(
        changed="the parameter `changed` is true",
        undo="has no effect",
        duplicate="sleeps, fails or returns again",
        fails="if `fail` is set",
        dry_run="shows whether the step fails",
    ),
)
