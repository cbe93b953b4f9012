"""File locks between the workers of one host, for operations that engine and Compose do not serialize."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator

from longshore.orchestration.settings import get_settings

_TICK = 0.05


@contextlib.contextmanager
def exclusive(name: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of that name. The wait calls `check` every 50 ms; an error of `check` ends the wait.

    The kernel releases the lock when the holding process ends.
    """
    folder = get_settings().state_dir / "locks"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(_TICK)
        yield
    finally:
        os.close(fd)
