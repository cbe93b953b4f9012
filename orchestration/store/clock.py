"""Detection of jumps of Redis's clock, by comparison with a steady clock that cannot be set.

Each sweep compares the progress of Redis's clock since the last sweep with that of this machine's steady clock. The
difference is a jump, forward or back; an outage of Redis or of all workers affects both clocks alike. Redis keeps the
sum of all jumps, the record of each run holds the sum up to which its times were moved, and `Store.shift` moves them by
the rest. Decisions that depend on time alone are therefore made by a sweep, right after this comparison.
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

#: ms after which the sample of an earlier process of this machine is too old to compare with: clocks drift.
_OLD = 3_600_000


@dataclass(frozen=True)
class Jumps:
    """The number of recorded jumps, and their sum in ms."""

    number: int = 0
    total: int = 0


@dataclass(frozen=True)
class _Sample:
    """A reading of Redis's clock, the bounds of its time on the steady clock, and the jumps known then; all in ms."""

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
    """One sweeper's view of Redis's clock. Each method raises StoreUnavailable where Redis does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last: _Sample | None = None
        #: The field of the clock hash with this machine's last sample, from which a new process continues.
        self._mine = f"sample:{_boot()}"
        #: The number of receipt questions as of the last comparison, read in the same round trip.
        self.asked = 0
        self._text: str | None = None

    @property
    def _tolerance(self) -> int:
        """The smallest jump that counts, ms: half a lease. Two thirds could expire a lease, renewed every third."""
        return milliseconds(self._store.settings.lease) // 2

    @property
    def jumps(self) -> Jumps:
        """All jumps as of the last comparison."""
        return self._last.jumps if self._last is not None else self.read_jumps()

    def read_jumps(self) -> Jumps:
        """All jumps, as read from Redis now."""
        number, total = self._store.call(self._store.client.hmget, self._store.keys.clock, ("jumps", "jumped"))
        return Jumps(as_number(number) or 0, as_number(total) or 0)

    def look(self) -> bool:
        """Compare the clocks and record the sweep; return whether leases may expire now.

        After a pause of all sweepers, and after a jump, every worker first has one whole lease to renew its leases.
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
        # A single sample does not distinguish a jump from an outage, so its sweeper leaves the decision to others.
        if not (gap and first):
            marks["tick"] = now
        self._store.call(self._store.client.hset, self._store.keys.clock, mapping=marks)
        self._last = sample
        return not gap and not (pause is not None and now < pause <= now + lease)

    def rest(self) -> None:
        """Discard the last sample, since no run is live and the clocks may drift apart."""
        self._last = None

    def agrees(self, now: int) -> bool:
        """Report whether a time just read from Redis agrees with the last sample."""
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
        """The last sample of an earlier process of this machine, unless it is too old."""
        with contextlib.suppress(ValueError):
            left = _Sample.read(self._text or "")
            if 0 <= sample.latest - left.latest < _OLD:
                return left
        return None

    def _jump(self, sample: _Sample, tick: int | None) -> int:
        """The jump in ms that no sweeper has recorded yet; 0 for none."""
        last = self._last
        if last is None:
            # Without a sample of its own, a sweeper knows only that no recorded sweep can be later than now.
            return sample.redis - tick if tick is not None and tick - sample.redis > self._tolerance else 0
        jump = self._moved(last, sample)
        elapsed = sample.latest - last.earliest
        if jump > 0 and tick is not None and tick > last.redis + elapsed + self._tolerance:
            return 0  # another sweeper saw no jump, so this machine stood still
        return jump

    def _moved(self, last: _Sample, sample: _Sample) -> int:
        """The progress of Redis's clock beyond that of the steady clock, where it exceeds the error of measurement."""
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
            return  # recorded by another sweeper
        where = "forward" if jump > 0 else "back"
        log.warning(
            "Redis's clock has jumped %s by %s; timeouts of live runs were moved. Check the time service of its host",
            where, format_duration(round(abs(jump) / 1000)),
        )  # fmt: skip


@cache
def _boot() -> str:
    """The id of this boot of the machine, which its steady clock counts from."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid4().hex
