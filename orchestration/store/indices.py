"""The indices of an installation: which runs exist, which are live, and when to sweep each.

An index is a hint; the sweeper repairs it from the records of the runs.
"""

from __future__ import annotations

import secrets

from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.connection import milliseconds as _ms
from longshore.orchestration.store.scripts import Scripts

#: Seconds after which a waiting run is swept although nothing is due, since a hint can be lost.
SAFETY = 7200.0
#: Runs in one batch of a sweep.
BATCH = 100


def mark() -> int:
    """A unique score for an entry of the inbox, by which a slow sweeper recognises that the entry was replaced."""
    return secrets.randbits(52)


class Indices(Scripts):
    """The indices of runs: all, live, ended, and the inbox. Each method raises StoreUnavailable."""

    def runs(self, limit: int = 50) -> list[str]:
        """The ids of the latest runs: first those whose request no worker has read yet, then newest first."""
        pipe = self.client.pipeline(transaction=False)
        pipe.zrange(self.keys.inbox, 0, limit)
        pipe.zrevrange(self.keys.runs, 0, limit - 1)
        waiting, known = self.call(pipe.execute)
        return list(dict.fromkeys([*waiting, *known]))[:limit]

    def created_since(self, when: int) -> list[str]:
        """The runs created at or after a time, ms, the eldest first."""
        return list(self.call(self.client.zrangebyscore, self.keys.runs, when, "+inf"))

    def look_at(self, run_id: str, when: int, *, sooner: bool = False) -> None:
        """Schedule the next sweep of a live run, ms; with `sooner`, only ever earlier."""
        self.call(self.client.zadd, self.keys.live, {run_id: when}, lt=sooner)

    def touch(self) -> tuple[int, int, dict[str, float]]:
        """The time, ms, the number of live runs, and the head of the inbox with its scores; one round trip."""
        pipe = self.client.pipeline(transaction=False)
        pipe.time()
        pipe.zcard(self.keys.live)
        pipe.zrange(self.keys.inbox, 0, 10 * BATCH - 1, withscores=True)
        (seconds, micros), live, inbox = self.call(pipe.execute)
        return int(seconds) * 1000 + int(micros) // 1000, int(live), {str(run): float(at) for run, at in inbox}

    def due(self, lease: float, now: int | None = None) -> list[str]:
        """The live runs that are due, which are postponed by a lease for other sweepers."""
        now = self.now() if now is None else now
        found = self.call(self.client.zrangebyscore, self.keys.live, "-inf", now, start=0, num=BATCH)
        if found:
            self.call(self.client.zadd, self.keys.live, {run: now + _ms(lease) for run in found}, xx=True)
        return found  # type: ignore[no-any-return]

    def postpone(self, run_id: str, until: int, version: int, lease: float) -> None:
        """Postpone the sweep of a waiting run until a time, ms, unless the run has moved on from `version`."""
        pipe = self.client.pipeline()
        pipe.zscore(self.keys.live, run_id)
        pipe.zadd(self.keys.live, {run_id: until}, xx=True)
        pipe.hget(self.keys.of(run_id).run, "version")
        pipe.time()
        before, _, known, (seconds, _) = self.call(pipe.execute)
        now = int(seconds) * 1000
        # A concurrent transition schedules an earlier sweep: either after this call, or this call restores it.
        forward = before is not None and before <= now + 1500 + _ms(self.settings.fast_retry)
        if forward or as_number(known) != version:
            self.look_at(run_id, round(before) if forward else now + _ms(lease), sooner=True)

    def waiting(self) -> list[str]:
        """The first runs of the inbox."""
        return self.call(self.client.zrange, self.keys.inbox, 0, BATCH - 1)  # type: ignore[no-any-return]

    def seen(self, run_id: str, mark: float) -> None:
        """Remove a run from the inbox, atomically, unless a command has renewed its score since."""
        self.run_global("seen", [self.keys.inbox], run_id, f"{mark:.0f}")

    def add_to_ended(self, run_id: str, ended: int, *, again: bool = False) -> None:
        """Begin the retention of a run at its end, ms; with `again`, restart it."""
        self.call(self.client.zadd, self.keys.ended, {run_id: ended}, nx=not again)

    def ended_since(self, seconds: float, at_most: int = -1) -> list[str]:
        """The runs that ended at least so many seconds ago, the eldest first."""
        until = self.now() - _ms(seconds)
        return list(self.call(self.client.zrangebyscore, self.keys.ended, 0, until, start=0, num=at_most))

    def may_purge(self, seconds: float) -> bool:
        """Claim the next purge, unless one began within so many seconds; the caller that gets True performs it."""
        return bool(self.call(self.client.set, self.keys.purged, 1, nx=True, px=_ms(seconds)))

    def take_over(self, run_id: str) -> None:
        """Suspend the retention of an ended run that may be reopened."""
        self.call(self.client.zrem, self.keys.ended, run_id)

    def remove_from_live(self, run_id: str) -> None:
        """Remove a run from the live ones."""
        self.call(self.client.zrem, self.keys.live, run_id)

    def live_count(self) -> int:
        """The number of runs that are live or in the inbox."""
        pipe = self.client.pipeline(transaction=False)
        pipe.zcard(self.keys.live)
        pipe.zcard(self.keys.inbox)
        live, waiting = self.call(pipe.execute)
        return int(live) + int(waiting)
