"""What a worker container says, told as it comes, from a thread of its own; nothing depends on it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.factory import close_engine, engine
from longshore.tasks.host.machine.live import Live
from longshore.tasks.implementation import Context

#: Seconds for the last of it to be read.
_LAST_WORDS = 5.0
#: Seconds until a connection that broke is made again; and in which what was told already may come again.
_AGAIN = 1.0


class LogForwarder:
    """Lines on their way, from two threads: one reads them, the other sees to it that none is held for long."""

    def __init__(self, ctx: Context) -> None:
        self._live = Live(ctx)
        self._alone = threading.Lock()

    def __call__(self, stream: int, piece: bytes) -> None:
        with self._alone:
            self._live(stream, piece)

    def check(self) -> None:
        with self._alone:
            self._live.check()

    def flush(self) -> None:
        with self._alone:
            self._live.flush()


@contextlib.contextmanager
def followed(ctx: Context, container: str, engine_time: float) -> Iterator[LogForwarder]:
    """Follow a container's output meanwhile. A later attempt goes on where it comes in: `engine_time` is now, on the
    engine's clock.
    """
    told, ended = LogForwarder(ctx), threading.Event()
    skew = engine_time - time.time()

    def follow() -> None:
        since = None if ctx.attempt == 1 else engine_time
        try:
            while not ended.is_set():
                try:
                    engine().follow(container, told, ended.is_set, since=since)
                except OperationError:
                    # It was quiet for long, or the engine was away: what it says is to be had again.
                    since = time.time() + skew
                    close_engine()
                    ended.wait(_AGAIN)
                else:
                    return
        finally:
            told.flush()
            close_engine()

    follower = threading.Thread(target=follow, name="longshore-follow", daemon=True)
    follower.start()
    try:
        yield told
    finally:
        follower.join(_LAST_WORDS)
        ended.set()
