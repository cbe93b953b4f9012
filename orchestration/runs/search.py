"""Search of runs by text, plan, state, label and time, the latest first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from longshore.orchestration.errors import Damaged, UsageError, WrongType
from longshore.orchestration.language.durations import parse_duration
from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.plans.shown_params import one_line
from longshore.orchestration.states import RunState

if TYPE_CHECKING:
    from longshore.orchestration.store.run_store import Store

#: Runs that are read at once, and that a search examines at most.
_PAGE, _FARTHEST = 200, 20_000
_FIELDS = ("state", "plan", "created", "started", "ended", "actor", "err", "params", "err_step")


@dataclass(frozen=True)
class Filter:
    """The conditions of a search; empty conditions match every run."""

    #: A part of the run's id, plan, parameters, actor or error.
    text: str = ""
    plan: str = ""
    state: RunState | None = None
    #: `key`, or `key=value`.
    label: str = ""
    #: ms since 1970.
    since: int = 0

    @classmethod
    def read(cls, q: str = "", plan: str = "", state: str = "", label: str = "", since: str = "") -> Filter:
        """A filter from text; `since` is a date, a time, or an age (`2h`). Raises UsageError for an invalid one."""
        if state and state not in {str(one) for one in RunState}:
            raise UsageError(f"unknown state {state!r}", remedy=f"choose one of {', '.join(map(str, RunState))}")
        created = round(time_or_age(since.strip()).timestamp() * 1000) if since.strip() else 0
        return cls(q.strip().lower(), plan.strip(), RunState(state) if state else None, label.strip(), created)

    def fits(self, row: Row, labels: dict[str, str]) -> bool:
        """Report whether a run matches."""
        key, sign, value = self.label.partition("=")
        about = f"{row.run_id} {row.plan} {row.params} {row.actor} {row.error}".lower()
        return (
            self.text in about
            and self.plan in {"", row.plan}
            and self.state in {None, row.state}
            and (not key or (key in labels and (not sign or labels[key] == value)))
        )


def time_or_age(text: str) -> datetime:
    """The time of a date, a time (UTC without a zone) or an age such as `2h`. Raises UsageError for any other text."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            at = datetime.now(UTC) - timedelta(seconds=parse_duration(text))
        except (ValueError, OverflowError):
            raise UsageError(
                f"since {text!r} is not a date, time or duration", remedy="write 2026-11-20, or 2h"
            ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One run in a list of results."""

    run_id: str
    plan: str
    state: RunState
    created: datetime
    took_s: float | None = None
    actor: str = ""
    error: str = ""
    #: As `version=1.2 env=prod`.
    params: str = ""
    started: datetime | None = None
    #: The index of the step whose failure ended the run.
    failed_step: int | None = None


def search(store: Store, wanted: Filter, limit: int = 50) -> list[Row]:
    """The latest runs that match the filter. A run whose request no worker has read yet is `pending`."""
    return list(islice(_found(store, wanted), limit))


def _found(store: Store, wanted: Filter) -> Iterator[Row]:
    seen = 0
    ids = store.runs(_FARTHEST) if wanted != Filter() else store.runs(_PAGE)
    while page := ids[seen : seen + _PAGE]:
        seen += len(page)
        pipe = store.client.pipeline(transaction=False)
        for run_id in page:
            pipe.hmget(store.keys.of(run_id).run, _FIELDS)
        answers = zip(page, store.call(pipe.execute, raise_on_error=False), strict=True)
        now = store.now()
        # Damaged records are omitted; doctor names them.
        rows = [_row(now, run_id, values) for run_id, values in answers if RUN_ID.fullmatch(run_id)]
        for row in filter(None, rows):
            if wanted.since and row.created.timestamp() * 1000 < wanted.since:
                return  # runs are ordered by creation
            if wanted.fits(row, _labels(store, row.run_id) if wanted.label else {}):
                yield row


def _labels(store: Store, run_id: str) -> dict[str, str]:
    try:
        body = store.body(run_id)
    except (Damaged, WrongType):
        return {}
    return dict(body["plan"].get("labels") or {}) if body else {}


def _row(now: int, run_id: str, values: list[str | None] | Exception) -> Row | None:
    """The row of a run; None for an unreadable record."""
    if isinstance(values, Exception):
        return None
    known = {name: value or "" for name, value in zip(_FIELDS, values, strict=True)}
    if not known["state"]:
        return Row(run_id, "", RunState.PENDING, datetime.fromtimestamp(now / 1000, UTC))
    try:
        began, ended = int(known["started"] or 0), int(known["ended"] or 0)
        return Row(
            run_id,
            known["plan"],
            RunState(known["state"]),
            _time(int(known["created"] or 0)),
            ((ended or now) - began) / 1000 if began else None,
            known["actor"],
            known["err"],
            one_line(json.loads(known["params"] or "{}")),
            _time(began) if began else None,
            int(known["err_step"]) if known["err_step"] else None,
        )
    except (ValueError, OverflowError, OSError):
        return None


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
