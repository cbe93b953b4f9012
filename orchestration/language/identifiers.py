"""Identifiers that become keys in Redis and names of files: one alphabet, checked where the key or the name is made.

A run id, the identity of a run and the name of a step arrive in requests and messages, which anybody with access to
a queue can write. None of them may hold a separator of paths, or be a name that leads upwards.
"""

from __future__ import annotations

import re

from longshore.orchestration.errors import BadIdentifier

_LETTERS = r"(?!\.\.?$)[A-Za-z0-9._@-]"
RUN_ID = re.compile(_LETTERS + "{1,128}")
#: A child's identity is that of its parent with the step behind it. With the run id it is the name of one folder.
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
    """The text, if it can be a run's id. Raises BadIdentifier."""
    return _checked(RUN_ID, "run id", text)


def instance(text: object) -> str:
    """The text, if it can tell two runs of one id apart; '' is that of a run without one. Raises BadIdentifier."""
    return _checked(_INSTANCE, "identity of a run", text)


def part(text: object) -> str:
    """The text, if it can be the name of a step, or of one item of it. Raises BadIdentifier."""
    return _checked(_PART, "name of a step", text)


def project(text: object) -> str:
    """The text, if it can be the name of a Compose project. Raises BadIdentifier."""
    return _checked(_PROJECT, "name of a project", text)
