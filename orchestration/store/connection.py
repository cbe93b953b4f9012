"""The connection to Redis, with retries, acknowledged writes, and errors translated to StoreUnavailable."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import Script
from redis.connection import HiredisRespSerializer
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from longshore.orchestration.errors import ConfigError, StoreUnavailable, WrongType
from longshore.orchestration.settings import SENTINEL, Settings, get_settings, sentinel
from longshore.orchestration.store.keys import Keys

#: The errors of Redis that `Connection.translated` accepts.
ERRORS = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError, redis.exceptions.InvalidResponse)
#: Retries of a command over a new connection before the call fails.
_TRIES = 1
#: Seconds to wait for replicas to acknowledge a write.
_REPLICATION = 2.0
#: Seconds between two calls of a script that a worker has to load.
_SCRIPT_PAUSE = 0.1
#: Seconds that a thread waits for a free connection of the pool.
_CONNECTION = 30.0
#: The longest blocking read, as a part of the time that a client waits for an answer.
_LONGEST_BLOCK = 0.4
#: The steady clock; on Linux it includes the time that the machine sleeps.
_STEADY: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def milliseconds(seconds: float) -> int:
    """Seconds as whole ms."""
    return round(seconds * 1000)


class _Packer:
    """Packs commands with hiredis, and those with undecodable bytes without an error, as `encoding_errors` demands."""

    def __init__(self, pack: Callable[..., Any]) -> None:
        self._pack = pack

    def pack(self, *args: Any) -> Any:
        try:
            return self._pack(*args)
        except UnicodeEncodeError:
            return self._pack(
                *(arg.encode("utf-8", "surrogateescape") if isinstance(arg, str) else arg for arg in args)
            )


def as_number(text: object) -> int | None:
    """The integer in the text of a key or field; None where the text is missing or no integer."""
    try:
        return int(str(text))
    except ValueError:
        return None


def _options(settings: Settings) -> dict[str, Any]:
    """The options of a connection."""
    return {
        "decode_responses": True,
        # Undecodable bytes damage one entry only; an exception would fail the read of all others.
        "encoding_errors": "surrogateescape",
        "socket_connect_timeout": settings.connect_timeout,
        "socket_timeout": settings.connect_timeout,
        "health_check_interval": 15,
    }


def as_dict(answer: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """The fields of a hash in the answer of a script."""
    return dict(answer) if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))


def connect(settings: Settings) -> redis.Redis:
    """A client of the Redis of the settings; connects on first use. Raises ConfigError for an invalid URL.

    Commands are retried after a lost connection, so a script may be applied twice; every script is idempotent. A server
    that does not answer in time is not asked again: a frozen one would take twice the time.
    """
    options = _options(settings) | {
        "command_packer": _Packer(HiredisRespSerializer().pack) if HIREDIS_AVAILABLE else None,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _TRIES, (redis.ConnectionError,)),
    }
    if settings.url().startswith(SENTINEL):
        found = sentinel(settings.url())
        # redis-py has no blocking pool for a sentinel, so the number of connections is not limited.
        options["max_connections"] = 2**31
        ask = {"socket_timeout": settings.connect_timeout, "socket_connect_timeout": settings.connect_timeout}
        return redis.Sentinel(found.hosts, sentinel_kwargs=ask).master_for(  # type: ignore[no-untyped-call, no-any-return]
            found.service, db=found.db, username=found.username, password=found.password, **options
        )
    try:
        # The blocking pool makes a thread wait for a free connection; redis-py's default pool raises.
        pool = redis.BlockingConnectionPool.from_url(
            settings.url(), max_connections=settings.max_connections, timeout=_CONNECTION, **options
        )
        return redis.Redis.from_pool(pool)
    except ValueError as error:
        raise ConfigError(f"the Redis URL is invalid: {error}", remedy="write redis://host:6379/0") from None


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of one connection to the same Redis, for the running event loop; closed at the end."""
    backoff = ExponentialWithJitterBackoff(base=0.05, cap=0.5)
    options = _options(settings) | {"retry": AsyncRetry(backoff, _TRIES, (redis.ConnectionError,))}
    clients: list[redis.asyncio.Redis] = []
    if settings.url().startswith(SENTINEL):
        found = sentinel(settings.url())
        ask = {"socket_timeout": settings.connect_timeout, "socket_connect_timeout": settings.connect_timeout}
        asked = Sentinel(found.hosts, sentinel_kwargs=ask)  # type: ignore[no-untyped-call]
        master = asked.master_for(
            found.service, db=found.db, username=found.username, password=found.password, **options
        )
        clients += [master, *asked.sentinels]
    else:
        clients.append(redis.asyncio.Redis.from_url(settings.url(), single_connection_client=True, **options))
    try:
        yield clients[0]
    finally:
        for client in clients:
            await client.aclose(close_connection_pool=True)


def _remedy(error: str) -> str:
    """The remedy for an error of Redis."""
    for word, remedy in _REMEDIES.items():
        if word in error:
            return remedy
    return "start Redis if it is down, and check LONGSHORE_REDIS_URL"


_REMEDIES = {
    "No connection available": "too many threads share the connections: raise LONGSHORE_MAX_CONNECTIONS",
    "maxmemory": "Redis has no memory left: raise its maxmemory, or longshore runs prune; no data is lost",
    "MISCONF": "Redis cannot write to its disk: free space there",
    "READONLY": "the server is a replica: use the address of the master, or a sentinel:// URL",
    "NOAUTH": "put the password into LONGSHORE_REDIS_URL",
    "HELLO must": "Redis requires a user and a password: put them into LONGSHORE_REDIS_URL",
    "invalid username-password": "correct the user or password in LONGSHORE_REDIS_URL",
    "WRONGPASS": "correct the user or password in LONGSHORE_REDIS_URL",
    "NOPERM": "grant the Redis user the permission: docs/concepts/security.md lists those of each role",
    "no permissions": "grant the Redis user the permission: docs/concepts/security.md lists those of each role",
    "LOADING": "wait: Redis is loading its data, and will answer soon",
}


class Connection:
    """A connection to the keys of one installation. Each method raises StoreUnavailable where Redis does not answer."""

    def __init__(self, settings: Settings | None = None, client: redis.Redis | None = None) -> None:
        self.settings = settings or get_settings()
        self.keys = Keys(self.settings.namespace)
        self.client = client if client is not None else connect(self.settings)
        #: Whether the Redis user may load scripts, as far as is known.
        self._loads = True

    @cached_property
    def _blocking(self) -> threading.Semaphore:
        return threading.Semaphore(max(1, self.settings.max_connections // 2))

    def longest_block(self, seconds: float) -> float:
        """The time for a read to block on the server: `seconds`, or less where the connection would time out."""
        return min(seconds, _LONGEST_BLOCK * self.settings.connect_timeout)

    @contextlib.contextmanager
    def blocking(self, seconds: float) -> Iterator[bool]:
        """Yield whether a read may block on the server now; where it may not, sleep for about as long first.

        A blocking read occupies a connection, and half of the pool is reserved for commands.
        """
        if self._blocking.acquire(blocking=False):
            try:
                yield True
            finally:
                self._blocking.release()
            return
        time.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the reads
        yield False

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the client. Raises WrongType or StoreUnavailable for an error of Redis."""
        try:
            return function(*args, **kwargs)
        except ERRORS as error:
            raise self.translated(error) from error

    def translated(self, error: Exception) -> WrongType | StoreUnavailable:
        """An error of Redis as Longshore's own."""
        if isinstance(error, redis.exceptions.InvalidResponse):
            return StoreUnavailable(
                f"the server at {self.shown_url()} does not answer as Redis does",
                remedy="correct host and port in LONGSHORE_REDIS_URL",
            )
        why = str(error).rstrip(".")
        if "WRONGTYPE" in why:
            return WrongType(
                f"Redis at {self.shown_url()}: a key has the wrong type", remedy="find the key: longshore doctor"
            )
        return StoreUnavailable(f"Redis at {self.shown_url()}: {why}", remedy=_remedy(why))

    def acknowledged(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script and return its answer once the required replicas have its writes; see `written`."""
        return self.call(self._evaluated, script, keys, args)

    def _evaluated(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        until = time.monotonic() + self.settings.connect_timeout
        while True:
            try:
                if not self.settings.needed_replicas():
                    return self.client.evalsha(script.sha, len(keys), *keys, *args)
                pipe = self.client.pipeline(transaction=False)
                pipe.evalsha(script.sha, len(keys), *keys, *args)
                return self.written(pipe)[0]
            except redis.exceptions.NoScriptError:
                self._load(script, until)

    def _load(self, script: Script, until: float) -> None:
        """Load a script into the server, or, as a user who may load none, wait 0.1 s for a worker to load it."""
        if self._loads:
            try:
                self.client.script_load(script.script)
            except redis.exceptions.NoPermissionError:
                self._loads = False
            else:
                return
        if time.monotonic() >= until:
            raise StoreUnavailable(
                f"Redis at {self.shown_url()} does not know the scripts of this version, and this user may load none",
                remedy="start a worker of this version, which loads them; after a restart of Redis, try again",
            )
        time.sleep(_SCRIPT_PAUSE)

    def written(self, pipe: Any) -> list[Any]:
        """Execute a pipeline and return its answers once the required replicas have its writes.

        A failover loses writes that no replica has, so none of those may be acknowledged. The pipeline must not be a
        transaction, in which WAIT does not wait; the caller passes this method to `call`. Raises StoreUnavailable where
        too few replicas have the writes in time; the writes may have been applied all the same.
        """
        wanted = self.settings.needed_replicas()
        if wanted:  # in the same pipeline: WAIT covers the writes of its own connection
            pipe.wait(wanted, milliseconds(_REPLICATION))
        answers = list(pipe.execute())
        if wanted and int(answers.pop()) < wanted:
            raise StoreUnavailable(
                f"Redis at {self.shown_url()}: fewer than the {wanted} required replicas have the write",
                remedy="start the replicas; or set LONGSHORE_REPLICAS=0, with which a failover can lose writes",
            )
        return answers

    def shown_url(self) -> str:
        """The URL of Redis without its password."""
        url = self.settings.url()
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"

    def now(self) -> int:
        """The time by Redis's clock, ms."""
        seconds, micros = self.call(self.client.time)
        return int(seconds) * 1000 + int(micros) // 1000

    def now_with(self, *fields: str) -> tuple[int, list[str | None]]:
        """The time by Redis's clock, ms, and fields of the clock hash, in one round trip."""
        pipe = self.client.pipeline(transaction=False)
        pipe.time()
        pipe.hmget(self.keys.clock, fields)
        (seconds, micros), values = self.call(pipe.execute)
        return int(seconds) * 1000 + int(micros) // 1000, values

    def steady(self) -> float:
        """The time by a clock of this machine that is never set, ms; includes sleep on Linux."""
        return time.clock_gettime(_STEADY) * 1000
