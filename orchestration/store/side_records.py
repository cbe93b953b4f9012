"""What is no part of a run's record: what steps printed, messages put aside, dry runs."""

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
    """Plain commands, no scripts."""

    # --- messages that no worker can take ---------------------------------------------------------

    def keep_dead_letter(self, queue: str, message: str, why: str) -> None:
        """Keep a message for a person: the last thousand, 64 KiB of each."""
        entry: dict[Any, Any] = {"queue": queue, "why": why, "message": message[:65536]}
        self.call(self.client.xadd, self.keys.dead_letters, entry, maxlen=1000, approximate=True)

    def dead_letter(self, where: str, entry: str, why: str) -> None:
        """Keep an entry that nobody can read. Where even that is impossible, the log has it."""
        log.error("an entry of %s cannot be read, and is a dead letter now: %r: %s", where, entry[:200], why)
        try:
            self.keep_dead_letter(where, entry, why)
        except StoreUnavailable as error:
            log.error("the dead letter could not be kept: %s", error)

    def aside(self) -> list[dict[str, str]]:
        """What was put aside, the latest first: `queue`, `why`, `message`."""
        nothing = {"queue": "", "why": "", "message": ""}
        return [nothing | entry for _, entry in self.call(self.client.xrevrange, self.keys.dead_letters)]

    # --- events that are no transitions -----------------------------------------------------------

    def add_event(self, run_id: str, name: str, fields: Mapping[str, str]) -> None:
        """Tell those who watch a run of something that follows from it, and changes nothing about it."""
        entry: dict[Any, Any] = {"event": name, "at": self.now()} | dict(fields)
        self.call(self.client.xadd, self.keys.of(run_id).events, entry, nomkstream=True)

    # --- output of steps --------------------------------------------------------------------------

    def add_log(self, run_id: str, step_id: StepId, lines: Sequence[str], stream: str = "") -> None:
        """Keep what a step printed: the last thousand lines, with the stream that they are of."""
        key = self.keys.of(run_id).log(step_id)
        pipe = self.client.pipeline(transaction=False)
        for line in lines:
            entry: dict[Any, Any] = {"line": line} | ({"stream": stream} if stream else {})
            pipe.xadd(key, entry, maxlen=1000, approximate=True)
        self.call(pipe.execute)

    def log(self, run_id: str, step_id: StepId, after: str = "-") -> Iterator[tuple[str, str, str]]:
        """What a step printed since: an id to go on from, the stream (stdout, stderr, or ''), and the line."""
        begin = after if after == "-" else f"({after}"
        for entry_id, entry in self.call(self.client.xrange, self.keys.of(run_id).log(step_id), min=begin):
            yield entry_id, entry.get("stream", ""), entry.get("line", "")

    # --- dry runs ---------------------------------------------------------------------------------

    def put_dry_run(self, dry_run_id: str, body: str, seconds: float) -> None:
        self.call(self.client.set, self.keys.dry_run(dry_run_id), body, px=_ms(seconds))

    def dry_run(self, dry_run_id: str) -> str | None:
        """Its plan, as text with a signature before it where there are keys."""
        return self.call(self.client.get, self.keys.dry_run(dry_run_id)) or None

    def answer(self, dry_run_id: str, body: str, seconds: float) -> None:
        pipe = self.client.pipeline()
        pipe.rpush(self.keys.dry_run_answers(dry_run_id), body)
        pipe.pexpire(self.keys.dry_run_answers(dry_run_id), _ms(seconds))
        self.call(pipe.execute)

    def next_answer(self, dry_run_id: str, seconds: float) -> dict[str, Any] | None:
        with self.blocking(seconds) as may:
            got = self.call(
                self.client.blpop, [self.keys.dry_run_answers(dry_run_id)], timeout=seconds if may else 0.01
            )
            return json.loads(got[1]) if got else None

    def drop_dry_run(self, dry_run_id: str) -> None:
        self.call(self.client.delete, self.keys.dry_run(dry_run_id), self.keys.dry_run_answers(dry_run_id))
