"""The values that the store returns: grants, snapshots, outcomes, and the record of a run for the reducer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from longshore.orchestration.errors import UNREADABLE, Damaged
from longshore.orchestration.messaging.signing import opened
from longshore.orchestration.plans.compiled import StepId
from longshore.orchestration.states import Cause, RunState, StepState, UndoState
from longshore.orchestration.store.keys import Field
from longshore.orchestration.transitions import RunRecord, StepRecord

#: Schema version of a record. A worker skips records with a newer one.
SCHEMA_VERSION = 3
#: Upper bound for times in ms, since scores may be infinite.
FAR = 2**53
_MEMBER = re.compile(r"u?\d{1,6}(\.\d{1,6})?")


@dataclass(frozen=True)
class Grant:
    """The grant of a claim: fence, counters and journal of the attempt."""

    fence: str
    attempt: int
    #: JSON journalled by an earlier attempt, '' for none.
    rendered: str
    step_rendered: str
    before: str
    outcome: str
    first_started: int
    #: JSON of the item of a `foreach` unit.
    item: str = ""
    #: Attempts that count against the retry limit, with this one. Not counted: attempts before the last resume, and
    #: attempts that did not act or whose outcome was still open.
    tries: int = 1
    #: Version of the run, which grows with each event.
    version: int = 0
    #: Service that an earlier attempt found down.
    service: str = ""
    #: Highest fence of an earlier attempt, forward or backward.
    previous: int = field(default=0, compare=False)
    #: Epoch of the run: the number of times that it was reopened.
    epoch: int = 0
    #: Attempts that found the service down and did not act.
    blocked: int = 0


@dataclass(frozen=True)
class UnrecordedAttempt:
    """An attempt that a receipt proves and the record lacks. Its outcome, parameters and `before` are JSON, or ''."""

    step_id: StepId
    fence: int
    status: str
    outcome: str
    rendered: str
    before: str


class Ending(IntEnum):
    """The result of ending a run."""

    #: A concurrent transition was first.
    REFUSED = 0
    #: The run has ended, and keeps its place.
    ENDED = 1
    #: The run has freed its place, and other runs wait.
    RELEASED = 2
    #: The run has freed its place and left the live runs.
    RESTED = 3


@dataclass(frozen=True)
class Recorded:
    """The result of recording an outcome."""

    #: False where another attempt holds the step. True also where the outcome was recorded before: nothing is written.
    accepted: bool
    #: Whether the run can continue now; the caller then sends an advance.
    advance: bool
    #: Units that were held back and are due now; the caller sends their messages.
    next_units: tuple[StepId, ...] = ()
    #: The claim of the next link of the chain.
    next_grant: Grant | None = None


@dataclass(frozen=True)
class RunSnapshot:
    """A run at one read: fields, commands, the time in ms, the score of its inbox entry, and external waits."""

    fields: dict[str, str]
    commands: list[tuple[str, dict[str, str]]]
    now: int
    inbox: float | None
    #: External waits: `<id>` or `u<id>`, and the latest end in ms.
    waits: dict[str, int]
    #: The stored request, where it was read too.
    request: str | None = None


def granted(answer: Sequence[Any]) -> Grant | str:
    """The grant in the answer of the claim script, or the reason of a refusal."""
    if answer[0] != "ok":
        return str(answer[1])
    fence, attempt, rendered, step_rendered, before, outcome, started, item, *rest = answer[1:]
    tries, version, service, previous, epoch, blocked = rest
    return Grant(
        fence, int(attempt), rendered, step_rendered, before, outcome, int(started), item, int(tries),
        int(version), service, int(previous), int(epoch), int(blocked),
    )  # fmt: skip


def stream_order(stream_id: str) -> tuple[int, int]:
    """Sort key of a stream id: ids compare as numbers, not as text. Text that is no id comes first."""
    ms, _, number = stream_id.partition("-")
    return (int(ms), int(number or 0)) if ms.isdigit() and (number or "0").isdigit() else (0, 0)


#: The fields of a step that the reducer reads.
STEP_FIELDS = (
    Field.STATUS, Field.ATTEMPTS, f"u{Field.STATUS}", Field.REASON, Field.NO_EFFECT, Field.TAINTED,
)  # fmt: skip


def step_record(row: tuple[str | None, ...]) -> StepRecord:
    """A step's record from its fields. Raises Damaged."""
    status, attempts, undo, reason, no_effect, tainted = row
    try:
        return _read_step(status, attempts, undo, reason, no_effect, tainted)
    except ValueError as error:
        raise Damaged(f"the record of a step cannot be read: {error}") from None


def _read_step(
    status: str | None,
    attempts: str | None,
    undo: str | None,
    reason: str | None,
    no_effect: str | None,
    tainted: str | None,
) -> StepRecord:
    return StepRecord(
        status=StepState(status or "pending"),
        attempts=int(attempts or 0),
        undo=UndoState(undo) if undo else None,
        reason=reason or "",
        no_effect=bool(no_effect),
        tainted=bool(tainted),
    )


def parent_in(text: str | None) -> str:
    """The run id in the field `parent` of a run's record, or ''."""
    return str(json_object(text or "").get("run", ""))


def json_object(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for text that is no JSON object."""
    try:
        return dict(json.loads(text or "{}"))
    except UNREADABLE:
        return {}


def read_request(run_id: str, sealed_text: str) -> dict[str, Any]:
    """Parse a request, without a check of its signature. Raises Damaged."""
    try:
        body = json.loads(opened(sealed_text)[0])
        if all(isinstance(body.get(name, {}), dict) for name in ("plan", "params", "files")):
            return dict(body)
    except UNREADABLE as error:
        raise Damaged(f"the request of run {run_id} cannot be read: {type(error).__name__}: {error}") from None
    raise Damaged(f"the request of run {run_id} is no request")


def is_member(text: str) -> bool:
    """Whether a member of the leases or waits names a step, a unit, or the undo of one."""
    return _MEMBER.fullmatch(text) is not None


def run_record(fields: Mapping[str, str], now: int) -> RunRecord:
    """The reducer's view of the run's fields. Raises Damaged."""
    try:
        return _read_run(fields, now)
    except (ValueError, KeyError) as error:
        raise Damaged(f"the record of the run cannot be read: {type(error).__name__}: {error}") from None


def _read_run(fields: Mapping[str, str], now: int) -> RunRecord:
    return RunRecord(
        state=RunState(fields["state"]),
        level=int(fields["level"]),
        undo_level=int(fields["undo_level"]) if "undo_level" in fields else None,
        left=int(fields.get("left", 0)),
        keep=bool(fields.get("keep")),
        cause=Cause(fields["cause"]) if fields.get("cause") else None,
        now=now,
        opened=int(fields.get("opened", 0)),
        deadline=int(fields["deadline"]) if fields.get("deadline") else None,
        undo_deadline=int(fields["undo_deadline"]) if fields.get("undo_deadline") else None,
        epoch=int(fields.get("epoch", 0)),
        was=RunState(fields["suspended_state"]) if fields.get("suspended_state") else None,
        lost=int(fields.get("lost", 0)),
        fenced=int(fields.get("fenced", 0)),
        compared=fields.get("compared") == fields.get("epoch", "0"),
    )
