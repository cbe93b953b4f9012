"""Regular expressions of plans, matched in linear time.

The engine is the `regex` crate that pydantic brings on every platform: it has no backtracking, and so no references
back and no look-around. Python's own takes exponential time for `(a+)+$`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

#: Characters of a pattern, and of a text that is matched.
LONGEST_PATTERN, LONGEST_TEXT = 1000, 10_000
#: How often a part may be repeated by number, with those inside of it multiplied.
_REPEATED = 1000
_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def check(pattern: str) -> None:
    """ValueError where it is no regular expression, or one that takes too long."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters is longer than {LONGEST_PATTERN}")
    times = 1
    for least, most in _COUNTED.findall(pattern):
        times *= max(1, int((most or least)[:6]))
    if times > _REPEATED:
        raise ValueError(f"pattern {pattern!r} repeats its parts {times} times, and at most {_REPEATED} are allowed")
    try:
        _whole(pattern)
    except SchemaError as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"pattern {pattern!r} is not a regular expression, or has a reference back or a look-around, which takes "
            f"too long: {why[:300]}"
        ) from None


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text matches a pattern that `check` has passed."""
    try:
        _whole(pattern).validate_python(text)
    except ValidationError:
        return False
    return True


@lru_cache(maxsize=256)
def _whole(pattern: str) -> TypeAdapter[str]:
    # By itself first: a pattern such as `a)|(b` must not close the group that is put around it.
    TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    return TypeAdapter(Annotated[str, StringConstraints(pattern=rf"\A(?:{pattern})\z")])
