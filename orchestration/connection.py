"""One connection to the saga's Redis, and its one error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from longshore.orchestration.errors import ConfigError, StoreUnavailable
from longshore.orchestration.keys import Keys
from longshore.orchestration.settings import SENTINEL, Settings, get_settings, sentinel

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

#: Times that a command is sent again over a new connection before the caller is told.
_TRIES = 1
#: Seconds that replicas are given to have what was written.
_REPLICATION = 2.0
#: Seconds that a read may wait on the server.
_LONGEST_BLOCK = 2.0
#: Elsewhere than on Linux the clock stands still while the machine sleeps.
_STEADY: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


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
        "socket_connect_timeout": settings.connect_timeout,
        # Longer than any read that waits for something to happen.
        "socket_timeout": max(_LONGEST_BLOCK + 1.0, settings.connect_timeout),
        "health_check_interval": 15,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _TRIES),
    }
    if settings.url().startswith(SENTINEL):
        found = sentinel(settings.url())
        ask = {"socket_timeout": settings.connect_timeout, "socket_connect_timeout": settings.connect_timeout}
        return redis.Sentinel(found.hosts, sentinel_kwargs=ask).master_for(  # type: ignore[no-untyped-call, no-any-return]
            found.service, db=found.db, username=found.username, password=found.password, **options
        )
    try:
        return redis.Redis.from_url(settings.url(), **options)
    except ValueError as error:
        raise ConfigError(f"the Redis URL is no URL: {error}", remedy="redis://host:6379/0") from None


def _remedy(said: str) -> str:
    """What to do about what Redis says."""
    for word, remedy in _REMEDIES.items():
        if word in said:
            return remedy
    return "is it up, and LONGSHORE_REDIS_URL right?"


_REMEDIES = {
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

    @cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        import redis  # noqa: PLC0415 - see connect

        return (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except self._errors as error:
            why = str(error).rstrip(".")
            raise StoreUnavailable(f"Redis at {self.shown_url()}: {why}", remedy=_remedy(why)) from error

    def acknowledged(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """A script's answer, once as many replicas as the settings ask for have what it wrote; see `written`."""
        if not self.settings.needed_replicas():
            return self.call(script, keys=keys, args=args)
        return self.call(self._evaluated, script, keys, args)

    def _evaluated(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        import redis  # noqa: PLC0415 - see connect

        for known in (False, True):
            pipe = self.client.pipeline(transaction=False)
            pipe.evalsha(script.sha, len(keys), *keys, *args)
            try:
                return self.written(pipe)[0]
            except redis.exceptions.NoScriptError:
                if known:
                    raise
                self.client.script_load(script.script)
        raise AssertionError("not reached")

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
