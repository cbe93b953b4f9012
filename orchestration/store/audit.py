"""The audit trail: commands and refused requests, with actor, origin and reason.

Workers append to one stream as they carry out or refuse commands; clients append their own refusals to another.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.messaging.signing import origin
from longshore.orchestration.store.connection import Connection

#: The approximate number of lines kept.
KEPT = 100_000
#: Characters of one field.
_LONGEST = 2000
#: Entries that are read at once.
_PAGE = 500
REFUSED = "refused"


@dataclass(frozen=True)
class Line:
    """One command or refusal. `what` is start, cancel, …, or `refused`; `why` is the reason given for either."""

    at: datetime
    what: str
    actor: str = ""
    origin: str = ""
    run: str = ""
    step: str = ""
    plan: str = ""
    why: str = ""
    #: Whether a client reported the line about itself; workers write all other lines.
    by_client: bool = False


def note(store: Connection, what: str, *, key: str = "", **fields: str) -> None:
    """Append a line. Raises StoreUnavailable."""
    line: dict[Any, Any] = dict(entry(what, **fields))
    store.call(store.client.xadd, key or store.keys.audit, line, maxlen=KEPT, approximate=True)


def entry(what: str, **fields: str) -> dict[str, str]:
    """The stored form of a line."""
    return {"what": what} | {name: str(value)[:_LONGEST] for name, value in fields.items() if value}


def note_refusal(store: Connection, why: str, **fields: str) -> None:
    """Append a refusal; without Redis the line is dropped, and the refusal stands."""
    with contextlib.suppress(StoreUnavailable):
        note(store, REFUSED, why=why, **fields)


def report(store: Connection, what: str, **fields: str) -> None:
    """Append a client's own action to the stream of clients; dropped without Redis."""
    with contextlib.suppress(StoreUnavailable):
        note(store, what, key=store.keys.client_reports, origin=origin(store.settings), **fields)


def report_refusal(store: Connection, why: str, **fields: str) -> None:
    """Append a client's own refusal to the stream of clients; dropped without Redis."""
    note_refusal(store, why, key=store.keys.client_reports, **fields)


def lines(store: Connection, *, limit: int = 100, run: str = "", refused: bool = False) -> Iterator[Line]:
    """The lines of both streams, the latest first."""
    parts = [_entries(store, key) for key in (store.keys.audit, store.keys.client_reports)]
    both = heapq.merge(*parts, key=lambda entry: entry["at"], reverse=True)
    wanted = (e for e in both if (not run or e.get("run") == run) and (not refused or e.get("what") == REFUSED))
    return (_line(entry) for entry in itertools.islice(wanted, limit))


def _entries(store: Connection, key: str) -> Iterator[dict[str, Any]]:
    """The entries of one stream, the latest first. Times come from Redis's ids: clients write the fields."""
    last, by_client = "+", key == store.keys.client_reports
    while page := store.call(store.client.xrevrange, key, max=last, count=_PAGE):
        for entry_id, entry in page:
            yield {**entry, "at": int(entry_id.partition("-")[0]), "by_client": by_client}
        last = f"({page[-1][0]}"


def _line(entry: dict[str, Any]) -> Line:
    known = {name: entry[name] for name in Line.__dataclass_fields__ if name in entry and name != "at"}
    return Line(datetime.fromtimestamp(entry["at"] / 1000, UTC), **{"what": "", **known})
