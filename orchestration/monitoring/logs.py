"""Log formats, text and JSON, with run, step, attempt and host in each line."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from longshore.orchestration.errors import ConfigError
from longshore.orchestration.language import printable

#: The fields of the run that this process works on.
_about: ContextVar[dict[str, object]] = ContextVar("longshore_about", default={})  # noqa: B039 - never changed in place
FIELDS = ("run", "step", "attempt", "host")
_TEXT = "[%(asctime)s: %(levelname)s/%(processName)s] %(about)s%(message)s"


def begin(**fields: object) -> None:
    """Set the fields of all further log lines of this process, in place of earlier ones."""
    _about.set(fields)


def add(**fields: object) -> None:
    """Add fields to all further log lines of this process."""
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
    """One line per record, with indented tracebacks, so that text in a record cannot imitate another record.

    `redact` removes secrets from the whole text.
    """

    def __init__(self, format: str, redact: Callable[[str], str] = str) -> None:  # noqa: A002 - the base class's name
        super().__init__(format)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        return printable.line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable.lines(text).split("\n"))


def formatter(kind: str, redact: Callable[[str], str] = str) -> logging.Formatter:
    """The formatter for `text` or `json`. Raises ConfigError where python-json-logger is missing for JSON."""
    if kind == "text":
        return Lines(_TEXT, redact)
    try:
        from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError("python-json-logger is missing", remedy="pip install 'longshore[logs]'") from None
    names = " ".join(f"%({name})s" for name in ("levelname", "name", "processName", "message", *FIELDS))

    class JsonLines(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return redact(printable.as_json(super().format(record)))

    return JsonLines(names, rename_fields={"levelname": "level"}, timestamp=True)


def configure(logger: logging.Logger, kind: str, host: str = "", redact: Callable[[str], str] = str) -> None:
    """Set the format and the fields for all handlers of a logger; `redact` removes secrets from each line."""
    chosen, about = formatter(kind, redact), About(host)
    for handler in logger.handlers:
        handler.setFormatter(chosen)
        handler.addFilter(about)
