"""Secrets by reference: `{{ secret('env:LONGSHORE_SECRET_DB') }}`, or `secret('file:/run/secrets/db')`.

A rendered template stores a mark with the reference. The worker reads the value at each attempt, just before it calls
the operation, if its settings allow the source (see `longshore.tasks.host.secret_sources`). A mark is only valid with
the random word stored beside it, so that parameters and step data cannot forge one.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import uuid4

from longshore.orchestration.errors import OperationError

_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00\n⟧]+")
_SHORTEST_LINE = 4
#: Characters; a shorter part of a text in Base64 would match by chance.
_SHORTEST_BASE64 = 8
#: Extra bytes of output kept until redaction: a truncated secret would not be recognised.
OVERLAP = 4096
HIDDEN = "***"
_OF_HTML = {ord(one): f"\\u{ord(one):04x}" for one in "&<>"}
_URL_SAFE = str.maketrans("+/", "-_")
#: Key of the random word in a step's rendered parameters; no parameter name begins with a blank.
WORD = " secrets"


def problem(reference: Any) -> str | None:
    """The reason why a reference is invalid, or None."""
    if isinstance(reference, str) and _REFERENCE.fullmatch(reference):
        return None
    return f"secret({reference!r}): invalid reference: write 'env:NAME' or 'file:/path'"


class SecretMarks:
    """Creates the marks while the parameters of one step are rendered."""

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
    """Replace each mark by the secret that `read` returns, and add the secrets to `found`."""

    def secret(mark: re.Match[str]) -> str:
        found.add(value := read(mark[1]))
        return value

    return _each(value, lambda text: _mark(word).sub(secret, text))


def marked(value: Any, word: str) -> bool:
    """Whether a value contains a mark."""
    return bool(_each(value, lambda text: _mark(word).sub("", text)) != value)


def pieces(text: str, word: str) -> list[tuple[bool, str]]:
    """Split a text into references (True) and the parts between their marks (False)."""
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
    """Redacts secrets from recorded text and data, in all common encodings."""

    def __init__(self) -> None:
        self.values: set[str] = set()
        self._spelled: list[str] = []
        self._of: frozenset[str] = frozenset()

    def text(self, text: str) -> str:
        if self.values != self._of:
            # A copy: an attempt in another thread may add a value meanwhile.
            self._of = frozenset(self.values)
            self._spelled = self._spellings(self._of)
        for spelled in self._spelled:
            text = text.replace(spelled, HIDDEN)
        return text

    def data(self, value: Any) -> Any:
        """Redact JSON data, including keys."""
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

    @staticmethod
    def _spellings(values: Iterable[str]) -> list[str]:
        found: set[str] = set()
        for value in values:
            lines = [line for line in value.splitlines() if len(line.strip()) >= _SHORTEST_LINE]
            for one in {value, value.strip(), *lines} - {""}:
                found |= {one, *_escaped(one)}
                found |= {quote(one), quote(one, safe=""), quote_plus(one), html.escape(one), *_in_base64(one)}
        return sorted(found, key=len, reverse=True)


def _escaped(value: str) -> set[str]:
    """The value as Python and JSON escape it, alone and inside a JSON text that is a JSON text's value."""
    once = {repr(value)[1:-1]}
    for text in (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        # PHP escapes slashes, and Go the characters of HTML.
        once |= {text, text.replace("/", "\\/"), text.translate(_OF_HTML)}
    return once | {json.dumps(text, ensure_ascii=is_ascii)[1:-1] for text in once for is_ascii in (True, False)}


def _in_base64(value: str) -> Iterator[str]:
    """The value in Base64, alone and as part of a longer text, where it may begin at each of three positions."""
    data = value.encode()
    yield base64.b64encode(data).decode()
    for lead in range(3):
        whole = base64.b64encode(bytes(lead) + data).decode()
        # The first characters also hold bits of the text before the value, and the last one bits of the text after it.
        own = whole[-(-lead * 8 // 6) : (lead + len(data)) * 8 // 6]
        if len(own) >= _SHORTEST_BASE64:
            yield from (own, own.translate(_URL_SAFE))


def no_value(error: OperationError, redaction: Redaction) -> OperationError:
    """Redact the message, remedy and data of an error."""
    error.message, error.remedy = redaction.text(error.message), redaction.text(error.remedy)
    error.data = redaction.data(error.data)
    return error
