"""Live output of a job container, forwarded by a separate thread on a best-effort basis."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.factory import close_engine, engine
from longshore.tasks.host.machine.live import Live
from longshore.tasks.implementation import Context

#: Seconds to read the remaining output after the container's end.
_LAST_WORDS = 5.0
#: Seconds until a broken connection is retried.
_RETRY_AFTER = 1.0


class LogForwarder:
    """Forwards lines, thread-safe: one thread reads them, and another sends the buffered ones in time."""

    def __init__(self, ctx: Context) -> None:
        self._live = Live(ctx)
        self._lock = threading.Lock()

    def __call__(self, stream: int, piece: bytes) -> None:
        with self._lock:
            self._live(stream, piece)

    def check(self) -> None:
        with self._lock:
            self._live.check()

    def flush(self) -> None:
        with self._lock:
            self._live.flush()


@contextlib.contextmanager
def followed(ctx: Context, container: str, engine_time: float) -> Iterator[LogForwarder]:
    """Follow a container's output within the block. A retry forwards only output after `engine_time`, the present time
    on the engine's clock.
    """
    forwarder, ended = LogForwarder(ctx), threading.Event()
    skew = engine_time - time.time()

    def follow() -> None:
        since = None if ctx.attempt == 1 else engine_time
        try:
            while not ended.is_set():
                try:
                    engine().follow(container, forwarder, ended.is_set, since=since)
                except OperationError:
                    # No output for long, or a lost connection: follow again from now.
                    since = time.time() + skew
                    close_engine()
                    ended.wait(_RETRY_AFTER)
                else:
                    return
        finally:
            forwarder.flush()
            close_engine()

    follower = threading.Thread(target=follow, name="longshore-follow", daemon=True)
    follower.start()
    try:
        yield forwarder
    finally:
        follower.join(_LAST_WORDS)
        ended.set()
