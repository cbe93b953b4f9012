"""Containers in the order of their dependencies, stopped level by level, and judged by their health."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from longshore.tasks.host.engine.factory import close_engine, engine
from longshore.tasks.host.engine.port import Engine

One = TypeVar("One")
Done = TypeVar("Done")


def levels(needs: Mapping[str, Set[str]]) -> list[list[str]]:
    """Names in levels, each after the levels that it needs. Cycles share a level; missing dependencies are ignored."""
    left = dict(needs)
    found: list[list[str]] = []
    while left:
        free = [name for name, others in left.items() if not (others - {name}) & left.keys()] or list(left)
        found.append(free)
        for name in free:
            del left[name]
    return found


def stop_levels(order: Sequence[Sequence[One]], stop: Callable[[Engine, One], Done]) -> Iterator[list[Done]]:
    """Stop containers, dependents first, and yield the results of each level. The stops of one level are parallel,
    since each may take its whole grace.
    """

    def call(one: One) -> Done:
        try:
            return stop(engine(), one)  # one client per thread
        finally:
            close_engine()

    for level in reversed(order):
        with ThreadPoolExecutor(max_workers=8) as pool:
            yield list(pool.map(call, level))


class Observed(Protocol):
    """The state of a container, as far as its health needs it."""

    @property
    def id(self) -> str: ...
    @property
    def running(self) -> bool: ...
    @property
    def restarting(self) -> bool: ...
    @property
    def health(self) -> str | None: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def started_at(self) -> str | None: ...


@dataclass
class HealthCheck:
    """Judges containers in repeated observations. Without a health check, one has to run for `settle` seconds."""

    settle: float
    #: By container: its start times, each with the time of the first observation.
    _starts: dict[str, dict[str | None, float]] = field(default_factory=dict)

    def problem(self, one: Observed) -> str:
        """The reason why a container is not healthy yet; '' if healthy."""
        if one.restarting:
            return f"keeps restarting (exit code {one.exit_code})"
        if not one.running:
            return f"exited with code {one.exit_code}"
        if one.health is not None:
            return "" if one.health == "healthy" else f"is {one.health}"
        now = time.monotonic()
        starts = self._starts.setdefault(one.id, {})
        steady = now - starts.setdefault(one.started_at, now)
        if steady >= self.settle:
            return ""
        return f"has run for {steady:.0f} s" + (" since its last restart" if len(starts) > 1 else "")
