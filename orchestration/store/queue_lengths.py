"""Queue lengths: the number of waiting messages, the age of the oldest, and the number of workers for each queue.

The age of a message is that of its step in the record, by Redis's clock, and includes the time before a repeated
message. The age of a message that moves a run on is the time since the last event of the run.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from longshore.orchestration.errors import UNREADABLE, WrongType
from longshore.orchestration.messaging.canvas import ADVANCE, STEP, UNDO
from longshore.orchestration.plans.compiled import CONTROL
from longshore.orchestration.states import StepState
from longshore.orchestration.store.connection import as_number
from longshore.orchestration.store.hosts import Hosts
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.placement import takers
from longshore.orchestration.store.run_store import Store

#: The number of next messages of a queue that are examined; some may be of steps that have ended.
_EXAMINED = 10
#: The same, where a sweep asks for one queue.
_NEXT = 3


@dataclass(frozen=True)
class QueueLength:
    """The length of one queue. `oldest` is in seconds, 0 for an empty queue or an unknown age."""

    queue: str
    length: int
    oldest: float
    #: The number of workers that consume the queue now.
    workers: int


def queue_lengths(store: Store) -> list[QueueLength]:
    """The length of each queue that a worker has ever consumed, by name. Raises StoreUnavailable."""
    hosts = list(Hosts(store).all().values())
    names = sorted({CONTROL, *(queue for host in hosts for queue in host.had)})
    prefix = store.settings.broker_prefix()
    pipe = store.client.pipeline(transaction=False)
    for name in names:
        pipe.llen(f"{prefix}{name}")
        pipe.lrange(f"{prefix}{name}", -_EXAMINED, -1)
    # A queue of the wrong type counts as empty; doctor names it.
    answers: list[Any] = [
        0 if isinstance(answer, Exception) else answer for answer in store.call(pipe.execute, raise_on_error=False)
    ]
    now = store.now()
    found = []
    for n, name in enumerate(names):
        length, oldest = int(answers[2 * n]), answers[2 * n + 1] or []
        since = min(filter(None, (_since(store, message) for message in oldest)), default=now)
        age = max(0.0, (now - since) / 1000)
        found.append(QueueLength(name, length, age, takers(hosts, name)))
    return found


def oldest_message(store: Store, queue: str) -> int | None:
    """The time of the oldest message of a queue, ms of Redis's clock; None for an empty queue or an unknown time."""
    name = f"{store.settings.broker_prefix()}{queue}"
    messages = store.call(store.client.lrange, name, -_NEXT, -1)
    return min(filter(None, (_since(store, message) for message in messages)), default=None)


def _since(store: Store, message: str) -> int:
    """Since when the subject of a message has waited, ms; 0 for a foreign or obsolete message."""
    try:
        body = json.loads(message)
        task, arguments = body["headers"]["task"], json.loads(base64.b64decode(body["body"]))[0]
        if task == ADVANCE:
            return _moved(store, str(arguments[0]))
        if task not in {STEP, UNDO}:
            return 0
        run_id, step_id = str(arguments[0]), arguments[1]
    except UNREADABLE:
        return 0
    side = "u" if task == UNDO else ""
    kinds = [f"{side}{kind}" for kind in (Field.STATUS, Field.SENT, Field.NOT_BEFORE)]
    try:
        status, sent, due = store.step_fields(run_id, [step_id], kinds)[step_id]
    except WrongType:
        return 0
    if status == StepState.RETRYING:
        return as_number(due) or 0
    if status != StepState.READY:
        return 0
    return as_number(sent) or as_number(store.call(store.client.hget, store.keys.of(run_id).run, "opened")) or 0


def _moved(store: Store, run_id: str) -> int:
    try:
        return int(store.newest_event(run_id).partition("-")[0])
    except WrongType:
        return 0
