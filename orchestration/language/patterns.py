"""Regular expressions of plans, matched in linear time.

The engine is the `regex` crate that ships with pydantic. Without backtracking, the crate supports neither
backreferences nor look-around. Python's own engine takes exponential time for `(a+)+$`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

#: The longest pattern and the longest matched text, in characters.
LONGEST_PATTERN, LONGEST_TEXT = 1000, 10_000
#: The largest product of nested counted repetitions.
_REPEATED = 1000
_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def check(pattern: str) -> None:
    """Raise ValueError for an invalid or too expensive regular expression."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters is longer than {LONGEST_PATTERN}")
    times = 1
    for least, most in _COUNTED.findall(pattern):
        times *= max(1, int((most or least)[:6]))
    if times > _REPEATED:
        raise ValueError(f"pattern {pattern!r} repeats its parts {times} times; at most {_REPEATED} are allowed")
    try:
        _whole(pattern)
    except SchemaError as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"pattern {pattern!r} is not a valid regular expression, or has a backreference or a look-around, which "
            f"are not supported: {why[:300]}"
        ) from None


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text matches a pattern accepted by `check`."""
    try:
        _whole(pattern).validate_python(text)
    except ValidationError:
        return False
    return True


@lru_cache(maxsize=256)
def _whole(pattern: str) -> TypeAdapter[str]:
    # Compiled alone first, as a pattern such as `a)|(b` would close the added group.
    TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    return TypeAdapter(Annotated[str, StringConstraints(pattern=rf"\A(?:{pattern})\z")])
