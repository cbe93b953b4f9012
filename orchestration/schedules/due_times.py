"""Marks in Redis of the planned times already handled, shared by the schedules of plans and of jobs.

Beat sends a tick every few seconds, and the worker that receives it starts the due runs. The marks decide which planned
times are due; the time at which a message arrives does not.
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
    """The time, ms since 1970, up to which the planned times of a schedule are handled, and its definition."""

    until: int
    schedule: str

    def text(self) -> str:
        return f"{self.until} {self.schedule}"

    def as_of(self, now: int) -> Mark:
        """The mark, or a mark of now if it lies in the future because Redis's clock was set back. No start is repeated,
        because the id of its run contains the planned time.
        """
        return self if self.until <= now + round(ON_TIME * 1000) else Mark(now, self.schedule)

    @classmethod
    def read(cls, text: str) -> Mark:
        until, _, schedule = text.partition(" ")
        return cls(int(until), schedule)

    @classmethod
    def read_or_none(cls, text: str) -> Mark | None:
        """The mark; None for an unreadable one, whose schedule begins anew."""
        try:
            return cls.read(text)
        except ValueError:
            return None


class ScheduleMarks:
    """The marks and the paused schedules of an installation. Plain commands, each of them idempotent."""

    def __init__(self, store: Connection) -> None:
        self._store = store

    def marks(self) -> dict[str, Mark]:
        found = self._store.call(self._store.client.hgetall, self._store.keys.schedule_marks)
        return {key: mark for key, text in found.items() if (mark := Mark.read_or_none(text)) is not None}

    def put(self, key: str, mark: Mark) -> None:
        self._store.call(self._store.client.hset, self._store.keys.schedule_marks, key, mark.text())

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._store.call(self._store.client.hdel, self._store.keys.schedule_marks, key)

    # --- pauses -----------------------------------------------------------------------------------

    def paused(self) -> dict[str, str]:
        """The keys of the paused schedules, each with the actor who paused it."""
        return dict(self._store.call(self._store.client.hgetall, self._store.keys.paused_schedules))

    def pause(self, key: str, who: str) -> None:
        """Pause a schedule; planned times during the pause do not count as missed."""
        self._store.call(self._store.client.hset, self._store.keys.paused_schedules, key, who)

    def resume(self, key: str) -> bool:
        """Resume a schedule; returns whether it was paused.

        Planned times of the pause are handled, also those that no tick has seen.
        """
        mark, now = self.marks().get(key), self._store.now()
        if mark is not None and mark.until < now and key in self.paused():
            self.put(key, Mark(now, mark.schedule))
        return bool(self._store.call(self._store.client.hdel, self._store.keys.paused_schedules, key))
