"""The events of a run, read from its stream in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from longshore.orchestration.errors import UNREADABLE
from longshore.orchestration.plans.compiled import CompiledPlan, as_id
from longshore.orchestration.store.run_store import Store

#: Seconds that one read blocks before the caller can check whether the run has ended.
_BLOCK = 2.0


@dataclass(frozen=True)
class Event:
    """One event of a run, such as the end of a step.

    `id` is the id of the event in the stream, and serves as a cursor. `at` is in ms of Redis's clock. The `fields`
    depend on the event: `step` (a name, such as `copy`, or `copy[17]` for an item), `steps` (names), `attempt`,
    `status`, `error`, …
    """

    id: str
    name: str
    at: int
    fields: Mapping[str, str]

    @property
    def step(self) -> str | None:
        """The name of the step or item that the event is about, or None."""
        return self.fields.get("step")


def read(store: Store, run_id: str, plan: CompiledPlan, after: str = "0-0") -> list[Event]:
    """All events after a cursor."""
    found: list[Event] = []
    while entries := store.read_events(run_id, after):
        found += filter(None, (parse(plan, *entry) for entry in entries))
        after = entries[-1][0]
    return found


def follow(store: Store, run_id: str, plan: CompiledPlan, after: str = "0-0") -> Iterator[Event | None]:
    """Yield events as they occur, without end, and None after each two seconds without one."""
    while True:
        entries = store.read_events(run_id, after, block_ms=round(_BLOCK * 1000))
        if not entries:
            yield None
        for stream_id, fields in entries:
            after = stream_id
            if (event := parse(plan, stream_id, fields)) is not None:
                yield event


def parse(plan: CompiledPlan, stream_id: str, fields: dict[str, str]) -> Event | None:
    """An entry of the stream as an event, with names for the numbers of steps; None for an unreadable entry."""
    try:
        return _named(plan, stream_id, fields)
    except UNREADABLE:
        return None


def _named(plan: CompiledPlan, stream_id: str, fields: dict[str, str]) -> Event:
    shown = {key: value for key, value in fields.items() if key not in {"event", "at"}}
    if shown.get("step"):
        shown["step"] = plan.name_of(as_id(shown["step"]))
    if "steps" in shown:
        shown["steps"] = " ".join(plan.name_of(as_id(i)) for i in shown["steps"].split())
    return Event(stream_id, fields["event"], int(float(fields["at"])), shown)
