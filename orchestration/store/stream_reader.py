"""Follows the streams of many runs over one connection of an event loop.

All subscribers of a process share one blocking read of all their streams, which names each stream once. A stream keeps
its latest entries for subscribers that are behind; entries from before those are read by `history`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import redis.asyncio

from longshore.orchestration.store.connection import ERRORS, connected
from longshore.orchestration.store.records import stream_order
from longshore.orchestration.store.run_store import Store

#: An entry of a stream: its id and its fields.
Entry = tuple[str, dict[str, str]]
#: Milliseconds that one read blocks, which Redis prolongs by up to a tenth of a second. A new subscription waits for
#: its end, since Redis handles no other command of a connection meanwhile.
_BLOCK_MS = 20
#: Seconds between two reads with entries. A wide run emits an event every millisecond.
_PAUSE = 0.01
#: Seconds between two reads of the state of a run without events.
_CHECK = 2.0
#: States that are read in one round trip.
_AT_ONCE = 25
#: Entries of one read of one stream, and entries that a stream keeps.
_COUNT, _KEPT = 1000, 256
#: The event after which the state of a run is read at once.
_ENDED = "run_ended"


class _Stream:
    """A followed stream, with its latest entries and the state of its run."""

    def __init__(self, run_id: str, key: str, after: str | None) -> None:
        self.run_id = run_id
        self.key = key
        self.subscribers = 0
        #: The newest id that was read; None until the stream's end is known. `entries` has all entries after `start`.
        self.newest = self.start = after
        self.entries: deque[Entry] = deque()
        self.changed = asyncio.Event()
        #: Checks of the run's state: the number begun, the number answered, and the time of the next one.
        self.begun = self.checked = 0
        self.due = 0.0
        self.state: str | None = None
        self.exists = True
        self.failure: Exception | None = None

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.entries.append(entry)
            self.newest = entry[0]
        while len(self.entries) > _KEPT:
            self.start = self.entries.popleft()[0]

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Subscription:
    """A position in a stream. The first answer follows a read of the run's state that began after the subscription."""

    def __init__(self, reader: StreamReader, stream: _Stream, after: str | None) -> None:
        self._reader = reader
        self._stream = stream
        self._checks = stream.begun
        self._is_new = True
        #: The id of the last returned entry; None for the end of the stream at the first answer.
        self.cursor = after

    @property
    def state(self) -> str | None:
        """The state of the run at the last check; None without a record."""
        return self._stream.state

    @property
    def exists(self) -> bool:
        """Whether the run had a record or a request at the last check."""
        return self._stream.exists

    async def next(self) -> list[Entry]:
        """Wait for entries after the cursor; returns none after a check of the run's state without new entries.

        Raises StoreUnavailable where Redis does not answer.
        """
        stream = self._stream
        while True:
            if stream.failure is not None:
                raise stream.failure
            is_checked = stream.checked > self._checks
            if not self._is_new or is_checked:
                self._is_new = False
                if found := await self._unread():
                    self.cursor = found[-1][0]
                    return found
                if is_checked:
                    self._checks = stream.checked
                    return []
            await stream.changed.wait()

    async def _unread(self) -> list[Entry]:
        stream = self._stream
        if self.cursor is None:
            self.cursor = stream.newest
        position = stream_order(self.cursor or "0-0")
        if position < stream_order(stream.start or "0-0"):
            if found := await self._reader.history(stream.key, self.cursor or "0-0"):
                return found
            self.cursor = stream.start
        return [entry for entry in stream.entries if stream_order(entry[0]) > position]


class StreamReader:
    """The shared reader of one event loop; connected while there are subscriptions.

    `history` reads entries of a stream after an id, for a subscriber that is behind.
    """

    def __init__(self, store: Store, history: Callable[[str, str], Awaitable[list[Entry]]]) -> None:
        self._store = store
        self.history = history
        self._streams: dict[str, _Stream] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def follow(self, run_id: str, key: str, after: str | None) -> Iterator[Subscription]:
        """Subscribe to a stream of a run, from the entry after an id; from its end for None."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(run_id, key, after)
        stream.subscribers += 1
        stream.due = 0.0
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._read_all())
        try:
            yield Subscription(self, stream, after)
        finally:
            stream.subscribers -= 1
            if not stream.subscribers and self._streams.get(key) is stream:
                del self._streams[key]

    async def _read_all(self) -> None:
        async with connected(self._store.settings) as client:
            try:
                while self._streams:
                    is_behind = await self._check(client)
                    await self._read(client, None if is_behind else _BLOCK_MS)
            except Exception as error:  # noqa: BLE001 - each watcher raises it, and none waits for ever
                failure = self._store.translated(error) if isinstance(error, ERRORS) else error
                for stream in self._streams.values():
                    stream.failure = failure
                    stream.wake()
                self._streams.clear()
            finally:
                self._task = None  # before the connection closes: a new subscription begins a reader of its own

    async def _read(self, client: redis.asyncio.Redis, block: int | None) -> None:
        """Read all streams once, and wake the subscribers of those with entries."""
        streams = {stream.key: stream for stream in self._streams.values() if stream.newest is not None}
        if not streams:
            return
        cursors: dict[Any, Any] = {key: stream.newest for key, stream in streams.items()}
        found: Any = await client.xread(cursors, count=_COUNT, block=block)
        if not found:
            return
        ended = []
        for key, entries in found:
            streams[key].add(entries)
            if any(fields.get("event") == _ENDED for _, fields in entries):
                ended.append(streams[key])
        await self._check_each(client, ended)
        for key, _ in found:
            streams[key].wake()
        await asyncio.sleep(_PAUSE)

    async def _check(self, client: redis.asyncio.Redis) -> bool:
        """Read the states of some runs that are due, new subscriptions first; return whether more of them are due."""
        now = time.monotonic()
        due = sorted((each for each in self._streams.values() if each.due <= now), key=attrgetter("due"))
        await self._check_each(client, due[:_AT_ONCE])
        return len(due) > _AT_ONCE

    async def _check_each(self, client: redis.asyncio.Redis, streams: Sequence[_Stream]) -> None:
        """Read the states of runs, and wake their subscribers."""
        if not streams:
            return
        pipe = client.pipeline(transaction=False)
        for stream in streams:
            of_run = self._store.keys.of(stream.run_id)
            stream.due = time.monotonic() + _CHECK
            stream.begun += 1
            # The end of the stream before the state: a later event wakes the read of all streams.
            pipe.xrevrange(stream.key, count=1)
            pipe.hget(of_run.run, "state")
            pipe.exists(of_run.request)
        begun = [stream.begun for stream in streams]
        answers = await pipe.execute()
        for n, stream in enumerate(streams):
            last, stream.state, request = answers[3 * n : 3 * n + 3]
            if stream.newest is None:
                stream.newest = stream.start = last[0][0] if last else "0-0"
            stream.exists = stream.state is not None or bool(request)
            stream.checked = max(stream.checked, begun[n])
            stream.wake()
