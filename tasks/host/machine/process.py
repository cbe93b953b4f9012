"""Programs in their own process group, with limited time and output, and killed with the worker."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.language.secrets import OVERLAP

#: Bytes kept of the end of each stream.
OUTPUT_LIMIT = 64 * 1024
#: Seconds between TERM and KILL.
GRACE = 10.0
_TICK = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Completed:
    """The outcome of a program. Death by signal N is exit code 128 + N, as in a shell."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool
    duration_ms: int


class Tail:
    """The last `limit` bytes of a stream, and some more, so that secrets across the cut are redacted."""

    def __init__(self, limit: int, redact: Callable[[str], str] = lambda text: text) -> None:
        self.limit = limit
        self.redact = redact
        self.data = bytearray()
        self.truncated = False

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        self.truncated = self.truncated or len(self.data) > self.limit
        if len(self.data) > self.limit + OVERLAP:
            del self.data[: len(self.data) - self.limit - OVERLAP]

    def text(self) -> str:
        text = self.redact(self.data.decode("utf-8", errors="replace"))
        return (
            text.encode("utf-8", "replace")[-self.limit :].decode("utf-8", errors="ignore") if self.truncated else text
        )


def _die_with_parent() -> None:
    """Let the kernel kill the program with its worker: the attempt counts as lost."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; on other systems the program continues
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], sig: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, sig)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Send TERM, wait for the grace, and send KILL to the whole process group."""
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def run(
    argv: Sequence[str],
    *,
    executable: str | None = None,
    cwd: str | None = None,
    env: Mapping[str, str],
    stdin: bytes | None = None,
    timeout: float | None = None,
    grace: float = GRACE,
    check: Callable[[], None] = lambda: None,
    began: Callable[[int], None] = lambda _pid: None,
    on_output: Callable[[int, bytes], None] = lambda _stream, _piece: None,
    limit: int = OUTPUT_LIMIT,
    redact: Callable[[str], str] = lambda text: text,
) -> Completed:
    """Run a program to its end. `on_output` receives each piece of output with its stream (1, 2).

    `executable`: the file to start, if other than `argv[0]`. `began` receives the pid, which is also the group id.
    `check` is called about five times a second; an error that it raises ends the program and propagates.
    Raises Preflight if the program cannot start, and OperationError after `timeout` seconds.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            executable=executable,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - prefork children are single-threaded here
        )
    except FileNotFoundError as error:
        what = f"no such folder: {cwd}" if error.filename == cwd and cwd else f"no such program: {argv[0]}"
        raise Preflight(what, remedy="correct the path, or create it on the worker's host") from error
    except (PermissionError, NotADirectoryError, OSError, ValueError) as error:
        raise Preflight(f"cannot run {argv[0]}: {error}") from error
    out, err = Tail(limit, redact), Tail(limit, redact)
    hear = {1: out, 2: err}

    def heard(stream: int, piece: bytes) -> None:
        hear[stream].add(piece)
        on_output(stream, piece)

    try:
        began(process.pid)
        _pump(process, stdin, heard, started, timeout, check)
    except BaseException:
        _end(process, grace)
        raise
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    code = process.wait()
    return Completed(
        exit_code=code if code >= 0 else 128 - code,
        stdout=out.text(),
        stderr=err.text(),
        truncated=out.truncated or err.truncated,
        duration_ms=round((time.monotonic() - started) * 1000),
    )


def _pump(
    process: subprocess.Popen[bytes],
    stdin: bytes | None,
    heard: Callable[[int, bytes], None],
    started: float,
    timeout: float | None,
    check: Callable[[], None],
) -> None:
    """Write the program's input and read its output until the program ends.

    The end of the program counts, not the end of its output: a child process may hold the pipes open.
    """
    assert process.stdout is not None  # noqa: S101 - both are pipes by construction
    assert process.stderr is not None  # noqa: S101
    pending = memoryview(stdin or b"")
    with selectors.DefaultSelector() as selector:
        for number, stream in ((1, process.stdout), (2, process.stderr)):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, number)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        ended_at: float | None = None
        while selector.get_map():
            check()
            now = time.monotonic()
            if timeout is not None and now - started >= timeout:
                raise OperationError(f"{process.args[0]!r} exceeded its timeout of {timeout:g} s")  # type: ignore[index]
            if process.poll() is not None:
                ended_at = ended_at or now
                if now - ended_at >= _TICK:
                    return
            for key, _ in selector.select(_TICK if ended_at is None else 0.02):
                if key.fileobj is process.stdin:
                    try:
                        pending = pending[os.write(key.fd, pending[:65536]) :] if pending else pending
                    except BrokenPipeError:
                        pending = pending[:0]
                    if not pending:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if chunk:
                    heard(key.data, chunk)
                else:
                    selector.unregister(key.fileobj)
    # The streams are closed, and the program may still run.
    while True:
        left = None if timeout is None else timeout - (time.monotonic() - started)
        if left is not None and left <= 0:
            raise OperationError(f"{process.args[0]!r} exceeded its timeout of {timeout:g} s")  # type: ignore[index]
        try:
            process.wait(min(_TICK, left) if left is not None else _TICK)
            return
        except subprocess.TimeoutExpired:
            check()
