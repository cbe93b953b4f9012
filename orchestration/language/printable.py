"""Escaping of untrusted text for terminals, log lines and pages.

A step's output, an error, an actor or a container name may contain escape sequences that control the terminal,
newlines that forge a log line, and bidirectional marks that reorder text. All of these are shown escaped: `\\x1b`,
`\\n`, `\\u202e`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

#: Control characters; marks of direction, line and language; surrogates.
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f"
)
_ONE = re.compile(f"[{_HIDDEN}]")
#: In multi-line text, newlines and tabs stay.
_SEVERAL = re.compile(f"(?![\n\t])[{_HIDDEN}]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def line(text: str) -> str:
    """Escape to one line, including newlines."""
    return text if text.isprintable() else _ONE.sub(_escape, text)


def lines(text: str) -> str:
    """Escape multi-line text; newlines and tabs stay."""
    return text if text.isprintable() else _SEVERAL.sub(_escape, text)


def as_json(text: str) -> str:
    """Escape a JSON document with equivalent JSON escapes."""
    return text if text.isprintable() else _SEVERAL.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _escape(found: re.Match[str]) -> str:
    text = found[0]
    number = ord(text)
    if text in _SHORT:
        return _SHORT[text]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def values(value: T) -> T:
    """Escape each text inside a value to one line: for reports, events and findings."""
    return _values(value)  # type: ignore[no-any-return]


def _values(value: Any) -> Any:
    if isinstance(value, str):
        # A StrEnum such as a state keeps its type.
        return value if type(value) is not str else line(value)
    if hasattr(value, "model_copy"):  # a pydantic model, without importing pydantic for `longshore --help`
        return value.model_copy(update={name: _values(each) for name, each in value.__dict__.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {each.name: _values(getattr(value, each.name)) for each in dataclasses.fields(value) if each.init}
        return dataclasses.replace(value, **changed)
    if isinstance(value, Mapping):
        return {_values(key): _values(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_values, value))
    if isinstance(value, list):
        return [_values(each) for each in value]
    return value
