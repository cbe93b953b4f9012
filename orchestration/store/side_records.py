"""Side records, outside of the record of a run: output of steps, dead letters, dry runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.store.connection import Connection
from longshore.orchestration.store.connection import milliseconds as _ms

log = logging.getLogger(__name__)


class SideRecords(Connection):
    """The side records of an installation; uses plain commands only. Each method raises StoreUnavailable."""

    # --- dead letters -----------------------------------------------------------------------------

    def keep_dead_letter(self, queue: str, message: str, why: str) -> None:
        """Keep a message that no worker can process: the last thousand, 64 KiB of each."""
        entry: dict[Any, Any] = {"queue": queue, "why": why, "message": message[:65536]}
        self.call(self.client.xadd, self.keys.dead_letters, entry, maxlen=1000, approximate=True)

    def dead_letter(self, where: str, entry: str, why: str) -> None:
        """Log an unreadable entry and keep it as a dead letter; never raises StoreUnavailable."""
        log.error("an entry of %s is unreadable and becomes a dead letter: %r: %s", where, entry[:200], why)
        try:
            self.keep_dead_letter(where, entry, why)
        except StoreUnavailable as error:
            log.error("a dead letter of %s was not stored: %s", where, error)

    def dead_letters(self) -> list[dict[str, str]]:
        """The dead letters, the latest first: `queue`, `why`, `message`."""
        nothing = {"queue": "", "why": "", "message": ""}
        return [nothing | entry for _, entry in self.call(self.client.xrevrange, self.keys.dead_letters)]

    # --- events that are not transitions ----------------------------------------------------------

    def add_event(self, run_id: str, name: str, fields: Mapping[str, str]) -> None:
        """Append an event that is not a transition to the stream of a run, for its watchers."""
        entry: dict[Any, Any] = {"event": name, "at": self.now()} | dict(fields)
        self.call(self.client.xadd, self.keys.of(run_id).events, entry, nomkstream=True)

    # --- output of steps --------------------------------------------------------------------------

    def add_log(self, run_id: str, step_id: StepId, lines: Sequence[str], stream: str = "") -> None:
        """Append output of a step; about the last thousand lines are kept, each with its stream."""
        key = self.keys.of(run_id).log(step_id)
        pipe = self.client.pipeline(transaction=False)
        for line in lines:
            entry: dict[Any, Any] = {"line": line} | ({"stream": stream} if stream else {})
            pipe.xadd(key, entry, maxlen=1000, approximate=True)
        self.call(pipe.execute)

    def log(self, run_id: str, step_id: StepId, after: str = "-") -> Iterator[tuple[str, str, str]]:
        """The output of a step after a cursor, as (cursor, stream, line); the stream is stdout, stderr, or ''."""
        begin = after if after == "-" else f"({after}"
        for entry_id, entry in self.call(self.client.xrange, self.keys.of(run_id).log(step_id), min=begin):
            yield entry_id, entry.get("stream", ""), entry.get("line", "")

    def logged(self, run_id: str, step_ids: Sequence[StepId]) -> set[StepId]:
        """The steps and units that have output, of those given."""
        pipe = self.client.pipeline(transaction=False)
        for step_id in step_ids:
            pipe.exists(self.keys.of(run_id).log(step_id))
        return {step_id for step_id, there in zip(step_ids, self.call(pipe.execute), strict=True) if there}

    # --- dry runs ---------------------------------------------------------------------------------

    def put_dry_run(self, dry_run_id: str, body: str, seconds: float) -> None:
        """Store the request of a dry run, which expires after so many seconds."""
        self.call(self.client.set, self.keys.dry_run(dry_run_id), body, px=_ms(seconds))

    def dry_run(self, dry_run_id: str) -> str | None:
        """The request of a dry run, sealed where messages are signed; None where it has expired."""
        return self.call(self.client.get, self.keys.dry_run(dry_run_id)) or None

    def answer(self, dry_run_id: str, body: str, seconds: float) -> None:
        """Add the answer of a worker to a dry run."""
        pipe = self.client.pipeline()
        pipe.rpush(self.keys.dry_run_answers(dry_run_id), body)
        pipe.pexpire(self.keys.dry_run_answers(dry_run_id), _ms(seconds))
        self.call(pipe.execute)

    def next_answer(self, dry_run_id: str, seconds: float) -> dict[str, Any] | None:
        """Remove and return the next answer to a dry run; None where none arrives within so many seconds."""
        seconds = self.longest_block(seconds)
        with self.blocking(seconds) as may:
            got = self.call(
                self.client.blpop, [self.keys.dry_run_answers(dry_run_id)], timeout=seconds if may else 0.01
            )
            return json.loads(got[1]) if got else None

    def drop_dry_run(self, dry_run_id: str) -> None:
        """Delete a dry run and its answers."""
        self.call(self.client.delete, self.keys.dry_run(dry_run_id), self.keys.dry_run_answers(dry_run_id))
