"""Operations that log their effects in files outside of Redis. The tests compare the reports with these logs.

An effect is one line, appended by one `write`, so that no kill leaves a part of a line.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longshore.orchestration import Blocked, Context, Preflight, Transient, operation


@contextmanager
def _log(folder: Path, run_id: str) -> Iterator[int]:
    """The log of a run, with an exclusive lock."""
    number = os.open(folder / f"{run_id}.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield number
    finally:
        os.close(number)


def _count(number: int, word: str, part: str) -> int:
    return os.pread(number, 1 << 20, 0).decode().splitlines().count(f"{word} {part}")


def _write(number: int, word: str, part: str) -> None:
    os.write(number, f"{word} {part}\n".encode())


def _own(ctx: Context) -> str:
    return ctx.part.replace("@undo", "")


@operation("effect.set", idempotent=True, undo="effect.unset")
def set_(ctx: Context, folder: Path, seconds: float = 0.0, flaky: bool = False) -> dict[str, str]:
    """Set a state. A second call changes nothing. With `flaky`, the first attempt fails."""
    with _log(folder, ctx.run_id) as log:
        if flaky and not _count(log, "tried", ctx.part):
            _write(log, "tried", ctx.part)
            raise Transient("the first attempt fails")
        if not _count(log, "did", ctx.part):
            _write(log, "did", ctx.part)
    time.sleep(seconds)
    return {"folder": str(folder), "part": ctx.part}


@operation("effect.unset", idempotent=True)
def unset(ctx: Context, folder: Path) -> None:
    """Reverse `effect.set` or `effect.act`. A second call changes nothing."""
    with _log(folder, ctx.run_id) as log:
        if _count(log, "did", _own(ctx)) > _count(log, "undid", _own(ctx)):
            _write(log, "undid", _own(ctx))


@operation("effect.act")
def act(ctx: Context, folder: Path, seconds: float = 0.0) -> None:
    """Log an effect at each call. The operation is not idempotent."""
    with _log(folder, ctx.run_id) as log:
        _write(log, "did", ctx.part)
    time.sleep(seconds)


@operation("effect.fail")
def fail(ctx: Context, folder: Path, fails: bool) -> None:
    if fails:
        raise Preflight("the parameter `fails` is set")


@operation("effect.always", idempotent=True)
def always(ctx: Context, folder: Path) -> None:
    with _log(folder, ctx.run_id) as log:
        _write(log, "always", ctx.part)


@operation("effect.call", idempotent=True, service="bank")
def call(ctx: Context, folder: Path) -> None:
    """Call a service, which is unavailable while the file `down` exists."""
    with (folder / "calls").open("a") as calls:
        calls.write(f"{time.time():.3f} {ctx.run_id}\n")
    if (folder / "down").exists():
        raise Blocked("connection refused")
    with _log(folder, ctx.run_id) as log:
        if not _count(log, "did", ctx.part):
            _write(log, "did", ctx.part)


def effect_counts(folder: Path, run_id: str) -> Counter[tuple[str, str]]:
    """The number of each effect of a run, by `(word, part)`."""
    path = folder / f"{run_id}.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter((word, part) for word, part in (line.split() for line in lines))
