"""kombu's Redis transport, with one client for all messages that a channel sends.

kombu makes a client of redis-py for each message: a quarter of the time of a send.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis


class SharedClient:
    """A channel that sends all its messages through one client, for as long as its pool of connections is the same."""

    _sender: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
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
