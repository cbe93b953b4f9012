"""Redis's clock, compared with one that cannot be set: a jump is noticed, logged, and taken out of what waits.

Each sweep compares how far Redis's clock has moved since the last one with how far this machine's own steady clock has.
The difference is a jump, whatever its direction; an outage of Redis or of all workers moves both clocks alike. The sum
of all jumps is kept in Redis, each run's record holds the sum up to which its times were moved, and `Store.shift` moves
the rest. What time alone decides is therefore decided by a sweep, right after it has compared the clocks.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.store.connection import as_number, milliseconds
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)

#: ms after which a sample that another process of this machine left is no measure: clocks drift.
_OLD = 3_600_000


@dataclass(frozen=True)
class Jumps:
    """How many were noted, and the sum of them, ms."""

    number: int = 0
    total: int = 0


@dataclass(frozen=True)
class _Sample:
    """Redis's clock, ms, and between which two times of the steady clock, ms, it was read; the jumps known then."""

    redis: int
    earliest: float
    latest: float
    jumps: Jumps

    def text(self) -> str:
        return f"{self.redis} {self.earliest} {self.latest} {self.jumps.number} {self.jumps.total}"

    @classmethod
    def read(cls, text: str) -> _Sample:
        redis, earliest, latest, number, total = text.split()
        return cls(int(redis), float(earliest), float(latest), Jumps(int(number), int(total)))


class Clock:
    """One sweeper's view of Redis's clock. Raises StoreUnavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last: _Sample | None = None
        #: The clock hash's field in which this machine keeps its last sample, so that a new process goes on from it.
        self._mine = f"sample:{_boot()}"
        #: How often hosts had been asked for receipts as of the last look: read with the rest, it costs nothing.
        self.asked = 0
        self._text: str | None = None

    @property
    def _tolerance(self) -> int:
        """Leases are renewed every third of their length: two thirds of silence can end one."""
        return milliseconds(self._store.settings.lease) // 2

    @property
    def jumps(self) -> Jumps:
        """All jumps as of the last look."""
        return self._last.jumps if self._last is not None else self.read_jumps()

    def read_jumps(self) -> Jumps:
        """The same, from Redis."""
        number, total = self._store.call(self._store.client.hmget, self._store.keys.clock, ("jumps", "jumped"))
        return Jumps(as_number(number) or 0, as_number(total) or 0)

    def look(self) -> bool:
        """Compare the clocks, and note that a sweeper is at work; whether leases may be judged now.

        After a time in which no worker swept, and after a jump, every worker has one whole lease to renew first
        (SEMANTICS 24).
        """
        tick, pause, sample = self._read()
        self._last = self._last or self._left(sample)
        if jump := self._jump(sample, tick):
            self._note(sample, jump)
            tick, pause, sample = self._read()
        lease, now, first = milliseconds(self._store.settings.lease), sample.redis, self._last is None
        gap = tick is not None and abs(now - tick) > self._tolerance
        marks: dict[str, int | str] = {"pause": now + lease} if gap else {}
        marks[self._mine] = sample.text()
        # A sweeper that has seen one sample only cannot tell a jump from an outage, and leaves that to the others.
        if not (gap and first):
            marks["tick"] = now
        self._store.call(self._store.client.hset, self._store.keys.clock, mapping=marks)
        self._last = sample
        return not gap and not (pause is not None and now < pause <= now + lease)

    def rest(self) -> None:
        """Nothing is live: the clocks may drift apart meanwhile."""
        self._last = None

    def agrees(self, now: int) -> bool:
        """Whether a time that Redis gave just now is one that the last look leads to expect."""
        steady = self._store.steady()
        return self._last is None or not self._moved(self._last, _Sample(now, steady, steady, self._last.jumps))

    def _read(self) -> tuple[int | None, int | None, _Sample]:
        store = self._store
        earliest = store.steady()
        now, values = store.now_with("tick", "pause", "jumps", "jumped", "asked", self._mine)
        tick, pause, number, total, asked, self._text = values
        self.asked = as_number(asked) or 0
        sample = _Sample(now, earliest, store.steady(), Jumps(as_number(number) or 0, as_number(total) or 0))
        return as_number(tick), as_number(pause), sample

    def _left(self, sample: _Sample) -> _Sample | None:
        """The last sample of a process of this machine that has ended."""
        with contextlib.suppress(ValueError):
            left = _Sample.read(self._text or "")
            if 0 <= sample.latest - left.latest < _OLD:
                return left
        return None

    def _jump(self, sample: _Sample, tick: int | None) -> int:
        """By how many ms the clock has jumped, as far as no sweeper has noted it."""
        last = self._last
        if last is None:
            # Without a sample of its own a sweeper knows only that no tick can be later than now.
            return sample.redis - tick if tick is not None and tick - sample.redis > self._tolerance else 0
        jump = self._moved(last, sample)
        elapsed = sample.latest - last.earliest
        if jump > 0 and tick is not None and tick > last.redis + elapsed + self._tolerance:
            return 0  # another sweeper saw no jump meanwhile: this machine stood still
        return jump

    def _moved(self, last: _Sample, sample: _Sample) -> int:
        """How much farther Redis's clock has moved than the steady one, beyond what the measurement can explain."""
        moved = (sample.redis - last.redis) - (sample.jumps.total - last.jumps.total)
        least, most = sample.earliest - last.latest, sample.latest - last.earliest
        if moved > most + self._tolerance:
            return round(moved - most)
        if moved < least - self._tolerance:
            return round(moved - least)
        return 0

    def _note(self, sample: _Sample, jump: int) -> None:
        store = self._store
        if not store.note_jump(sample.jumps.number, jump):
            return  # another sweeper was first
        where = "forward" if jump > 0 else "back"
        log.warning(
            "Redis's clock has jumped %s by %s: live runs wait as long as before; check the time service of its host",
            where, format_duration(round(abs(jump) / 1000)),
        )  # fmt: skip


@cache
def _boot() -> str:
    """What no other start of this machine has: since then its steady clock has not begun anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid4().hex
