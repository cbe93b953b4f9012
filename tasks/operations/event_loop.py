"""The event loop of a worker process, in which `async def` operations run.

The loop lives in a thread as long as the process does, so that a pool of connections can serve several steps.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any

from longshore.tasks.implementation import Context

#: Seconds between two looks at whether the attempt is cancelled.
_LOOK = 0.2

_lock = threading.Lock()
#: The loop of a process by its pid: the threads of a parent do not exist in a forked child.
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="longshore-operations", daemon=True).start()
    return loop


def run(coroutine: Coroutine[Any, Any, Any], ctx: Context) -> Any:
    """Run a coroutine to its end in the loop of this process, in the context variables of the caller.

    The coroutine is cancelled at the deadline of the attempt and where the run is aborting; this raises StepTimeout
    or StepCancelled once it has ended, as `Context.check` does. A result that it returns all the same is returned.
    """
    future: Future[Any] = asyncio.run_coroutine_threadsafe(_settled(coroutine, ctx), _loop())
    try:
        return future.result()
    except CancelledError:
        ctx.check()
        raise
    except BaseException:  # the time limit of the process, too, must not leave the coroutine running
        future.cancel()
        raise


async def _settled(coroutine: Coroutine[Any, Any, Any], ctx: Context) -> Any:
    """The result of the coroutine, which is cancelled with the attempt."""
    task = asyncio.ensure_future(coroutine)
    try:
        while not (await asyncio.wait([task], timeout=_LOOK))[0]:
            if ctx.cancelled:
                task.cancel()  # once: a second one would interrupt its cleanup
                break
        return await task
    finally:
        task.cancel()
