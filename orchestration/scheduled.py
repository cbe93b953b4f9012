"""When a plan starts by itself, as it is written in a configuration or in a plan."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from longshore.orchestration import timing
from longshore.orchestration.durations import Duration
from longshore.orchestration.timing import Missed, Overlap

#: The name of a schedule is part of its runs' ids; an `@` is in those of jobs only.
ScheduleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
#: Planned times that are looked at.
_LOOKED_AT = 100


class Scheduled(BaseModel):
    """`cron` or `every`, one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    plan: str = Field("", description="A stored plan's name, or a file; in a plan it is that one")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters")
    cron: Annotated[str, BeforeValidator(timing.parse_cron)] | None = Field(
        None, description="Five fields, or @daily and its like"
    )
    every: Annotated[Duration, Field(gt=0)] | None = Field(None, description="An interval, counted from 1970")
    timezone: Annotated[str, BeforeValidator(timing.parse_zone)] = Field("UTC", description="Of the fields of cron")
    jitter: Duration = Field(0.0, description="Each start is held back by up to so long")
    overlap: Overlap = Field("queue", description="What becomes of a start while the one before it runs")
    missed: Missed = Field("once", description="Which of the times that nobody was there for are made up for")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give cron or every, one of them")
        if self.jitter and self.jitter >= self._shortest():
            raise ValueError("jitter must be shorter than the time between two starts")
        return self

    def _shortest(self) -> float:
        """Seconds between two planned times that follow each other, of the next hundred."""
        if self.every is not None:
            return self.every
        times: list[int] = []
        at = 0
        while len(times) < _LOOKED_AT and (found := self.next(at)) is not None:
            times.append(at := found)
        return min(((b - a) / 1000 for a, b in pairwise(times)), default=float("inf"))

    def said(self) -> str:
        """The times that it means, in short."""
        return f"{self.cron} {self.timezone}" if self.cron else f"every {self.every:g}s"

    def planned(self, after: int, until: int) -> list[int]:
        if self.every is not None:
            return timing.by_interval(self.every, after, until)
        return timing.by_cron(self.cron or "", self.timezone, after, until)

    def next(self, now: int) -> int | None:
        """ms since 1970; None where it never comes."""
        if self.every is not None:
            step = max(1, round(self.every * 1000))
            return (now // step + 1) * step
        found = timing.next_by_cron(self.cron or "", self.timezone, now)
        return None if found is None else round(found.timestamp() * 1000)

    def beat(self) -> Any:
        """What Celery's beat, whose zone is UTC, goes by. It may fire more often than a start is due, never less: which
        are due is decided by whoever is told.
        """
        from celery.schedules import ParseException, crontab, schedule  # noqa: PLC0415 - only beats need it

        if self.every is not None:
            return schedule(run_every=self.every)
        minute, hour, day, month, weekday = (self.cron or "").split()
        try:
            if self.timezone == "UTC" and not self.jitter and "L" not in day.upper() and "#" not in weekday:
                return crontab(minute, hour, weekday, day, month)
        except (ParseException, ValueError):
            pass
        return crontab()  # each minute
