"""Every `only_if` condition, over dependencies that changed, failed, were skipped, or differ between two hosts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from longshore.orchestration.language.guards import OnlyIf, holds
from longshore.orchestration.states import StepState


@dataclass(frozen=True)
class Dependency:
    """A dependency, or one of its hosts."""

    status: StepState
    hosts: tuple[Dependency, ...] = ()

    @property
    def changed(self) -> bool:
        return self.status is StepState.CHANGED


def on_hosts(status: StepState, *hosts: StepState) -> Dependency:
    return Dependency(status, tuple(Dependency(host) for host in hosts))


DEPENDENCIES = {
    "changed": on_hosts(StepState.CHANGED, StepState.CHANGED),
    "unchanged": on_hosts(StepState.UNCHANGED, StepState.UNCHANGED),
    "failed": on_hosts(StepState.FAILED, StepState.FAILED),
    "unknown": on_hosts(StepState.UNKNOWN, StepState.UNKNOWN),
    "skipped": Dependency(StepState.SKIPPED),
    "mixed": on_hosts(StepState.FAILED, StepState.CHANGED, StepState.FAILED),
    "half": on_hosts(StepState.CHANGED, StepState.CHANGED, StepState.UNCHANGED),
}


@pytest.mark.parametrize(
    ("dependencies", "conditions"),
    [
        ("", ""),
        ("changed", "changed all_changed any_host_changed all_hosts_changed"),
        ("unchanged", ""),
        ("failed", "failed any_host_failed all_hosts_failed"),
        ("unknown", "failed any_host_failed all_hosts_failed"),
        ("skipped", ""),
        ("mixed", "failed any_host_failed any_host_changed"),
        ("half", "changed all_changed any_host_changed"),
        ("changed unchanged", "changed any_host_changed"),
        ("changed failed", "changed failed any_host_failed any_host_changed"),
        ("changed skipped", "changed any_host_changed"),
        ("failed skipped", "failed any_host_failed"),
        ("failed unknown", "failed any_host_failed all_hosts_failed"),
        ("changed half", "changed all_changed any_host_changed"),
        ("failed mixed", "failed any_host_failed any_host_changed"),
    ],
)
def test_condition_evaluates_dependencies(dependencies: str, conditions: str) -> None:
    seen = [DEPENDENCIES[name] for name in dependencies.split()]

    held = {str(condition) for condition in OnlyIf if holds(condition, seen)}

    assert held == set(conditions.split())
