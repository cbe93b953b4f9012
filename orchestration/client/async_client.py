"""The client of an application for asyncio: `Client` with each method awaitable.

    async with AsyncClient() as client:
        run = await client.start(plan)
        async for event in run.events():
            ...

All watchers of a client read over one connection. Every other call is one of `Client`, in one of a few threads that
belong to the client, so that neither the event loop nor the threads of the application wait for Redis.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar, overload

from celery import Celery

from longshore.orchestration.client.async_run import AsyncRun
from longshore.orchestration.client.client import Client
from longshore.orchestration.client.replay import Replay
from longshore.orchestration.client.run import Run
from longshore.orchestration.language.targets import HostFilter
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.hosts import Host
from longshore.orchestration.store.stream_reader import Entry, StreamReader

P = ParamSpec("P")
T = TypeVar("T")

#: The threads of a client, which wait for Redis; each uses at most one connection.
_THREADS = 4


class AsyncClient:
    """The entry point of an asyncio application, with the methods and errors of `Client`.

    An instance belongs to one event loop. The constructor blocks while it starts an embedded server.
    """

    def __init__(self, settings: Settings | None = None, *, app: Celery | None = None) -> None:
        self._client = Client(settings, app=app)
        self.settings = self._client.settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="longshore")
        self._reader = StreamReader(self._client.store, self._history)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        context = contextvars.copy_context()  # the trace of the caller
        call = partial(context.run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _history(self, key: str, after: str) -> list[Entry]:
        store = self._client.store
        found = await self._in_thread(store.call, store.client.xread, {key: after}, count=1000)
        return found[0][1] if found else []

    def _handle(self, run: Run) -> AsyncRun:
        return AsyncRun(run, self._in_thread, self._reader)

    async def ensure_server(self) -> None:
        """Start the embedded server, if the settings name no Redis. An idle server ends by itself."""
        await self._in_thread(self._client.ensure_server)

    async def close(self) -> None:
        """Close the connections and end the threads. The client cannot be used afterwards."""
        await self._in_thread(self._client.close)
        self._threads.shutdown(wait=False)

    # --- starting ---------------------------------------------------------------------------------

    async def start(
        self,
        plan: Plan | str,
        params: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> AsyncRun:
        """Start a run of a plan and return at once, as `Client.start` does."""
        return self._handle(await self._in_thread(self._client.start, plan, params, run_id=run_id))

    async def run_operation(
        self,
        operation: str,
        /,
        *,
        run_id: str | None = None,
        target: str = "_any",
        inside: str | None = None,
        timeout: float | str | None = None,
        **params: Any,
    ) -> AsyncRun:
        """Start a run of one step and return at once, as `Client.run_operation` does."""
        start = partial(self._client.run_operation, operation, run_id=run_id, target=target, inside=inside)
        return self._handle(await self._in_thread(partial(start, timeout=timeout, **params)))

    # --- finding ----------------------------------------------------------------------------------

    async def cached(self, name: str) -> Any | None:
        """The value of a cache, as stored by `cache.rebuild.execute`; None if the cache is not valid."""
        return await self._in_thread(self._client.cached, name)

    async def get(self, run_id: str) -> AsyncRun:
        """The run with this id. Raises UnknownName if no such run exists."""
        return self._handle(await self._in_thread(self._client.get, run_id))

    async def runs(self, limit: int = 50) -> list[AsyncRun]:
        """The latest runs, newest first, without damaged records."""
        return [self._handle(run) for run in await self._in_thread(self._client.runs, limit)]

    # --- replay -----------------------------------------------------------------------------------

    async def replay(
        self, *, host: str = "", service: str = "", since: datetime | None = None, run_id: str | None = None
    ) -> tuple[AsyncRun | None, Replay]:
        """Start a run that repeats recorded effects, as `Client.replay` does."""
        run, found = await self._in_thread(self._client.replay, host=host, service=service, since=since, run_id=run_id)
        return (self._handle(run) if run is not None else None), found

    async def find_effects(self, *, host: str = "", service: str = "", since: datetime | None = None) -> Replay:
        """The replay that `replay` would start. Starts nothing. `close()` of the result deletes its temporary files."""
        return await self._in_thread(self._client.find_effects, host=host, service=service, since=since)

    # --- dry run ----------------------------------------------------------------------------------

    async def dry_run(self, plan: Plan | str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Ask the workers what each step would do, as `Client.dry_run` does."""
        return await self._in_thread(self._client.dry_run, plan, params)

    # --- hosts --------------------------------------------------------------------------------------

    @overload
    async def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: None = None, **conditions: Any
    ) -> list[Host]: ...

    @overload
    async def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: str, **conditions: Any
    ) -> dict[str, list[Host]]: ...

    async def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: str | None = None, **conditions: Any
    ) -> list[Host] | dict[str, list[Host]]:
        """The hosts that match a condition, as `Client.hosts` returns them."""
        find: Any = partial(self._client.hosts, condition, group_by=group_by, **conditions)
        found: list[Host] | dict[str, list[Host]] = await self._in_thread(find)
        return found

    async def drain(self, host: str, *, stop: bool = False) -> Host:
        """Drain a host, as `Client.drain` does."""
        return await self._in_thread(self._client.drain, host, stop=stop)

    async def undrain(self, host: str) -> Host:
        """End the drain of a host. Raises UnknownName for an unknown host."""
        return await self._in_thread(self._client.undrain, host)
