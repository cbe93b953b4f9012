"""Caches in Redis: expensive results, by generations. Uses plain commands, no scripts.

A generation is built separately and then swapped in atomically. The former generation is kept, so that an undo can
restore it. An entry carries the digest of its content; an entry that is unreadable or contradicts its digest counts as
absent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from redis import WatchError

from longshore.orchestration.errors import OperationError
from longshore.orchestration.store.connection import Connection

#: The prefix of the cache of a host's stacks; the host's name follows.
STACK_CACHE = "stacks@"

_CURRENT, _PREVIOUS, _NUMBER = "current", "previous", "number"


def digest_of(value: Any) -> str:
    """The digest of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One generation. Times are in ms of Redis's clock, `ttl` in seconds (0: no expiry)."""

    generation: int
    value: Any
    #: The fingerprint of the inputs; the entry is invalid for other inputs.
    fingerprint: str = ""
    #: When the build began, and when the entry was swapped in.
    began: int = 0
    at: int = 0
    ttl: float = 0.0
    #: The idempotency key of the step that built the entry.
    by: str = ""
    #: Whether the build reused nothing.
    fresh: bool = False
    #: The actor that invalidated the entry; '' for none.
    invalidated: str = ""

    def text(self) -> str:
        """The entry as JSON with its digest, for `read`."""
        fields = asdict(self)
        return json.dumps(fields | {"digest": digest_of(fields)}, ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> Entry:
        """Parse a stored entry. Raises ValueError where it is malformed or contradicts its digest."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        digest = fields.pop("digest", None)
        if digest != digest_of(fields):
            raise ValueError("its content contradicts its digest")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"written by another version: {error}") from None

    def age(self, now: int) -> float:
        """Seconds since the entry was swapped in."""
        return max(0, now - self.at) / 1000

    def expired(self, now: int) -> bool:
        """Report whether the `ttl` has passed, or cannot be judged because Redis's clock was set back since."""
        return self.ttl > 0 and not 0 <= now - self.at < self.ttl * 1000


@dataclass(frozen=True)
class Found:
    """The result of a look-up: an entry, or the reason why none is usable."""

    entry: Entry | None
    why: str = ""

    @property
    def generation(self) -> int:
        """The number of the generation, 0 for none."""
        return self.entry.generation if self.entry else 0

    def problem(self, now: int, fingerprint: str = "") -> str:
        """The reason why the entry is invalid; '' for a valid one."""
        if self.entry is None:
            return self.why
        if self.entry.invalidated:
            return f"invalidated by {self.entry.invalidated}"
        if self.entry.expired(now):
            return f"expired: {self.entry.age(now):.0f} s old, of at most {self.entry.ttl:g} s"
        if fingerprint and fingerprint != self.entry.fingerprint:
            return "built from other inputs"
        return ""


class Caches:
    """The caches of an installation. Each method raises StoreUnavailable where Redis does not answer."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    def now(self) -> int:
        """The time by Redis's clock, ms."""
        return self._redis.now()

    def get(self, name: str) -> Found:
        """The current generation, valid or not; none for one that is damaged."""
        text = self._redis.call(self._redis.client.hget, self._redis.keys.cache(name), _CURRENT)
        if text is None:
            return Found(None, "the cache is empty")
        try:
            return Found(Entry.read(text))
        except ValueError as error:
            return Found(None, f"the entry cannot be used: {error}")

    def names(self, prefix: str = "") -> list[str]:
        """The names of the caches with a prefix, sorted."""
        begin = self._redis.keys.cache("")
        found = self._redis.call(list, self._redis.client.scan_iter(match=f"{begin}*", count=1000))
        return sorted(name for key in found if (name := key.removeprefix(begin)).startswith(prefix))

    def number(self, name: str) -> int:
        """A new number for a generation; unique for the cache."""
        return int(self._redis.call(self._redis.client.hincrby, self._redis.keys.cache(name), _NUMBER, 1))

    def swap(self, name: str, entry: Entry) -> None:
        """Make an entry the current generation and keep the former one, atomically. Raises OperationError."""
        text, largest = entry.text(), self._redis.settings.max_object
        if len(text.encode()) > largest:
            raise OperationError(
                f"cache {name!r} would have {len(text.encode())} bytes; at most {largest} may be stored",
                remedy="store less, or raise LONGSHORE_MAX_OBJECT",
            )

        settings = self._redis.settings

        def put(pipe: Any, key: str, current: str | None, _previous: str | None) -> None:
            if current is not None:
                pipe.hset(key, _PREVIOUS, current)
            pipe.hset(key, _CURRENT, text)
            # Until the entry has expired, and no undo can need the former generation.
            if entry.ttl:
                pipe.pexpire(key, round((entry.ttl + settings.retention) * 1000))
            else:
                pipe.persist(key)

        self._redis.call(self._changed, self._redis.keys.cache(name), put)

    def back(self, name: str, entry_by: str) -> bool:
        """Replace the generation that a step built by the former one, atomically.

        Returns False where another step has built the current generation.
        """

        def restore(pipe: Any, key: str, current: str | None, previous: str | None) -> bool:
            if current is None or _by(current) != entry_by:
                return False
            if previous is None:
                pipe.hdel(key, _CURRENT)
            else:
                pipe.hset(key, _CURRENT, previous)
                pipe.hdel(key, _PREVIOUS)
            return True

        return bool(self._redis.call(self._changed, self._redis.keys.cache(name), restore))

    def mark(self, name: str, by: str) -> bool:
        """Invalidate the current generation, or validate it again with an empty `by`; report a change."""

        def invalidate(pipe: Any, key: str, current: str | None, _previous: str | None) -> bool:
            try:
                entry = Entry.read(current or "null")
            except ValueError:
                return False
            if entry.invalidated == by or (by and entry.invalidated):
                return False
            pipe.hset(key, _CURRENT, replace(entry, invalidated=by).text())
            return True

        return bool(self._redis.call(self._changed, self._redis.keys.cache(name), invalidate))

    def forget(self, name: str) -> None:
        """Delete a cache with both generations."""
        self._redis.call(self._redis.client.delete, self._redis.keys.cache(name))

    def _changed(self, key: str, change: Any) -> Any:
        """Apply a change atomically; retried after a concurrent write."""
        while True:
            with self._redis.client.pipeline() as pipe:
                pipe.watch(key)  # type: ignore[no-untyped-call]
                current, previous = pipe.hmget(key, [_CURRENT, _PREVIOUS])
                pipe.multi()
                done = change(pipe, key, current, previous)
                try:
                    pipe.execute()
                except WatchError:
                    continue
                return done


def _by(text: str) -> str:
    try:
        return Entry.read(text).by
    except ValueError:
        return ""
