"""A step that waits for a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import (
    NO_RETRY,
    READ_ONLY,
    Kind,
    Params,
    Result,
    Undo,
    Waits,
    register,
)


class TimerParams(Params):
    """Either `delay` or `until` is required."""

    delay: Duration | None = Field(None, description="Time from the dispatch of the step")
    until: AwareDatetime | None = Field(
        None,
        description="Time with its zone, such as 2030-01-31T08:00Z; if this time has passed, the step does not wait",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.delay is None) == (self.until is None):
            raise ValueError("needs either delay or until")
        return self

    def seconds(self) -> float:
        """The seconds from now until the end of the wait."""
        if self.until is not None:
            return max(0.0, (self.until - datetime.now(UTC)).total_seconds())
        return self.delay or 0.0


class TimerResult(Result):
    """No data."""


TIMER = register(
    name="timer.wait.execute",
    params=TimerParams,
    result=TimerResult,
    queue="control",
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    summary="Wait for some time or until a time, without occupying a worker",
    retry=NO_RETRY,
    waits=Waits.TIME,
    about=replace(READ_ONLY, duplicate="waits again", dry_run="shows the wait"),
)
