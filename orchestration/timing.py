"""When what starts by itself is planned: cron or an interval, in a time zone; and what was dealt with already.

Shared by the schedules of plans and of jobs. Beat sends a tick every few seconds, and whichever worker takes it starts
what is due: what counts is what is written here, never when a message came.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

if TYPE_CHECKING:
    from longshore.orchestration.connection import Connection

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
#: Seconds after its planned time at which a start still is on time, or two ticks where those are longer.
ON_TIME = 60.0
#: Planned times that are caught up with at most, the latest.
CAUGHT_UP = 100
#: ms before now in which planned times are looked for, at first and at last: an hour, and about a century.
_WINDOW, _FARTHEST = 3_600_000, 100 * 366 * 86_400_000
#: Characters of a run id before its planned time.
_LONGEST = 108


def parse_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{text!r} is no time zone") from None
    return text


def parse_cron(text: str) -> str:
    """A schedule as five fields of cron, with names, ranges, steps and `L`. ValueError says what is wrong."""
    written = text.strip()
    if written.startswith("@"):
        if written.lower() not in DESCRIPTORS:
            raise ValueError(f"{written!r} is none of {', '.join(DESCRIPTORS)}")
        return DESCRIPTORS[written.lower()]
    fields = written.split()
    if len(fields) != 5:
        raise ValueError(f"{written!r} has {len(fields)} fields, and a schedule has 5: minute hour day month weekday")
    try:
        CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"{written!r} is no schedule: {str(error).lower()}") from None
    return " ".join(fields)


def by_cron(cron: str, zone: str, after: int, until: int) -> list[int]:
    """Planned times in (after, until], ms since 1970, the latest hundred."""
    # From the end: a mark or a jitter of decades would have each minute of them counted.
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
    """The same, each so many seconds, counted from 1970: two beats mean the same times."""
    step = max(1, round(every * 1000))
    last = until // step
    first = max(after // step + 1, last - CAUGHT_UP + 1)
    return [number * step for number in range(first, last + 1)]


def next_by_cron(cron: str, zone: str, now: int) -> datetime | None:
    """When it is planned next; None where that never comes."""
    return next(iter(CronSim(cron, datetime.fromtimestamp(now / 1000, UTC).astimezone(ZoneInfo(zone)))), None)


def chosen(missed: Missed, times: Sequence[int], now: int, on_time: float = ON_TIME) -> list[int]:
    """Which of the planned times that have passed are started now, eldest first."""
    if missed == "all":
        return list(times)
    if missed == "once":
        return list(times[-1:])
    return [at for at in times[-1:] if now - at <= on_time * 1000]


def run_id(name: str, at: int) -> str:
    """Of the schedule and the planned time: two beats, or two ticks at once, start one run."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    moment = datetime.fromtimestamp(at / 1000, UTC)
    fraction = f"{at % 1000:03d}" if at % 1000 else ""
    return f"{name}.{moment:%Y%m%dT%H%M%S}{fraction}Z"


@dataclass(frozen=True)
class Mark:
    """Up to when the planned times of something are dealt with; of which schedule."""

    until: int
    schedule: str

    def text(self) -> str:
        return f"{self.until} {self.schedule}"

    def as_of(self, now: int) -> Mark:
        """The mark itself, or one of now where it lies ahead: Redis's clock was set back since. A start that was made
        meanwhile is not made twice, for its run has the planned time in its id.
        """
        return self if self.until <= now + round(ON_TIME * 1000) else Mark(now, self.schedule)

    @classmethod
    def read(cls, text: str) -> Mark:
        until, _, schedule = text.partition(" ")
        return cls(int(until), schedule)

    @classmethod
    def known(cls, text: str) -> Mark | None:
        """None for a mark that cannot be read: its schedule begins anew."""
        try:
            return cls.read(text)
        except ValueError:
            return None


class Schedules:
    """The marks of an installation, and what of it somebody has paused. Plain commands: to do a thing twice is to
    find it done.
    """

    def __init__(self, store: Connection) -> None:
        self._store = store

    def marks(self) -> dict[str, Mark]:
        found = self._store.call(self._store.client.hgetall, self._store.keys.scheduled)
        return {key: mark for key, text in found.items() if (mark := Mark.known(text)) is not None}

    def put(self, key: str, mark: Mark) -> None:
        self._store.call(self._store.client.hset, self._store.keys.scheduled, key, mark.text())

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._store.call(self._store.client.hdel, self._store.keys.scheduled, key)

    # --- pauses -----------------------------------------------------------------------------------

    def paused(self) -> dict[str, str]:
        """What is paused, and by whom."""
        return dict(self._store.call(self._store.client.hgetall, self._store.keys.paused))

    def pause(self, key: str, who: str) -> None:
        """Its planned times pass until it is resumed; none of them counts as missed."""
        self._store.call(self._store.client.hset, self._store.keys.paused, key, who)

    def resume(self, key: str) -> bool:
        """Whether it was paused."""
        return bool(self._store.call(self._store.client.hdel, self._store.keys.paused, key))
