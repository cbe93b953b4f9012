"""The handle of one run for asyncio: `Run` with each method awaitable, and events by `async for`.

Events come over the one connection that all watchers of a client share; all else is done by `Run` in a few threads of
the client.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, ParamSpec, Protocol, TypeVar

from longshore.orchestration.client.run import (
    ANSWER_PAUSE,
    IdleLog,
    Resolution,
    Run,
    checked,
    lost,
    not_answered,
    timed_out,
)
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs import events
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.hooks import HookDispatcher, Hooks
from longshore.orchestration.runs.report import Report
from longshore.orchestration.states import TERMINAL, RunState
from longshore.orchestration.store.records import stream_order
from longshore.orchestration.store.stream_reader import StreamReader, Subscription

P = ParamSpec("P")
T = TypeVar("T")


class InThread(Protocol):
    """Calls a blocking function in a thread."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...


class Events:
    """The events of a run: `await` returns those so far; `async for` yields them as they occur, until the run ends."""

    def __init__(self, so_far: Callable[[], Awaitable[list[Event]]], live: Callable[[], AsyncIterator[Event]]) -> None:
        self._so_far = so_far
        self._live = live

    def __await__(self) -> Generator[Any, Any, list[Event]]:
        return self._so_far().__await__()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._live()


class AsyncRun:
    """A handle to one run in an asyncio application, with the methods and errors of `Run`."""

    def __init__(self, run: Run, in_thread: InThread, reader: StreamReader) -> None:
        self._run = run
        self._in_thread = in_thread
        self._reader = reader

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def run_id(self) -> str:
        return self._run.id

    @property
    def plan(self) -> CompiledPlan:
        return self._run.plan

    @property
    def attached(self) -> bool:
        """Whether the run existed before this client asked for it."""
        return self._run.attached

    def __repr__(self) -> str:
        return f"AsyncRun({self.id!r})"

    async def state(self) -> RunState:
        """The state of the run; `pending` until a worker has read the request of the run."""
        return await self._in_thread(self._run.state)

    async def unserved(self) -> list[str]:
        """The queues that the run needs and that no worker consumes now."""
        return await self._in_thread(self._run.unserved)

    async def waits_for(self) -> list[str]:
        """The reasons why the run does not continue now, as `Run.waits_for` returns them."""
        return await self._in_thread(self._run.waits_for)

    async def report(self) -> Report:
        """The present report of the run. The report is complete once the run has ended."""
        return await self._in_thread(self._run.report)

    # --- following ----------------------------------------------------------------------------------

    def events(self, after: str = "0-0") -> Events:
        """The events after the cursor `after`: `await` returns those so far, `async for` follows the run to its end."""
        return Events(lambda: self._in_thread(self._run.events, after), lambda: self.watch(after))

    async def watch(self, after: str = "0-0", *, hooks: Hooks | None = None) -> AsyncIterator[Event]:
        """Yield the events after the cursor `after` as they occur, until the run has ended.

        For each of these events, `hooks` are called once, in order, in the event loop. A hook may be a coroutine
        function. Raises as `Run.watch` does.
        """
        watcher = await self._watcher(hooks, after) if hooks is not None else None
        async for event in self._watch(after):
            if watcher is not None:
                await watcher(event)
            yield event

    async def _watch(self, after: str) -> AsyncIterator[Event]:
        run = self._run
        with self._reader.follow(self.id, run.store.keys.of(self.id).events, after) as stream:
            while True:
                entries = await stream.next()
                found = [event for entry in entries if (event := events.parse(self.plan, *entry)) is not None]
                for event in found:
                    yield event
                is_end = not entries or any(event.name == "run_ended" for event in found)
                if is_end and self._state_of(stream) in TERMINAL:
                    for event in await self.events(stream.cursor or "0-0"):
                        yield event
                    return

    def _state_of(self, stream: Subscription) -> RunState:
        """The state of the run at the last check. Raises RunLost where neither record nor request exists."""
        if not stream.exists:
            raise lost(self.id)
        return RunState(stream.state or RunState.PENDING)

    async def _watcher(self, hooks: Hooks, after: str) -> Callable[[Event], Awaitable[None]]:
        """The function that calls the hooks of an event; reads their arguments in a thread."""
        dispatcher = HookDispatcher(self._run.store, self.id, self.plan)
        # Earlier events only rebuild the state of the dispatcher, which the arguments of hooks need.
        for event in await self.events() if after != "0-0" else []:
            if stream_order(event.id) <= stream_order(after):
                dispatcher.note(event)

        async def call(event: Event) -> None:
            hooks.event = event
            for name, arguments in dispatcher.calls(event):
                answer = getattr(hooks, name)(*await self._in_thread(arguments))
                if inspect.isawaitable(answer):
                    await answer

        return call

    async def wait(self, timeout: float | None = None, *, check: bool = False, hooks: Hooks | None = None) -> Report:
        """Wait until the run has ended and return its report. Calls hooks and raises as `Run.wait` does."""
        try:
            async with asyncio.timeout(timeout) as limit:
                await (self._ended() if hooks is None else self._ended_with(hooks))
        except TimeoutError:
            if not limit.expired():
                raise  # from a hook
            raise timed_out(await self.report(), timeout or 0.0, await self.waits_for()) from None
        report = await self.report()
        return checked(report) if check else report

    async def _ended(self) -> None:
        idle = IdleLog(self.id)
        with self._reader.follow(self.id, self._run.store.keys.of(self.id).events, None) as stream:
            while True:
                entries = await stream.next()
                if self._state_of(stream) in TERMINAL:
                    return
                if not entries and idle.is_due():
                    idle.tell(await self.waits_for())

    async def _ended_with(self, hooks: Hooks) -> None:
        async for _ in self.watch(hooks=hooks):
            pass

    async def log(self, step: str) -> AsyncIterator[str]:
        """The last thousand lines of the output of a step. Raises UnknownName if the plan has no such step."""
        async for _, line in self.output(step):
            yield line

    async def output(self, step: str, *, follow: bool = False) -> AsyncIterator[tuple[str, str]]:
        """The output of a step as pairs (stream, line), as `Run.output` returns it."""
        if not follow:
            for line in await self._in_thread(lambda: list(self._run.output(step))):
                yield line
            return
        key = self._run.store.keys.of(self.id).log(self._run._id_of(step))
        with self._reader.follow(self.id, key, "0-0") as stream:
            while True:
                entries = await stream.next()
                for _, fields in entries:
                    yield fields.get("stream", ""), fields.get("line", "")
                if not entries and self._state_of(stream) in TERMINAL:
                    return

    # --- commands -----------------------------------------------------------------------------------

    async def cancel(self, reason: str = "", *, keep: bool = False) -> str:
        """Cancel the run, as `Run.cancel` does. Returns the id of the command, for `answer`."""
        return await self._in_thread(self._run.cancel, reason, keep=keep)

    async def undo(self, reason: str = "") -> str:
        """Undo an ended run, or retry its failed undos. Returns the id of the command, for `answer`."""
        return await self._in_thread(self._run.undo, reason)

    async def resume(self, reason: str = "") -> str:
        """Resume a run, as `Run.resume` does. Returns the id of the command, for `answer`."""
        return await self._in_thread(self._run.resume, reason)

    async def resolve(self, step: str, word: Resolution, note: str = "") -> str:
        """Record the outcome of a step, as `Run.resolve` does. Returns the id of the command, for `answer`."""
        return await self._in_thread(self._run.resolve, step, word, note)

    async def prune(self, timeout: float = 30.0) -> str:
        """Delete the record of an ended run, as `Run.prune` does."""
        command_id = await self._in_thread(self._run.prune, 0)
        return await self.answer(command_id, timeout) if timeout else ""

    async def approve(self, step: str, note: str = "") -> str:
        """Approve a step that waits for an approval. Returns and raises as `Run.approve` does."""
        return await self._in_thread(self._run.approve, step, note)

    async def reject(self, step: str, note: str = "") -> str:
        """Reject a step that waits for an approval: the step fails. Returns and raises as `approve` does."""
        return await self._in_thread(self._run.reject, step, note)

    async def answer(self, command_id: str, timeout: float = 30.0) -> str:
        """Wait until a worker has handled a command. Returns and raises as `Run.answer` does."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if (found := await self._in_thread(self._run._answered, command_id)) is not None:
                return found
            await asyncio.sleep(ANSWER_PAUSE)
        raise not_answered(self.id)
