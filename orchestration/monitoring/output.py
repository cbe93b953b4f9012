"""The output of a step's code: what it prints, and its log records."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

#: Receives whole lines with their stream: stdout, stderr, or '' for log records.
Sink = Callable[[str, Sequence[str]], None]

#: Seconds for which lines are collected, and the most lines that are.
_EVERY, _AT_MOST = 0.25, 200
#: Loggers of the machinery around the code, whose records are not its output.
_MACHINERY = (
    "celery.", "kombu", "amqp", "billiard", "redis", "longshore.tasks", "longshore.workers", "longshore.orchestration",
)  # fmt: skip
#: The format of a log record in the output.
_FORMAT = logging.Formatter("%(levelname)s %(name)s: %(message)s")

_collector: ContextVar[Collector | None] = ContextVar("longshore_output", default=None)
#: The open collectors of this process, and the lock of the streams and handlers that they share.
_open: list[Collector] = []
_lock = threading.Lock()


class Collector:
    """Collects lines and passes them on a few times a second, and at the end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.RLock()
        self._lines: list[tuple[str, str]] = []
        self._rest = {"stdout": "", "stderr": ""}
        self._passed_on = 0.0
        self._timer: threading.Timer | None = None

    def write(self, stream: str, text: str) -> None:
        """Add text; a line is complete at its newline."""
        with self._lock:
            *whole, self._rest[stream] = (self._rest[stream] + text).split("\n")
            self.add(stream, whole)

    def add(self, stream: str, lines: Sequence[str]) -> None:
        """Add whole lines."""
        if not lines:
            return
        with self._lock:
            self._lines += [(stream, line) for line in lines]
            if len(self._lines) >= _AT_MOST or time.monotonic() - self._passed_on >= _EVERY:
                self.flush()
            elif self._timer is None:
                self._timer = threading.Timer(_EVERY, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Pass on the collected lines."""
        with self._lock:
            lines, self._lines = self._lines, []
            self._passed_on = time.monotonic()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            while lines:
                stream = lines[0][0]
                run = [line for same, line in lines[: _run_length(lines)] if same == stream]
                self._sink(stream, run)
                lines = lines[len(run) :]

    def close(self) -> None:
        """Pass on everything, unfinished lines included."""
        with self._lock:
            for stream, rest in self._rest.items():
                self.add(stream, [rest] if rest else [])
                self._rest[stream] = ""
            self.flush()


def _run_length(lines: Sequence[tuple[str, str]]) -> int:
    """The number of lines at the beginning with one stream."""
    return next((n for n, (stream, _) in enumerate(lines) if stream != lines[0][0]), len(lines))


class _Copy(io.TextIOBase):
    """A standard stream that also passes its text to the collector of the code that writes."""

    def __init__(self, stream: str, original: TextIO) -> None:
        self._stream = stream
        self.original = original

    def write(self, text: str) -> int:
        if (collector := _of_this_code()) is not None:
            collector.write(self._stream, text)
        written = self.original.write(text)
        return len(text) if written is None else written  # Celery's own stream returns nothing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def flush(self) -> None:
        self.original.flush()

    def isatty(self) -> bool:
        return self.original.isatty()

    def fileno(self) -> int:
        return self.original.fileno()


class _Records(logging.Handler):
    """Passes log records to the collector of the code that logs."""

    def emit(self, record: logging.LogRecord) -> None:
        collector = _of_this_code()
        # A logger below `celery.task` does not propagate to the root; where it does, the record comes twice.
        if collector is None or record.name.startswith(_MACHINERY) or getattr(record, "longshore_seen", False):
            return
        record.longshore_seen = True
        collector.add("", _FORMAT.format(record).splitlines())


_records = _Records()
#: By name. A copy is never freed: `print` in another thread holds no reference to the stream that it writes to.
_copies: dict[str, _Copy] = {}


def _of_this_code() -> Collector | None:
    """The collector of this thread; for a thread that the code has started, the only one that is open."""
    return _collector.get() or (_open[0] if len(_open) == 1 else None)


def pass_on() -> None:
    """Pass on the collected lines of this code, before a line that reaches the sink in another way."""
    if (collector := _of_this_code()) is not None:
        collector.flush()


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(), logging.getLogger("celery.task")]


def _copy_output() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Copy):
            copy = _copies.setdefault(name, _Copy(name, stream))
            copy.original = stream
            setattr(sys, name, copy)
    for logger in _loggers():
        if _records not in logger.handlers:
            logger.addHandler(_records)


def _restore_output() -> None:
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), _Copy):
            setattr(sys, name, stream.original)
    for logger in _loggers():
        logger.removeHandler(_records)


@contextlib.contextmanager
def captured(sink: Sink) -> Iterator[None]:
    """Copy what the block prints and logs to `sink`; the streams and handlers of the process still receive it."""
    collector = Collector(sink)
    with _lock:
        _copy_output()
        _open.append(collector)
    token = _collector.set(collector)
    try:
        yield
    finally:
        _collector.reset(token)
        with _lock:
            _open.remove(collector)
            if not _open:
                _restore_output()
        collector.close()
