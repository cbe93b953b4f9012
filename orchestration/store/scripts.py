"""The Lua scripts of the store: loaded on demand, and run with the acknowledgement of the required replicas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from kombu.transport import redis as kombu_redis
from redis.commands.core import Script
from redis.lock import Lock

from longshore.orchestration.store import lua
from longshore.orchestration.store.connection import Connection


class Scripts(Connection):
    """Runs the scripts of an installation."""

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        return {}

    def _script(self, name: str, *, of_run: bool) -> Script:
        """The script of a name: of a run's record, or of the whole installation."""
        script = self._scripts.get(name)
        if script is None:
            text = lua.source(name) if of_run else lua.installation_source(name)
            script = self._scripts[name] = self.client.register_script(text)
        return script

    def _run(self, name: str, run_id: str, *args: object, keys: Sequence[str] = (), lasting: bool = True) -> Any:
        """Run a script on the record of a run, with further keys."""
        script, names = self._script(name, of_run=True), [*self.keys.of(run_id).record(), *keys]
        if not lasting:  # a write that is repeated after its loss does not wait for replicas
            return self.call(script, keys=names, args=list(args))
        return self.acknowledged(script, names, args)

    def run_global(self, name: str, keys: Sequence[str], *args: object) -> Any:
        """Run a script of the whole installation."""
        return self.acknowledged(self._script(name, of_run=False), keys, args)

    def load_scripts(self) -> bool:
        """Load the scripts that clients call; return whether one was missing.

        A client's Redis user may load no scripts, and Redis loses all of them at a restart or failover. Flower and
        other clients of Celery's remote control release a lock of the broker by a script of redis-py, and renew their
        binding by scripts of kombu.
        """
        # kombu has these scripts since 5.7.
        broker = [getattr(kombu_redis, name, None) for name in ("REFRESH_BINDING", "SWEEP_BINDINGS")]
        texts = [*map(lua.installation_source, lua.OF_CLIENTS), Lock.LUA_RELEASE_SCRIPT, *filter(None, broker)]
        scripts = [self.client.register_script(text) for text in texts]
        known = self.call(self.client.script_exists, *(script.sha for script in scripts))
        missing = [script for script, there in zip(scripts, known, strict=True) if not there]
        for script in missing:
            self.call(self.client.script_load, script.script)
        return bool(missing)
