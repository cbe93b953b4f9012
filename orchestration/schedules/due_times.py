"""When what starts by itself is planned: cron or an interval, in a time zone; and what was dealt with already.

Shared by the schedules of plans and of jobs. Beat sends a tick every few seconds, and whichever worker takes it starts
what is due: what counts is what is written here, never when a message came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longshore.orchestration.language.schedule import ON_TIME

if TYPE_CHECKING:
    from longshore.orchestration.store.connection import Connection


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


class ScheduleMarks:
    """The marks of an installation, and what of it somebody has paused. Plain commands: to do a thing twice is to
    find it done.
    """

    def __init__(self, store: Connection) -> None:
        self._store = store

    def marks(self) -> dict[str, Mark]:
        found = self._store.call(self._store.client.hgetall, self._store.keys.schedule_marks)
        return {key: mark for key, text in found.items() if (mark := Mark.known(text)) is not None}

    def put(self, key: str, mark: Mark) -> None:
        self._store.call(self._store.client.hset, self._store.keys.schedule_marks, key, mark.text())

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._store.call(self._store.client.hdel, self._store.keys.schedule_marks, key)

    # --- pauses -----------------------------------------------------------------------------------

    def paused(self) -> dict[str, str]:
        """What is paused, and by whom."""
        return dict(self._store.call(self._store.client.hgetall, self._store.keys.paused_schedules))

    def pause(self, key: str, who: str) -> None:
        """Its planned times pass until it is resumed; none of them counts as missed."""
        self._store.call(self._store.client.hset, self._store.keys.paused_schedules, key, who)

    def resume(self, key: str) -> bool:
        """Whether it was paused."""
        return bool(self._store.call(self._store.client.hdel, self._store.keys.paused_schedules, key))
