"""The store of the sandbox: Redis in memory, with a clock that tests move."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import ConfigError
from longshore.orchestration.settings import Settings
from longshore.orchestration.store import lua
from longshore.orchestration.store.run_store import Store

_TIME = "redis.call('TIME')"


_CLOCK = "redis.call('HMGET', 'sandbox:clock', 's', 'us')"


class MemoryStore(Store):
    """The store with its own scripts, on a server in memory and by a clock that only the sandbox moves."""

    def __init__(self, settings: Settings) -> None:
        try:
            import fakeredis  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigError(
                "the sandbox and longshore plan simulate need fakeredis", remedy="pip install 'longshore[testing]'"
            ) from error
        super().__init__(settings, fakeredis.FakeRedis(decode_responses=True))
        self._clock = 1_000_000_000_000
        #: ms by which that clock was set, and not merely went on.
        self._set_by = 0
        # Answers TIME, alone or in a pipeline.
        self.client.set_response_callback("TIME", lambda _time, **_: self._time())
        self.advance(0)

    def _script(self, name: str, *, of_run: bool) -> Any:
        if name not in self._scripts:
            text = lua.source(name) if of_run else lua.installation_source(name)
            self._scripts[name] = self.client.register_script(text.replace(_TIME, _CLOCK))
        return self._scripts[name]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._clock += round(seconds * 1000)
        whole, micros = self._time()
        self.client.hset("sandbox:clock", mapping={"s": whole, "us": micros})

    def _time(self) -> tuple[int, int]:
        """As Redis gives it, in seconds and microseconds."""
        seconds, ms = divmod(self._clock, 1000)
        return seconds, ms * 1000

    def jump(self, seconds: float) -> None:
        """Set the clock, forward or back."""
        self._set_by += round(seconds * 1000)
        self.advance(seconds)

    def steady(self) -> float:
        return self._clock - self._set_by

    def may_have_lost(self, since: int) -> bool:
        return False
