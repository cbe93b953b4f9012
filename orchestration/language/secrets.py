"""Secrets by reference: `{{ secret('env:LONGSHORE_SECRET_DB') }}`, or `secret('file:/run/secrets/db')`.

What is rendered and stored is a mark that holds the reference; the value is read by the worker, at each attempt,
just before the operation is called, if the worker's settings admit it (see `longshore.tasks.host.secret_sources`). A
mark counts only with the random word that was stored beside it, so that no parameter and no step's data can pose as
one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from longshore.orchestration.errors import OperationError

_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00\n⟧]+")
_SHORTEST_LINE = 4
#: Bytes that are kept beyond a limit until they were looked through: a secret that is cut is one no more.
OVERLAP = 4096
HIDDEN = "***"
#: Under it, the random word stands beside a step's rendered parameters; no parameter's name begins with a blank.
WORD = " secrets"


def problem(reference: Any) -> str | None:
    """What is wrong with a reference as it is written; None if nothing is."""
    if isinstance(reference, str) and _REFERENCE.fullmatch(reference):
        return None
    return f"secret({reference!r}): a secret is 'env:NAME' or 'file:/path'"


class SecretMarks:
    """Gives a mark for each reference, while one step's parameters are rendered."""

    def __init__(self) -> None:
        self.word = uuid4().hex
        self.used = False

    def __call__(self, reference: str) -> str:
        if why := problem(reference):
            raise ValueError(why)
        self.used = True
        return f"⟦secret {self.word} {reference}⟧"


def _mark(word: str) -> re.Pattern[str]:
    return re.compile(rf"⟦secret {re.escape(word)} ([^⟧]*)⟧")


def reveal(value: Any, word: str, found: set[str], read: Callable[[str], str]) -> Any:
    """The value with each secret in the place of its mark, as `read` gives it; each is added to `found`."""

    def secret(mark: re.Match[str]) -> str:
        found.add(value := read(mark[1]))
        return value

    return _each(value, lambda text: _mark(word).sub(secret, text))


def marked(value: Any, word: str) -> bool:
    """Whether there is a mark anywhere inside."""
    return bool(_each(value, lambda text: _mark(word).sub("", text)) != value)


def pieces(text: str, word: str) -> list[tuple[bool, str]]:
    """A text in its order: references (True), and what stands between their marks."""
    parts = _mark(word).split(text)
    return [(bool(number % 2), part) for number, part in enumerate(parts) if part]


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    return value


class Redaction:
    """Takes secrets out of what is recorded, however they are spelled there."""

    def __init__(self) -> None:
        self.values: set[str] = set()
        self._spelled: list[str] = []
        self._of = 0

    def text(self, text: str) -> str:
        if len(self.values) != self._of:
            self._spelled, self._of = self._spellings(), len(self.values)
        for spelled in self._spelled:
            text = text.replace(spelled, HIDDEN)
        return text

    def data(self, value: Any) -> Any:
        """The same for what will be JSON, its keys as well."""
        if not self.values:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.data(key): self.data(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return HIDDEN if self.text(str(value)) != str(value) else value
        return value

    def _spellings(self) -> list[str]:
        found: set[str] = set()
        for value in self.values:
            lines = [line for line in value.splitlines() if len(line.strip()) >= _SHORTEST_LINE]
            for one in {value, value.strip(), *lines} - {""}:
                found |= {one, repr(one)[1:-1], json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1]}
                found |= {quote(one), quote(one, safe=""), base64.b64encode(one.encode()).decode()}
        return sorted(found, key=len, reverse=True)


def no_value(error: OperationError, redaction: Redaction) -> OperationError:
    """The error, with no secret in anything that it says."""
    error.message, error.remedy = redaction.text(error.message), redaction.text(error.remedy)
    error.data = redaction.data(error.data)
    return error
