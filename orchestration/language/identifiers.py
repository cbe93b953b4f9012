"""Validation of identifiers in Redis keys and file names, at the place where the key or name is built.

A run id, the identity of a run and the name of a step arrive in requests and messages, which any client with access
to a queue can write. An identifier must not contain a path separator, nor be `.` or `..`.
"""

from __future__ import annotations

import re

from longshore.orchestration.errors import BadIdentifier

_LETTERS = r"(?!\.\.?$)[A-Za-z0-9._@-]"
RUN_ID = re.compile(_LETTERS + "{1,128}")
#: The identity of a child is its parent's with the step appended. With the run id it names one folder.
_INSTANCE = re.compile(_LETTERS + "{0,120}")
#: A step, or one item of it: `step@3`.
_PART = re.compile(_LETTERS + "{1,100}")
_PROJECT = re.compile(_LETTERS + "{1,200}")


def _checked(kind: re.Pattern[str], what: str, text: object) -> str:
    if isinstance(text, str) and kind.fullmatch(text):
        return text
    shown = ascii(text)
    shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
    raise BadIdentifier(f"{what} {shown} must match {kind.pattern}")


def run_id(text: object) -> str:
    """Validate a run id. Raises BadIdentifier."""
    return _checked(RUN_ID, "run id", text)


def instance(text: object) -> str:
    """Validate the identity that distinguishes runs of one id; '' for none. Raises BadIdentifier."""
    return _checked(_INSTANCE, "identity of a run", text)


def part(text: object) -> str:
    """Validate the name of a step or of one of its items. Raises BadIdentifier."""
    return _checked(_PART, "name of a step", text)


def project(text: object) -> str:
    """Validate the name of a Compose project. Raises BadIdentifier."""
    return _checked(_PROJECT, "name of a project", text)
