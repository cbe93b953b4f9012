"""Queues, and the order in which a worker reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kombu import Queue
from kombu.utils.scheduling import round_robin_cycle

from longshore.orchestration.operations import all_operations
from longshore.orchestration.plans.compiled import CONTROL, is_forward

#: Families with a queue even where this version has no operation of the family: an application may.
FAMILIES = ("docker", "compose", "cache", "command", "file", "network", "node", "noop", "functions")


def names() -> list[str]:
    """The plain names of all queues: control, each family's undo, each family."""
    known = dict.fromkeys([*FAMILIES, *(op.queue for op in all_operations().values())])
    families = [family for family in known if family != CONTROL]
    return [CONTROL, *(f"{family}.undo" for family in families), *families]


def at_this_host(queues: Iterable[str], host: str) -> list[str]:
    """The host's own queue for each of a worker's queues: `docker@web1`, `docker@web1.undo`."""
    found = []
    for queue in queues:
        family, undo = queue.removesuffix(".undo"), ".undo" if queue.endswith(".undo") else ""
        if family != CONTROL and "@" not in family:
            found.append(f"{family}@{host}{undo}")
    return found


def all_queues() -> list[Queue]:
    """The queues that a worker consumes without `-Q`."""
    return [Queue(name, routing_key=name) for name in names()]


class UndoFirst(round_robin_cycle):  # type: ignore[type-arg]
    """Orders control work first, then undo, then new work in turn.

    kombu's `priority` order would let the first family starve the others.
    """

    def consume(self, n: int) -> Iterator[Any]:
        """Return the next `n` queues to read, in that order."""
        return iter(sorted(super().consume(n), key=_rank))


def _rank(queue: str) -> int:
    return 0 if queue == CONTROL else 2 if is_forward(queue) else 1
