"""The indices of an installation: hints for the sweeper, mended from the runs themselves."""

from __future__ import annotations

import contextlib
import secrets

from longshore.orchestration.store.connection import Connection, as_number
from longshore.orchestration.store.connection import milliseconds as _ms

#: Seconds after which a waiting run is looked at although nothing was due: an index is a hint, and hints can be lost.
SAFETY = 7200.0
#: Runs that are looked at in one go.
BATCH = 100


def mark() -> int:
    """Of an entry in the inbox. No two are the same, or a slow sweeper would take a later entry for what it saw."""
    return secrets.randbits(52)


class Indices(Connection):
    """Which runs there are, which are live, and when each is to be looked at next."""

    def runs(self, limit: int = 50) -> list[str]:
        """The latest runs, newest first, requests that no worker has seen yet before them."""
        pipe = self.client.pipeline(transaction=False)
        pipe.zrange(self.keys.inbox, 0, limit)
        pipe.zrevrange(self.keys.runs, 0, limit - 1)
        waiting, known = self.call(pipe.execute)
        return list(dict.fromkeys([*waiting, *known]))[:limit]

    def created_since(self, when: int) -> list[str]:
        """Runs that were begun from then on, ms, the eldest first."""
        return list(self.call(self.client.zrangebyscore, self.keys.runs, when, "+inf"))

    def look_at(self, run_id: str, when: int, *, sooner: bool = False) -> None:
        """Have the sweeper look at a live run at that time, ms (`sooner`: at the latest)."""
        self.call(self.client.zadd, self.keys.live, {run_id: when}, lt=sooner)

    def touch(self) -> tuple[int, int, dict[str, float]]:
        """The time, how many runs are live, and the first runs of the inbox with their marks."""
        pipe = self.client.pipeline(transaction=False)
        pipe.time()
        pipe.zcard(self.keys.live)
        pipe.zrange(self.keys.inbox, 0, 10 * BATCH - 1, withscores=True)
        (seconds, micros), live, inbox = self.call(pipe.execute)
        return int(seconds) * 1000 + int(micros) // 1000, int(live), {str(run): float(at) for run, at in inbox}

    def due(self, lease: float, now: int | None = None) -> list[str]:
        """Live runs to be looked at now; the next sweeper will see them a lease later."""
        now = self.now() if now is None else now
        found = self.call(self.client.zrangebyscore, self.keys.live, "-inf", now, start=0, num=BATCH)
        if found:
            self.call(self.client.zadd, self.keys.live, {run: now + _ms(lease) for run in found}, xx=True)
        return found  # type: ignore[no-any-return]

    def postpone(self, run_id: str, until: int, version: int, lease: float) -> None:
        """Have nobody look at a waiting run before that time, ms, unless it has moved on from that version."""
        pipe = self.client.pipeline()
        pipe.zscore(self.keys.live, run_id)
        pipe.zadd(self.keys.live, {run_id: until}, xx=True)
        pipe.hget(self.keys.of(run_id).run, "version")
        pipe.time()
        before, _, known, (seconds, _) = self.call(pipe.execute)
        now = int(seconds) * 1000
        # Who moves it on, or finds that it may go on, puts it forward: either after this, or this sees it and yields.
        forward = before is not None and before <= now + 1500 + _ms(self.settings.fast_retry)
        if forward or as_number(known) != version:
            self.look_at(run_id, round(before) if forward else now + _ms(lease), sooner=True)

    def waiting(self) -> list[str]:
        """Runs in the inbox."""
        return self.call(self.client.zrange, self.keys.inbox, 0, BATCH - 1)  # type: ignore[no-any-return]

    def seen(self, run_id: str, mark: float) -> None:
        """Take a run out of the inbox, unless something new was asked since its mark was read."""
        import redis  # noqa: PLC0415 - see connect

        with self.client.pipeline() as pipe, contextlib.suppress(redis.WatchError):
            self.call(pipe.watch, self.keys.inbox)
            if self.call(pipe.zscore, self.keys.inbox, run_id) == mark:
                pipe.multi()
                pipe.zrem(self.keys.inbox, run_id)
                self.call(pipe.execute)

    def add_to_ended(self, run_id: str, ended: int, *, again: bool = False) -> None:
        """Its time to be kept begins when it ended, ms; with `again`, anew."""
        self.call(self.client.zadd, self.keys.ended, {run_id: ended}, nx=not again)

    def ended_since(self, seconds: float, at_most: int = -1) -> list[str]:
        """Runs that have rested for so long, the eldest first."""
        until = self.now() - _ms(seconds)
        return list(self.call(self.client.zrangebyscore, self.keys.ended, 0, until, start=0, num=at_most))

    def may_purge(self, seconds: float) -> bool:
        """Whether nobody has tidied up for so long; whoever is told so does."""
        return bool(self.call(self.client.set, self.keys.purged, 1, nx=True, px=_ms(seconds)))

    def take_over(self, run_id: str) -> None:
        """A run that rests may be wanted again: it does not expire now."""
        self.call(self.client.zrem, self.keys.ended, run_id)

    def remove_from_live(self, run_id: str) -> None:
        self.call(self.client.zrem, self.keys.live, run_id)

    def live_count(self) -> int:
        """Runs that are live or waiting to begin."""
        pipe = self.client.pipeline(transaction=False)
        pipe.zcard(self.keys.live)
        pipe.zcard(self.keys.inbox)
        live, waiting = self.call(pipe.execute)
        return int(live) + int(waiting)
