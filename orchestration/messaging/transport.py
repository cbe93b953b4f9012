"""kombu's Redis transport, with one client for all messages that a channel sends.

kombu makes a client of redis-py for each message: a quarter of the time of a send.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kombu.transport import redis


class _Collector:
    """Stands in for a client, and keeps each message with the list of its queue instead of sending the message."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def lpush(self, key: str, message: str) -> None:
        self.messages.append((key, message))


_COLLECTOR: ContextVar[_Collector | None] = ContextVar("collector", default=None)


@contextmanager
def not_sent() -> Iterator[list[tuple[str, str]]]:
    """Collect the messages of this thread instead of sending them: the list in Redis, without prefix, and the text."""
    collector = _Collector()
    token = _COLLECTOR.set(collector)
    try:
        yield collector.messages
    finally:
        _COLLECTOR.reset(token)


class SharedClient:
    """A channel that sends all its messages through one client, for as long as its pool of connections is the same."""

    _sender: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
        if (collector := _COLLECTOR.get()) is not None:
            return collector
        # The channel of a forked process, and one that has lost its connection, open another pool.
        if self._sender is None or self._sender.connection_pool is not self.pool:  # type: ignore[attr-defined]
            self._sender = super()._create_client()  # type: ignore[misc]
        return self._sender


class Channel(SharedClient, redis.Channel):
    """A channel to one server."""


class Transport(redis.Transport):
    Channel = Channel


class SentinelChannel(SharedClient, redis.SentinelChannel):
    """A channel to the master that Sentinel names."""


class SentinelTransport(redis.SentinelTransport):
    Channel = SentinelChannel
