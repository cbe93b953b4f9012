"""Schedules of plans: cron or interval, as written in settings or in a plan."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from longshore.orchestration.language.durations import Duration

Overlap = Literal["queue", "skip", "cancel_running"]
Missed = Literal["skip", "once", "all"]
#: Short forms of a schedule.
DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: Tolerance in seconds for a start to count as on time, or two ticks if longer.
ON_TIME = 60.0
#: The most missed times that are caught up, the latest ones.
CAUGHT_UP = 100
#: First and last search window for planned times before now, in ms: an hour, and about a century.
_WINDOW, _FARTHEST = 3_600_000, 100 * 366 * 86_400_000
#: The longest prefix of a run id before the planned time, in characters.
_LONGEST = 108


def parse_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{text!r} is not a time zone") from None
    return text


def parse_cron(text: str) -> str:
    """Validate five cron fields, with names, ranges, steps and `L`, or a descriptor. Raises ValueError."""
    written = text.strip()
    if written.startswith("@"):
        if written.lower() not in DESCRIPTORS:
            raise ValueError(f"{written!r} is not one of {', '.join(DESCRIPTORS)}")
        return DESCRIPTORS[written.lower()]
    fields = written.split()
    if len(fields) != 5:
        raise ValueError(f"{written!r} has {len(fields)} fields; a schedule has 5: minute hour day month weekday")
    try:
        CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"{written!r} is not a valid schedule: {str(error).lower()}") from None
    return " ".join(fields)


def by_cron(cron: str, zone: str, after: int, until: int) -> list[int]:
    """Planned times in (after, until], ms since 1970, the latest hundred."""
    # Search backwards in growing windows, as a period of decades would enumerate every minute.
    window = _WINDOW
    while True:
        begin = max(after, until - window)
        found = _by_cron(cron, zone, begin, until)
        if begin == after or len(found) == CAUGHT_UP or window > _FARTHEST:
            return found
        window *= 16


def _by_cron(cron: str, zone: str, after: int, until: int) -> list[int]:
    found: deque[int] = deque(maxlen=CAUGHT_UP)
    for moment in CronSim(cron, datetime.fromtimestamp(after / 1000, UTC).astimezone(ZoneInfo(zone))):
        at = round(moment.timestamp() * 1000)
        if at > until:
            break
        if at > after:
            found.append(at)
    return list(found)


def by_interval(every: float, after: int, until: int) -> list[int]:
    """Planned times of an interval, counted from 1970 so that all beats compute the same times."""
    step = max(1, round(every * 1000))
    last = until // step
    first = max(after // step + 1, last - CAUGHT_UP + 1)
    return [number * step for number in range(first, last + 1)]


def next_by_cron(cron: str, zone: str, now: int) -> datetime | None:
    """The next planned time; None if there is none."""
    return next(iter(CronSim(cron, datetime.fromtimestamp(now / 1000, UTC).astimezone(ZoneInfo(zone)))), None)


def chosen(missed: Missed, times: Sequence[int], now: int, on_time: float = ON_TIME) -> list[int]:
    """The missed times to start now, eldest first."""
    if missed == "all":
        return list(times)
    if missed == "once":
        return list(times[-1:])
    return [at for at in times[-1:] if now - at <= on_time * 1000]


def run_id(name: str, at: int) -> str:
    """Run id from schedule and planned time, so that concurrent beats or ticks start one run."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    moment = datetime.fromtimestamp(at / 1000, UTC)
    fraction = f"{at % 1000:03d}" if at % 1000 else ""
    return f"{name}.{moment:%Y%m%dT%H%M%S}{fraction}Z"


#: The name of a schedule is part of its run ids; only ids of jobs contain an `@`.
ScheduleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
#: Number of planned times that validation examines.
_EXAMINED = 100


class Scheduled(BaseModel):
    """A schedule of a plan. Either `cron` or `every` is required."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    plan: str = Field(
        "", description="In LONGSHORE_SCHEDULES: the name or file of the plan. A schedule in a plan starts this plan"
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of the plan")
    cron: Annotated[str, BeforeValidator(parse_cron)] | None = Field(
        None, description="Five cron fields, or a descriptor such as @daily"
    )
    every: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="Interval between starts, counted from 1970 (UTC): 1h starts on the hour"
    )
    timezone: Annotated[str, BeforeValidator(parse_zone)] = Field("UTC", description="Time zone of `cron`")
    jitter: Duration = Field(0.0, description="The longest random delay of each start")
    overlap: Overlap = Field(
        "queue",
        description="If an earlier run has not ended at a planned time, the new run waits (queue), is not started "
        "(skip), or cancels the earlier run (cancel_running)",
    )
    missed: Missed = Field(
        "once",
        description="After planned times have passed without a worker or without a beat, a run starts for none of "
        "them (skip), for the latest one (once), or for each of the latest hundred (all)",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either cron or every")
        if self.jitter and self.jitter >= self._shortest():
            raise ValueError("jitter must be shorter than the time between two starts")
        return self

    def _shortest(self) -> float:
        """The shortest time between consecutive starts in seconds, over the next hundred."""
        if self.every is not None:
            return self.every
        times: list[int] = []
        at = 0
        while len(times) < _EXAMINED and (found := self.next(at)) is not None:
            times.append(at := found)
        return min(((b - a) / 1000 for a, b in pairwise(times)), default=float("inf"))

    def as_text(self) -> str:
        """Short description of the schedule."""
        return f"{self.cron} {self.timezone}" if self.cron else f"every {self.every:g}s"

    def planned(self, after: int, until: int) -> list[int]:
        if self.every is not None:
            return by_interval(self.every, after, until)
        return by_cron(self.cron or "", self.timezone, after, until)

    def next(self, now: int) -> int | None:
        """The next planned time in ms since 1970; None if there is none."""
        if self.every is not None:
            step = max(1, round(self.every * 1000))
            return (now // step + 1) * step
        found = next_by_cron(self.cron or "", self.timezone, now)
        return None if found is None else round(found.timestamp() * 1000)

    def beat(self) -> Any:
        """The schedule for Celery beat, in UTC. Beat may fire more often than a start is due, never less; the receiving
        task decides which starts are due.
        """
        from celery.schedules import ParseException, crontab, schedule  # noqa: PLC0415 - celery takes 0.1 s, which only beat needs

        if self.every is not None:
            return schedule(run_every=self.every)
        minute, hour, day, month, weekday = (self.cron or "").split()
        try:
            if self.timezone == "UTC" and not self.jitter and "L" not in day.upper() and "#" not in weekday:
                return crontab(minute, hour, weekday, day, month)
        except (ParseException, ValueError):
            pass
        return crontab()  # each minute
