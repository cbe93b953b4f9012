"""Operations that write down what they do, outside of Redis: the log that the rules are checked against.

A deed is one line, appended by one `write`, so that no kill leaves half of it.
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
    """The run's log, locked: what is read of it stays true until it is written to."""
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


@operation("deed.set", idempotent=True, undo="deed.unset")
def set_(ctx: Context, folder: Path, seconds: float = 0.0, flaky: bool = False) -> dict[str, str]:
    """Bring about a state; a second call finds it. `flaky` fails the first time."""
    with _log(folder, ctx.run_id) as log:
        if flaky and not _count(log, "tried", ctx.part):
            _write(log, "tried", ctx.part)
            raise Transient("the first try fails")
        if not _count(log, "did", ctx.part):
            _write(log, "did", ctx.part)
    time.sleep(seconds)
    return {"folder": str(folder), "part": ctx.part}


@operation("deed.unset", idempotent=True)
def unset(ctx: Context, folder: Path) -> None:
    """Take the state back, where it is."""
    with _log(folder, ctx.run_id) as log:
        if _count(log, "did", _own(ctx)) > _count(log, "undid", _own(ctx)):
            _write(log, "undid", _own(ctx))


@operation("deed.act")
def act(ctx: Context, folder: Path, seconds: float = 0.0) -> None:
    """Something that must not be done twice."""
    with _log(folder, ctx.run_id) as log:
        _write(log, "did", ctx.part)
    time.sleep(seconds)


@operation("deed.fail")
def fail(ctx: Context, folder: Path, fails: bool) -> None:
    if fails:
        raise Preflight("it fails, as told")


@operation("deed.always", idempotent=True)
def always(ctx: Context, folder: Path) -> None:
    with _log(folder, ctx.run_id) as log:
        _write(log, "always", ctx.part)


@operation("deed.call", idempotent=True, service="bank")
def call(ctx: Context, folder: Path) -> None:
    """It needs a service that a file says is down."""
    with (folder / "calls").open("a") as calls:
        calls.write(f"{time.time():.3f} {ctx.run_id}\n")
    if (folder / "down").exists():
        raise Blocked("connection refused")
    with _log(folder, ctx.run_id) as log:
        if not _count(log, "did", ctx.part):
            _write(log, "did", ctx.part)


def deeds(folder: Path, run_id: str) -> Counter[tuple[str, str]]:
    """How often each deed of a run was done: `(word, part)`."""
    path = folder / f"{run_id}.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter((word, part) for word, part in (line.split() for line in lines))
