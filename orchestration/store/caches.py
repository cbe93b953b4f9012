"""Caches in Redis: what took long to find out, by generations. Plain commands, no scripts.

A generation is built aside and put in the place of the one before it in one step; that one is kept, so that the step
that built the new one can be taken back. An entry carries the digest of its content: one that does not fit it, or
cannot be read, counts as not there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from redis import WatchError

from longshore.orchestration.errors import OperationError
from longshore.orchestration.store.connection import Connection

#: Before the host's name, what its cache is called.
CACHE = "stacks@"


_CURRENT, _PREVIOUS, _NUMBER = "current", "previous", "number"


def digest_of(value: Any) -> str:
    """Of anything that is JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One generation. Times in ms of Redis's clock, `ttl` in seconds (0: for ever)."""

    generation: int
    value: Any
    #: What it was built from, in its builder's words: with another one, it is not valid.
    fingerprint: str = ""
    #: When its building began, and when it was put here.
    began: int = 0
    at: int = 0
    ttl: float = 0.0
    #: The step that built it, as its operation's key.
    by: str = ""
    #: Whether it was built from nothing.
    fresh: bool = False
    #: Who said that it is not valid any more.
    invalidated: str = ""

    def text(self) -> str:
        said = asdict(self)
        return json.dumps(said | {"digest": digest_of(said)}, ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> Entry:
        """ValueError for what is no entry, or is not what it was when it was written."""
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("it is no entry")
        digest = said.pop("digest", None)
        if digest != digest_of(said):
            raise ValueError("it contradicts its digest")
        try:
            return cls(**said)
        except TypeError as error:
            raise ValueError(f"it is of another version: {error}") from None

    def age(self, now: int) -> float:
        """Seconds since it was built."""
        return max(0, now - self.at) / 1000

    def expired(self, now: int) -> bool:
        """Also where it was built later than now: Redis's clock was set back since, and its age is not known."""
        return self.ttl > 0 and not 0 <= now - self.at < self.ttl * 1000


@dataclass(frozen=True)
class Found:
    """What there is of a cache: an entry, or why there is none."""

    entry: Entry | None
    why: str = ""

    @property
    def generation(self) -> int:
        return self.entry.generation if self.entry else 0

    def wrong(self, now: int, fingerprint: str = "") -> str:
        """Why it has to be built anew; '' where it is valid."""
        if self.entry is None:
            return self.why
        if self.entry.invalidated:
            return f"it was invalidated by {self.entry.invalidated}"
        if self.entry.expired(now):
            return f"it is {self.entry.age(now):.0f} s old, and may be {self.entry.ttl:g}"
        if fingerprint and fingerprint != self.entry.fingerprint:
            return "it was built from something else"
        return ""


class Caches:
    """The caches of an installation. Raises StoreUnavailable."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis

    def now(self) -> int:
        return self._redis.now()

    def get(self, name: str) -> Found:
        """The current generation, valid or not; none for one that is not what was written."""
        text = self._redis.call(self._redis.client.hget, self._redis.keys.cache(name), _CURRENT)
        if text is None:
            return Found(None, "there is none")
        try:
            return Found(Entry.read(text))
        except ValueError as error:
            return Found(None, f"what is there cannot be used: {error}")

    def names(self, prefix: str = "") -> list[str]:
        """Those that there are, sorted."""
        begin = self._redis.keys.cache("")
        found = self._redis.call(list, self._redis.client.scan_iter(match=f"{begin}*", count=1000))
        return sorted(name for key in found if (name := key.removeprefix(begin)).startswith(prefix))

    def number(self, name: str) -> int:
        """Of a generation that is to be built; no two have the same."""
        return int(self._redis.call(self._redis.client.hincrby, self._redis.keys.cache(name), _NUMBER, 1))

    def swap(self, name: str, entry: Entry) -> None:
        """Put it in the place of the current generation, which is kept."""
        text, largest = entry.text(), self._redis.settings.max_object
        if len(text.encode()) > largest:
            raise OperationError(
                f"cache {name!r} would have {len(text.encode())} bytes; at most {largest} may be stored",
                remedy="set LONGSHORE_MAX_OBJECT",
            )

        settings = self._redis.settings

        def put(pipe: Any, key: str, current: str | None, _previous: str | None) -> None:
            if current is not None:
                pipe.hset(key, _PREVIOUS, current)
            pipe.hset(key, _CURRENT, text)
            # As long as its undo may want the one before, and nobody would take this one for valid.
            if entry.ttl:
                pipe.pexpire(key, round((entry.ttl + settings.retention) * 1000))
            else:
                pipe.persist(key)

        self._redis.call(self._changed, self._redis.keys.cache(name), put)

    def back(self, name: str, entry_by: str) -> bool:
        """Take the generation that this step has built away, and bring the one before it back. False if another one
        is there by now.
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
        """Say that the current generation is not valid any more; with '', that it is. Whether that was new."""

        def say(pipe: Any, key: str, current: str | None, _previous: str | None) -> bool:
            try:
                entry = Entry.read(current or "null")
            except ValueError:
                return False
            if entry.invalidated == by or (by and entry.invalidated):
                return False
            pipe.hset(key, _CURRENT, replace(entry, invalidated=by).text())
            return True

        return bool(self._redis.call(self._changed, self._redis.keys.cache(name), say))

    def forget(self, name: str) -> None:
        self._redis.call(self._redis.client.delete, self._redis.keys.cache(name))

    def _changed(self, key: str, change: Any) -> Any:
        """Done as one; tried again where somebody else has written in between."""
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
