"""Leased locks shared by several hosts, with holder, reason and expiry.

Each lock is one key with a lease, acquired and released by redis-py's `Lock`, whose value names the holder. A later
attempt of the same step replaces an earlier one at once, since the earlier attempt is superseded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import uuid4

from redis.exceptions import LockError

from longshore.orchestration.errors import UNREADABLE, StoreUnavailable
from longshore.orchestration.store.connection import Connection

log = logging.getLogger(__name__)

#: Seconds between two tries to acquire a lock.
_POLL = 0.2


@dataclass(frozen=True)
class Holder:
    """The holder of a lock. `since` is in ms of Redis's clock, `what` the label for people, `why` the operation."""

    name: str
    what: str
    run: str
    step: str
    host: str
    why: str
    fence: int
    since: int
    #: Unique to one acquisition, since a step may acquire the lock twice.
    id: str = ""
    #: Seconds left of the lease.
    left: float = 0.0

    def text(self) -> str:
        """The value of the lock's key, JSON."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "left"}, sort_keys=True)


class Locks:
    """The locks of an installation."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    def held(self) -> list[Holder]:
        """The holders of all locks, by name of the lock."""
        client, keys = self._redis.client, self._redis.keys
        names = sorted(self._redis.call(client.smembers, keys.locks))
        found = []
        for name in names:
            pipe = client.pipeline()
            pipe.get(keys.lock(name))
            pipe.pttl(keys.lock(name))
            text, left = self._redis.call(pipe.execute)
            if (holder := _holder(text)) is not None:
                found.append(replace(holder, left=max(0, left) / 1000))
        return found

    def holder(self, name: str) -> Holder | None:
        """The holder of a lock, or None."""
        text = self._redis.call(self._redis.client.get, self._redis.keys.lock(name))
        return _holder(text)

    @contextlib.contextmanager
    def hold(
        self,
        name: str,
        what: str,
        *,
        run: str,
        step: str,
        host: str,
        why: str,
        fence: int,
        check: Callable[[], None],
        sleep: Callable[[float], None],
        waits: Callable[[Holder], None] = lambda _holder: None,
    ) -> Iterator[None]:
        """Hold a lock for the block; blocks until the lock is free. A thread renews the lease.

        `check` is called between tries and may raise to give up; `waits` is called once with the other holder.
        """
        lease = self._redis.settings.lease
        mine = Holder(name, what, run, step, host, why, fence, self._redis.now(), uuid4().hex)
        lock = self._redis.client.lock(self._redis.keys.lock(name), timeout=lease, thread_local=False)
        reported = False
        self._redis.call(self._redis.client.sadd, self._redis.keys.locks, name)
        while not self._redis.call(lock.acquire, blocking=False, token=mine.text()):
            check()
            other = self.holder(name)
            if other is not None and (other.run, other.step) == (run, step) and other.fence < fence:
                self._take_over(name, other)
                continue
            if other is not None and not reported:
                waits(other)
                reported = True
            sleep(_POLL)
        ended = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(lock, lease, ended, what, mine), daemon=True)
        renewer.start()
        try:
            yield
        finally:
            ended.set()
            renewer.join()
            # An expired lock is free already; without Redis, the lease will expire.
            with contextlib.suppress(StoreUnavailable, LockError):
                self._redis.call(lock.release)

    def _take_over(self, name: str, other: Holder) -> None:
        """Release the lock of a superseded attempt, unless its holder has changed."""
        key = self._redis.keys.lock(name)
        stale = self._redis.client.lock(key, thread_local=False)
        stale.local.token = other.text().encode()
        with contextlib.suppress(LockError):
            self._redis.call(stale.release)

    def _regain(self, lock: Any, mine: Holder) -> bool:
        """Acquire an expired lock again, unless another step holds it; report whether it is held."""
        try:
            return bool(self._redis.call(lock.acquire, blocking=False, token=mine.text()))
        except StoreUnavailable:
            return True  # the next renewal tries again

    def _renew(self, lock: Any, lease: float, ended: threading.Event, what: str, mine: Holder) -> None:
        while not ended.wait(lease / 3):
            try:
                self._redis.call(lock.extend, lease, replace_ttl=True)
            except StoreUnavailable:
                continue
            except LockError:
                # Redis's clock jumped, or this process was suspended.
                if not self._regain(lock, mine):
                    log.warning("the lock of %s has expired while held, and another run holds it now", what)
                    return


def _holder(text: str | None) -> Holder | None:
    """The holder from the value of a lock's key; None for a free lock and for unreadable text."""
    try:
        return Holder(**json.loads(text)) if text else None
    except UNREADABLE:
        return None
