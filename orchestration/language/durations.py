"""Parsing and formatting of durations: `500ms`, `30s`, `10m`, `1h`, or seconds as a number."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def parse_duration(value: Any) -> float:
    """Parse a duration to seconds. Raises ValueError for invalid and negative ones."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{value!r} is not a duration (500ms, 30s, 10m, 1h, or seconds)")
    if isinstance(value, int | float):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{value!r} is not a duration: it must be finite and not negative")
        return float(value)
    text = str(value).strip()
    match = _PATTERN.fullmatch(text)
    if match:
        return parse_duration(float(match[1]) * _UNITS[match[2]])
    try:
        return parse_duration(float(text))
    except ValueError:
        raise ValueError(f"{value!r} is not a duration (500ms, 30s, 10m, 1h, or seconds)") from None


def format_duration(seconds: float) -> str:
    """Format seconds in the shortest exact form: 90 → `90s`, 600 → `10m`, 0.25 → `250ms`."""
    for unit, size in (("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001)):
        amount = round(seconds / size, 9)
        if amount >= 1 and amount == int(amount):
            return f"{int(amount)}{unit}"
    return repr(float(seconds)) if seconds else "0s"


#: A pydantic field type: seconds in memory, the text form when serialized.
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": ["string", "number"], "examples": ["500ms", "30s", "10m", "1h", 5]}),
]
