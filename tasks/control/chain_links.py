"""The links of a Celery chain that one process runs in a row, without a message for each.

The script that records a link also opens the next one. Where the same worker may run the next link, the process claims
it in the same round trip; Celery then sends only the links that are left.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from longshore.orchestration.messaging.canvas import SOFT_GRACE
from longshore.orchestration.operations.base import service_of
from longshore.orchestration.plans.compiled import index_of
from longshore.orchestration.store.records import Grant
from longshore.tasks.attempts.delivery import Delivery

#: Seconds after which a process runs no further link of a chain, so that other work has its turn. The time limit of
#: the message, which is that of the first link, has room for it.
_LONGEST_ROW = min(1.0, SOFT_GRACE / 2)


class ChainLinks:
    """The links that follow the first one of a message. `request` is Celery's request of that message."""

    def __init__(self, request: Any, queues: Collection[str]) -> None:
        self._request = request
        #: The queues that this worker consumes.
        self._queues = queues
        self._began = time.monotonic()
        self._limit = float("inf")

    def attach(self, delivery: Delivery) -> Delivery:
        """Give the first delivery the one that may follow."""
        self._limit = delivery.step_timeout
        return self._with_next(delivery)

    def take(self, delivery: Delivery, grant: Grant) -> Delivery:
        """Take the claimed next link out of the chain that Celery sends; return its delivery."""
        self._request.chain = list(self._request.chain[:-1])
        following = cast(Delivery, delivery.following)  # the claim was made for it
        return self._with_next(replace(following, granted=grant))

    def drop(self) -> None:
        """Send no further link of the chain: the record decides how the run continues."""
        self._request.chain = None

    def _with_next(self, delivery: Delivery) -> Delivery:
        link = next_link(self._request.chain)
        delivery.next_link = link
        if link is None or delivery.side or not self._may_run(delivery, link):
            return delivery
        signature = self._request.chain[-1]
        delivery.following = Delivery(
            delivery.store,
            delivery.loaded,
            delivery.run_id,
            link,
            # The main process renews the leases of all links of its message by this name.
            owner=f"{delivery.owner}.{link}",
            task_id=str((signature.get("options") or {}).get("task_id") or ""),
            canvas=delivery.canvas,
            host=delivery.host,
        )
        delivery.may_follow = lambda: time.monotonic() - self._began < _LONGEST_ROW
        return delivery

    def _may_run(self, delivery: Delivery, link: int) -> bool:
        """Whether this worker takes the link, within the time limit of its message, and no breaker decides first."""
        step = delivery.plan.steps[link]
        timeout = step.step.timeout or delivery.store.settings.step_timeout
        return step.queue in self._queues and timeout <= self._limit and not service_of(step.operation, delivery.host)


def next_link(chain: Sequence[Mapping[str, Any]] | None) -> int | None:
    """The step that Celery sends after this one has succeeded: the last entry of the remaining chain."""
    if not chain:
        return None
    args: Sequence[Any] = chain[-1].get("args") or []
    return index_of(args[1]) if len(args) > 1 else None


def links_of(chain: Sequence[Mapping[str, Any]] | None) -> list[int]:
    """The steps of a remaining chain, which the process of its first link may run."""
    return [index_of(link["args"][1]) for link in chain or () if len(link.get("args") or ()) > 1]
