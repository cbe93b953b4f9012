"""Text from outside, before a terminal, a log line or a page shows it.

A step's output, an error, an actor or a container's name may hold escape sequences that move a terminal's cursor or
type into its input, newlines that forge a line of ours, and marks that show text in another order. All of them are
shown as what they are: `\\x1b`, `\\n`, `\\u202e`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

#: Control characters; marks of direction, of lines and of language; halves of characters.
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f"
)
_ONE = re.compile(f"[{_HIDDEN}]")
#: Of several lines: newlines and tabs stay.
_SEVERAL = re.compile(f"(?![\n\t])[{_HIDDEN}]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def line(text: str) -> str:
    """One line: newlines too are escaped."""
    return text if text.isprintable() else _ONE.sub(_escape, text)


def lines(text: str) -> str:
    """As many lines as there are: newlines and tabs stay."""
    return text if text.isprintable() else _SEVERAL.sub(_escape, text)


def as_json(text: str) -> str:
    """A document in JSON that means the same, with escapes of JSON's own."""
    return text if text.isprintable() else _SEVERAL.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _escape(found: re.Match[str]) -> str:
    text = found[0]
    number = ord(text)
    if text in _SHORT:
        return _SHORT[text]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def values(value: T) -> T:
    """The same value with each text in it as one line: of reports, events and findings, for people to read."""
    return _values(value)  # type: ignore[no-any-return]


def _values(value: Any) -> Any:
    if isinstance(value, str):
        # A state stays one: its styles and rules go by it.
        return value if type(value) is not str else line(value)
    if hasattr(value, "model_copy"):  # of pydantic's, which `longshore --help` need not load
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
