"""One connection to the saga's Redis, and its one error."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from longshore.orchestration.errors import ConfigError, StoreUnavailable, WrongType
from longshore.orchestration.settings import SENTINEL, Settings, get_settings, sentinel
from longshore.orchestration.store.keys import Keys

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

#: Times that a command is sent again over a new connection before the caller is told.
_TRIES = 1
#: Seconds that replicas are given to have what was written.
_REPLICATION = 2.0
#: Seconds between two times that a script which others load is called.
_SCRIPT_PAUSE = 0.1
#: Seconds that a thread waits for one of the process's connections.
_CONNECTION = 30.0
#: Seconds that a read may wait on the server.
_LONGEST_BLOCK = 2.0
#: Elsewhere than on Linux the clock stands still while the machine sleeps.
_STEADY: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def as_number(text: object) -> int | None:
    """The integer that a key or a field holds; None where there is none, or no integer."""
    try:
        return int(str(text))
    except ValueError:
        return None


def connect(settings: Settings) -> redis.Redis:
    """A client of the saga's Redis. Nothing is sent yet.

    Commands are tried again after a lost connection, so a script may be applied twice: each of ours
    can be.
    """
    import redis  # noqa: PLC0415 - 0.2 s that `longshore --help` need not pay
    from redis.backoff import ExponentialWithJitterBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    options: dict[str, Any] = {
        "decode_responses": True,
        # Bytes that are no text are one damaged entry; an exception would end the reading of all the others.
        "encoding_errors": "surrogateescape",
        "socket_connect_timeout": settings.connect_timeout,
        # Longer than any read that waits for something to happen.
        "socket_timeout": max(_LONGEST_BLOCK + 1.0, settings.connect_timeout),
        "health_check_interval": 15,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _TRIES),
    }
    if settings.url().startswith(SENTINEL):
        found = sentinel(settings.url())
        # redis-py has no pool of a sentinel's that waits for a connection: it makes as many as are asked for.
        options["max_connections"] = 2**31
        ask = {"socket_timeout": settings.connect_timeout, "socket_connect_timeout": settings.connect_timeout}
        return redis.Sentinel(found.hosts, sentinel_kwargs=ask).master_for(  # type: ignore[no-untyped-call, no-any-return]
            found.service, db=found.db, username=found.username, password=found.password, **options
        )
    try:
        # A thread too many waits for a connection, where redis-py's own pool fails.
        pool = redis.BlockingConnectionPool.from_url(
            settings.url(), max_connections=settings.max_connections, timeout=_CONNECTION, **options
        )
        return redis.Redis.from_pool(pool)
    except ValueError as error:
        raise ConfigError(f"the Redis URL is no URL: {error}", remedy="redis://host:6379/0") from None


def _remedy(said: str) -> str:
    """What to do about what Redis says."""
    for word, remedy in _REMEDIES.items():
        if word in said:
            return remedy
    return "is it up, and LONGSHORE_REDIS_URL right?"


_REMEDIES = {
    "No connection available": "too many threads share its connections: raise LONGSHORE_MAX_CONNECTIONS",
    "maxmemory": "it has no memory left: raise its maxmemory, or longshore runs prune; nothing is lost",
    "MISCONF": "it cannot write to its disk: make room there",
    "READONLY": "it is a replica: use the address of the master, or a sentinel:// URL",
    "NOAUTH": "put the password into LONGSHORE_REDIS_URL",
    "HELLO must": "it wants a user and a password: put them into LONGSHORE_REDIS_URL",
    "invalid username-password": "the user or password in LONGSHORE_REDIS_URL is wrong",
    "WRONGPASS": "the user or password in LONGSHORE_REDIS_URL is wrong",
    "NOPERM": "its user may not do that: docs/security.md has what each may",
    "no permissions": "its user may not do that: docs/security.md has what each may",
    "LOADING": "it is reading its data, and will answer soon",
}


class Connection:
    """One installation's keys on its Redis. Raises StoreUnavailable where that does not answer."""

    def __init__(self, settings: Settings | None = None, client: redis.Redis | None = None) -> None:
        self.settings = settings or get_settings()
        self.keys = Keys(self.settings.namespace)
        self.client = client if client is not None else connect(self.settings)
        #: Whether its user may load scripts, as far as is known.
        self._loads = True

    @cached_property
    def _blocking(self) -> threading.Semaphore:
        return threading.Semaphore(max(1, self.settings.max_connections // 2))

    @contextlib.contextmanager
    def blocking(self, seconds: float) -> Iterator[bool]:
        """Whether a read may wait on the server just now: it holds a connection all the while, and half of them are
        kept for commands. Where it may not, the thread has waited here instead.
        """
        if self._blocking.acquire(blocking=False):
            try:
                yield True
            finally:
                self._blocking.release()
            return
        time.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - not all at once
        yield False

    @cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        import redis  # noqa: PLC0415 - see connect

        return (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except self._errors as error:
            why = str(error).rstrip(".")
            if "WRONGTYPE" in why:
                raise WrongType(
                    f"Redis at {self.shown_url()}: a key has the wrong type", remedy="longshore doctor names the key"
                ) from error
            raise StoreUnavailable(f"Redis at {self.shown_url()}: {why}", remedy=_remedy(why)) from error

    def acknowledged(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """A script's answer, once as many replicas as the settings ask for have what it wrote; see `written`."""
        return self.call(self._evaluated, script, keys, args)

    def _evaluated(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        import redis  # noqa: PLC0415 - see connect

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
        """Have the server know a script, or wait a moment until a worker has: a client's user may load none."""
        import redis  # noqa: PLC0415 - see connect

        if self._loads:
            try:
                self.client.script_load(script.script)
            except redis.exceptions.NoPermissionError:
                self._loads = False
            else:
                return
        if time.monotonic() >= until:
            raise StoreUnavailable(
                f"Redis at {self.shown_url()} does not know the scripts of this version, and its user may load none",
                remedy="start a worker of this version, which loads them; does Redis just restart, try again",
            )
        time.sleep(_SCRIPT_PAUSE)

    def written(self, pipe: Any) -> list[Any]:
        """The answers of a pipeline, once as many replicas as the settings ask for have what it wrote.

        A server that dies takes with it what only it had; what was acknowledged must not be of that. The pipeline is
        no transaction, in which WAIT would not wait. To be called by `call`; raises StoreUnavailable where too few
        have it in time: it may have been written all the same.
        """
        wanted = self.settings.needed_replicas()
        if wanted:  # in the same pipeline: WAIT is about the writes of its own connection
            pipe.wait(wanted, milliseconds(_REPLICATION))
        answers = list(pipe.execute())
        if wanted and int(answers.pop()) < wanted:
            raise StoreUnavailable(
                f"Redis at {self.shown_url()}: fewer than the {wanted} replicas that must have it have it",
                remedy="is a replica up? With LONGSHORE_REPLICAS=0 none is waited for, and a failover can lose it",
            )
        return answers

    def shown_url(self) -> str:
        """Without a password."""
        url = self.settings.url()
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"

    def now(self) -> int:
        """ms of Redis's clock."""
        seconds, micros = self.call(self.client.time)
        return int(seconds) * 1000 + int(micros) // 1000

    def now_with(self, *fields: str) -> tuple[int, list[str | None]]:
        """ms of Redis's clock, and fields of what is known of that clock, in one round trip."""
        pipe = self.client.pipeline(transaction=False)
        pipe.time()
        pipe.hmget(self.keys.clock, fields)
        (seconds, micros), values = self.call(pipe.execute)
        return int(seconds) * 1000 + int(micros) // 1000, values

    def steady(self) -> float:
        """ms of a clock of this machine that is never set, and goes on while the machine sleeps."""
        return time.clock_gettime(_STEADY) * 1000
