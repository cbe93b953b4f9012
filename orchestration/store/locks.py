"""Locks in Redis for what several hosts share: who holds them, why, since when, and until when if he dies.

Each is one key with a lease, taken and released by redis-py's `Lock`, whose value says who holds it. A later attempt
of the same step takes over from the one before it at once: that one has lost the step.
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

from longshore.orchestration.errors import UNREADABLE, StoreUnavailable
from longshore.orchestration.store.connection import Connection

log = logging.getLogger(__name__)

_LOOK = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `since` in ms of Redis's clock; `what` is what people call it, `why` the step's operation."""

    name: str
    what: str
    run: str
    step: str
    host: str
    why: str
    fence: int
    since: int
    #: Of this holding: the same step may hold it twice.
    id: str = ""
    #: Seconds that its lease has left.
    left: float = 0.0

    def text(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if key != "left"}, sort_keys=True)


class Locks:
    """The locks of an installation."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    def held(self) -> list[Holder]:
        """Those that somebody holds now, by name."""
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
        """Hold it; `check` may raise to give up, `waits` is told once who else holds it. Renewed by a thread."""
        lease = self._redis.settings.lease
        mine = Holder(name, what, run, step, host, why, fence, self._redis.now(), uuid4().hex)
        lock = self._redis.client.lock(self._redis.keys.lock(name), timeout=lease, thread_local=False)
        told = False
        self._redis.call(self._redis.client.sadd, self._redis.keys.locks, name)
        while not self._redis.call(lock.acquire, blocking=False, token=mine.text()):
            check()
            other = self.holder(name)
            if other is not None and (other.run, other.step) == (run, step) and other.fence < fence:
                self._take_over(name, other)
                continue
            if other is not None and not told:
                waits(other)
                told = True
            sleep(_LOOK)
        ended = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(lock, lease, ended, what, mine), daemon=True)
        renewer.start()
        try:
            yield
        finally:
            ended.set()
            renewer.join()
            # Lapsed, or Redis is away: then it frees itself.
            with contextlib.suppress(StoreUnavailable, _lock_error()):
                self._redis.call(lock.release)

    def _take_over(self, name: str, other: Holder) -> None:
        """Free it, if it is still that one's."""
        key = self._redis.keys.lock(name)
        stale = self._redis.client.lock(key, thread_local=False)
        stale.local.token = other.text().encode()
        with contextlib.suppress(_lock_error()):
            self._redis.call(stale.release)

    def _regain(self, lock: Any, mine: Holder) -> bool:
        """Take a lock that has lapsed again, unless another step has it; whether it is held."""
        try:
            return bool(self._redis.call(lock.acquire, blocking=False, token=mine.text()))
        except StoreUnavailable:
            return True  # asked again

    def _renew(self, lock: Any, lease: float, ended: threading.Event, what: str, mine: Holder) -> None:
        while not ended.wait(lease / 3):
            try:
                self._redis.call(lock.extend, lease, replace_ttl=True)
            except StoreUnavailable:
                continue
            except _lock_error():
                # Redis's clock has jumped, or this process stood still.
                if not self._regain(lock, mine):
                    log.warning("the lock of %s has lapsed while it was held, and another run has it", what)
                    return


def _holder(text: str | None) -> Holder | None:
    """None where nobody holds the lock, and for a text that cannot be read."""
    try:
        return Holder(**json.loads(text)) if text else None
    except UNREADABLE:
        return None


def _lock_error() -> type[Exception]:
    from redis.exceptions import LockError  # noqa: PLC0415 - see connection

    return LockError
