"""Guards: conditions on the outcomes of earlier steps that decide whether a step runs.

`only_if` tests the direct dependencies of a step. The table in `docs/reference/guards.md`, which a test compares with
this module, defines the words, their meaning for steps without hosts or dependencies, and the skip reasons in reports.
All guards of a step must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from longshore.orchestration.states import StepState


class OnlyIf(StrEnum):
    """The values of `only_if`: conditions on the outcomes of the steps in `after`.

    * `changed`, `failed` – at least one dependency is changed, or has failed
    * `all_changed` – every dependency is changed
    * `any_host_changed`, `any_host_failed`, `any_host_skipped` – a dependency is changed, has failed or was skipped on
      at least one host
    * `all_hosts_changed`, `all_hosts_failed` – every dependency is changed, or has failed, on all of its hosts
    """

    CHANGED = "changed"
    ALL_CHANGED = "all_changed"
    FAILED = "failed"
    ANY_HOST_FAILED = "any_host_failed"
    ALL_HOSTS_FAILED = "all_hosts_failed"
    ANY_HOST_CHANGED = "any_host_changed"
    ALL_HOSTS_CHANGED = "all_hosts_changed"
    ANY_HOST_SKIPPED = "any_host_skipped"


#: Guards that a failed dependency does not skip.
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
    """The outcome of a dependency on one host, as a guard reads it."""

    @property
    def status(self) -> StepState: ...
    @property
    def changed(self) -> bool: ...


class StepSeen(Protocol):
    """The outcome of a dependency, as a guard reads it."""

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
    """Whether any host passes; a step without hosts is ignored."""
    return any(test(host) for step in steps for host in step.hosts)


def _all_hosts(steps: Sequence[StepSeen], test: Callable[[HostResultSeen], bool]) -> bool:
    """Whether all hosts pass; false if a step has no hosts."""
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
    """Whether a condition holds for the direct dependencies of a step."""
    return _TESTS[condition](dependencies)


@dataclass(frozen=True)
class Unit:
    """One unit of a step with fan-out: an item and a host."""

    #: JSON.
    item: str = ""
    #: '' for any host.
    host: str = ""
    #: The reason to skip the unit; '' to run it.
    skip: str = ""


@dataclass(frozen=True)
class GuardDecision:
    """The decision on a ready step: run, unless `skip` or `fail` has a reason."""

    skip: str = ""
    fail: str = ""
    #: The units of a step with fan-out; None for a single run.
    units: tuple[Unit, ...] | None = None
    #: The host of a step without fan-out.
    host: str = ""
    #: The most units that run at once, and the most that may fail.
    at_once: int = 0
    tolerated: int = 0
    #: Number of canary units that run first, alone; 0 for none.
    canary: int = 0


RUNS = GuardDecision()
