"""What a line of a log is about: run, step, attempt and host, in every line; as text, or as JSON."""

from __future__ import annotations

import logging
import socket
from contextvars import ContextVar
from typing import Any

from longshore.orchestration.errors import ConfigError
from longshore.orchestration.language import printable

#: What this process is at.
_about: ContextVar[dict[str, object]] = ContextVar("longshore_about", default={})  # noqa: B039 - never changed in place
FIELDS = ("run", "step", "attempt", "host")
_TEXT = "[%(asctime)s: %(levelname)s/%(processName)s] %(about)s%(message)s"


def begin(**fields: object) -> None:
    """What is logged from now on, by this process, is about that and nothing else."""
    _about.set(fields)


def add(**fields: object) -> None:
    """And about that."""
    _about.set(_about.get() | fields)


class About(logging.Filter):
    """Adds the fields to each record."""

    def __init__(self, host: str = "") -> None:
        super().__init__()
        self._host = host or socket.gethostname()

    def filter(self, record: logging.LogRecord) -> bool:
        known: dict[str, object] = {"host": self._host} | _about.get()
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, known.get(name))
        parts = [f"{name}={getattr(record, name)}" for name in FIELDS[:3] if getattr(record, name) is not None]
        record.about = f"{' '.join(parts)}: " if parts else ""
        return True


class Lines(logging.Formatter):
    """A record is one line, and the lines of a traceback are indented: no text in a record looks like another one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        return printable.line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable.lines(text).split("\n"))


def formatter(kind: str) -> logging.Formatter:
    """`text` or `json`; ConfigError where what JSON needs is missing."""
    if kind == "text":
        return Lines(_TEXT)
    try:
        from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("python-json-logger is missing", remedy="pip install 'longshore[logs]'") from None
    names = " ".join(f"%({name})s" for name in ("levelname", "name", "processName", "message", *FIELDS))

    class JsonLines(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable.as_json(super().format(record))

    return JsonLines(names, rename_fields={"levelname": "level"}, timestamp=True)


def dress(logger: logging.Logger, kind: str, host: str = "") -> None:
    """Have all that a logger's handlers write carry the fields."""
    made, adds = formatter(kind), About(host)
    for handler in logger.handlers:
        handler.setFormatter(made)
        handler.addFilter(adds)
