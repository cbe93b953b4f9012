"""Guards: whether a step runs, decided from what the steps before it did.

`only_if` looks at the steps that a step comes directly after. Its words, what they mean for a step without
hosts or without dependencies, and the reasons that a report gives, are those of the table in the docs
(`docs/guards.md`), which a test holds against this module. All guards of a step must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from longshore.orchestration.states import StepState


class OnlyIf(StrEnum):
    """Conditions on the direct dependencies."""

    CHANGED = "changed"
    ALL_CHANGED = "all_changed"
    FAILED = "failed"
    ANY_HOST_FAILED = "any_host_failed"
    ALL_HOSTS_FAILED = "all_hosts_failed"
    ANY_HOST_CHANGED = "any_host_changed"
    ALL_HOSTS_CHANGED = "all_hosts_changed"
    ANY_HOST_SKIPPED = "any_host_skipped"


#: Guards for which a failed dependency is no reason to be skipped (SEMANTICS 12).
LOOKS_AT_FAILURE = frozenset({OnlyIf.FAILED, OnlyIf.ANY_HOST_FAILED, OnlyIf.ALL_HOSTS_FAILED})

#: `unknown` counts as failed, `cancelled` does not.
FAILED = frozenset({StepState.FAILED, StepState.UNKNOWN})

REASONS: Mapping[OnlyIf, str] = {
    OnlyIf.CHANGED: "no dependencies changed",
    OnlyIf.ALL_CHANGED: "only-if-all-changed: not all dependencies changed",
    OnlyIf.FAILED: "only-if-failed: no dependency failed",
    OnlyIf.ANY_HOST_FAILED: "only-if-any-host-failed: no host failed",
    OnlyIf.ALL_HOSTS_FAILED: "only-if-all-hosts-failed: not all hosts failed",
    OnlyIf.ANY_HOST_CHANGED: "only-if-any-host-changed: no host changed",
    OnlyIf.ALL_HOSTS_CHANGED: "only-if-all-hosts-changed: not all hosts changed",
    OnlyIf.ANY_HOST_SKIPPED: "only-if-any-host-skipped: no host skipped",
}
WHEN_FALSE = "when: guard returned false"


class HostResultSeen(Protocol):
    """What a guard sees of one host of a dependency."""

    @property
    def status(self) -> StepState: ...
    @property
    def changed(self) -> bool: ...


class StepSeen(Protocol):
    """What a guard sees of a dependency."""

    @property
    def status(self) -> StepState: ...
    @property
    def changed(self) -> bool: ...
    @property
    def hosts(self) -> Sequence[HostResultSeen]: ...


def _host_failed(host: HostResultSeen) -> bool:
    return host.status in FAILED


def _host_changed(host: HostResultSeen) -> bool:
    return host.changed


def _host_skipped(host: HostResultSeen) -> bool:
    return host.status is StepState.SKIPPED


def _any_host(steps: Sequence[StepSeen], test: Callable[[HostResultSeen], bool]) -> bool:
    """A step without hosts is left out."""
    return any(test(host) for step in steps for host in step.hosts)


def _all_hosts(steps: Sequence[StepSeen], test: Callable[[HostResultSeen], bool]) -> bool:
    """A step without hosts makes it false."""
    return bool(steps) and all(step.hosts and all(test(host) for host in step.hosts) for step in steps)


_TESTS: Mapping[OnlyIf, Callable[[Sequence[StepSeen]], bool]] = {
    OnlyIf.CHANGED: lambda steps: any(step.changed for step in steps),
    OnlyIf.ALL_CHANGED: lambda steps: bool(steps) and all(step.changed for step in steps),
    OnlyIf.FAILED: lambda steps: any(step.status in FAILED for step in steps),
    OnlyIf.ANY_HOST_FAILED: lambda steps: _any_host(steps, _host_failed),
    OnlyIf.ALL_HOSTS_FAILED: lambda steps: _all_hosts(steps, _host_failed),
    OnlyIf.ANY_HOST_CHANGED: lambda steps: _any_host(steps, _host_changed),
    OnlyIf.ALL_HOSTS_CHANGED: lambda steps: _all_hosts(steps, _host_changed),
    OnlyIf.ANY_HOST_SKIPPED: lambda steps: _any_host(steps, _host_skipped),
}


def holds(condition: OnlyIf, dependencies: Sequence[StepSeen]) -> bool:
    """Whether a condition holds for the steps that a step comes directly after."""
    return _TESTS[condition](dependencies)


@dataclass(frozen=True)
class Unit:
    """One part of a step that was fanned out: its item and the host that it goes to."""

    #: JSON.
    item: str = ""
    #: '' for whichever host takes it.
    host: str = ""
    #: Why it is not done there; '' where it is.
    skip: str = ""


@dataclass(frozen=True)
class GuardDecision:
    """What becomes of a step whose turn has come: it runs, unless `skip` or `fail` says why not."""

    skip: str = ""
    fail: str = ""
    #: The units of a step that is fanned out; None for one that is done once.
    units: tuple[Unit, ...] | None = None
    #: For a step that is done once: the host that it goes to.
    host: str = ""
    #: How many units may be at work at once, and how many may fail.
    at_once: int = 0
    tolerated: int = 0
    #: How many of them go first, alone; 0 where none do.
    canary: int = 0


RUNS = GuardDecision()
