"""The plan that restarts selected services: one step per stack, on its host, in dependency order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, TypedDict

from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations.stacks import REBUILD, RESTART
from longshore.orchestration.plans.handles import StepHandle
from longshore.orchestration.plans.labels import ORCHESTRATE_LABEL
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.stacks.drift import Stale
from longshore.orchestration.stacks.inventory import Inventory
from longshore.orchestration.stacks.rules import AFTER, StackRules

#: A host and a project.
_Key = tuple[str, str]

#: Seconds of a stack's step in addition to the health deadlines of its services.
_MARGIN = 600.0
#: Maximum length of a step's name.
_MAX_NAME = 64


class RolloutOptions(TypedDict, total=False):
    """Options of a rollout. Times in seconds.

    At most `max_parallel` stacks are restarted at once, on all hosts together; `canary` stacks first, and if one of
    them fails, the others are skipped. `on_failure`: `keep` undoes a failed stack by itself, `undo` undoes all stacks.
    `retry` tries versions again that have failed before. `no_way_back`: `accept` restarts a stack although the
    image of an existing container is not on the host.
    """

    max_parallel: int | None
    canary: int | None
    on_failure: Literal["keep", "undo"]
    healthy_deadline: float
    min_healthy_time: float
    retry: bool
    no_way_back: Literal["refuse", "accept"]


_DEFAULTS = RolloutOptions(
    max_parallel=None,
    canary=None,
    on_failure="keep",
    healthy_deadline=60.0,
    min_healthy_time=5.0,
    retry=False,
    no_way_back="refuse",
)


def with_defaults(options: RolloutOptions) -> RolloutOptions:
    """The options with all defaults. Raises UsageError for an invalid one."""
    complete: RolloutOptions = {**_DEFAULTS, **options}
    if complete["healthy_deadline"] <= 0:
        raise UsageError("healthy_deadline must be positive")
    for name in ("max_parallel", "canary"):
        value = complete[name]
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1")
    return complete


@dataclass(frozen=True)
class _Group:
    """The stale services of one project on one host."""

    host: str
    project: str
    services: tuple[Stale, ...]

    @property
    def key(self) -> _Key:
        return self.host, self.project


def restart_plan(
    chosen: Sequence[Stale],
    seen: Mapping[str, Inventory],
    rules: StackRules,
    options: RolloutOptions,
    *,
    asked: bool = False,
    ttl: float = 3600.0,
) -> Plan:
    """The plan that restarts the chosen services. `asked`: the services were named, and are restarted even if they
    are up to date; `ttl`: of the refreshed cache. Raises UsageError where stacks depend on each other in a circle.
    """
    options = with_defaults(options)
    plan = Plan(
        "orchestrate",
        labels={ORCHESTRATE_LABEL: options["on_failure"]},
        on_error="continue" if options["on_failure"] == "keep" else "stop",
        on_failure=options["on_failure"],
    )
    groups = _grouped(chosen)
    several = len({group.host for group in groups}) > 1
    needs = {group.key: _needs(group, groups, seen) for group in groups}
    levels = _levels(groups, needs)
    first = [group for level in levels for group in level][: options["canary"] or 0]
    steps: dict[_Key, StepHandle] = {}
    before: list[StepHandle] = []
    for wave in _waves(levels, first, options["max_parallel"]):
        for group in wave:
            canaries = {one.key for one in first} if group not in first else set()
            hard = [steps[key] for key in sorted(needs[group.key] | canaries)]
            steps[group.key] = _step(plan, group, seen, rules, options, asked=asked, several=several)
            _run_after(steps[group.key], hard, before)
        before = [steps[group.key] for group in wave] if options["max_parallel"] else []
    for host in sorted({group.host for group in groups}):
        own = [step for (where, _), step in steps.items() if where == host]
        refresh = plan.step(_name(f"cache.{host}"), REBUILD.name, ttl=ttl, **_inspection(rules))
        refresh.target(host).undo("none").describe("Refresh the cache of the host")
        _run_after(refresh, [], own)
    return plan


def _step(
    plan: Plan,
    group: _Group,
    seen: Mapping[str, Inventory],
    rules: StackRules,
    options: RolloutOptions,
    *,
    asked: bool,
    several: bool,
) -> StepHandle:
    project = seen[group.host].projects[group.project]
    services = {
        one.service: {"do": one.action, "why": [str(reason) for reason in one.reasons]}
        | ({"fetch": True} if one.fetch else {})
        for one in group.services
    }
    given: dict[str, Any] = {"project": group.project, "services": services, "index": project.fingerprint}
    given |= {"asked": True} if asked else {}
    given |= {"retry": True} if options["retry"] else {}
    given |= {"no_way_back": options["no_way_back"]} if options["no_way_back"] != "refuse" else {}
    given |= {"healthy_deadline": options["healthy_deadline"], "min_healthy_time": options["min_healthy_time"]}
    given |= {key: value for key, value in rules.params().items() if value}
    if not any(one.fetch for one in group.services):
        given.pop("registries", None)
    name = f"{group.host}.{group.project}" if several else group.project
    step = plan.step(_name(name), RESTART.name, **given).target(group.host)
    # Each level of services has a health deadline of its own.
    return step.timeout(_MARGIN + options["healthy_deadline"] * len(group.services) * 2)


def _inspection(rules: StackRules) -> dict[str, Any]:
    return {key: value for key, value in rules.params().items() if value and key != "registries"}


def _run_after(step: StepHandle, hard: Sequence[StepHandle], soft: Sequence[StepHandle]) -> None:
    """Run a step after all of these, and only if the `hard` ones succeeded."""
    step.after(*dict.fromkeys([*hard, *soft]))
    for other in hard:
        step.when(
            f"steps['{other.name}'].status in ['changed', 'unchanged']", reason=f"step {other.name} did not succeed"
        )
    if soft and not hard:
        step.when(f"steps['{soft[0].name}'].status != ''")


def _waves(levels: Sequence[Sequence[_Group]], first: Sequence[_Group], size: int | None) -> Iterator[list[_Group]]:
    """Groups that start together: canaries, then the others, at most `size` of a level."""
    for mine in (True, False):
        for level in levels:
            some = [group for group in level if (group in first) is mine]
            for begin in range(0, len(some), size or len(some) or 1):
                yield some[begin : begin + (size or len(some))]


def _levels(groups: Sequence[_Group], needs: Mapping[_Key, set[_Key]]) -> list[list[_Group]]:
    by_key = {group.key: group for group in groups}
    sorter = TopologicalSorter(needs)
    found = []
    try:
        sorter.prepare()
    except CycleError:
        circle = sorted({project for key, others in needs.items() if key in others for project in [key[1]]})
        raise UsageError(
            f"stacks depend on each other in a circle: {', '.join(circle)}",
            remedy=f"correct their labels {AFTER}, or the file of LONGSHORE_STACKS",
        ) from None
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        found.append([by_key[key] for key in ready])
        sorter.done(*ready)
    return found


def _needs(group: _Group, groups: Sequence[_Group], seen: Mapping[str, Inventory]) -> set[_Key]:
    """Groups to restart before this one, also through stacks that are up to date: on its own host, or else on any host
    that has the project.
    """
    keys = {other.key for other in groups}
    found: set[_Key] = set()
    visited, left = set(), list(seen[group.host].projects[group.project].after)
    while left:
        name = left.pop()
        if name in visited:
            continue
        visited.add(name)
        hosts = [group.host] if name in seen[group.host].projects else [h for h in seen if name in seen[h].projects]
        for host in hosts:
            found |= {(host, name)} & keys
            left += seen[host].projects[name].after
    return found


def _grouped(chosen: Sequence[Stale]) -> list[_Group]:
    found: dict[tuple[str, str], list[Stale]] = {}
    for one in sorted(chosen, key=lambda one: (one.host, one.project, one.service)):
        found.setdefault((one.host, one.project), []).append(one)
    return [_Group(host, project, tuple(services)) for (host, project), services in found.items()]


def _name(text: str) -> str:
    """Text as a valid name of a step; a changed or shortened name gets a hash, so that it stays unique."""
    clean = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-") or "stack"
    if clean == text and len(text) <= _MAX_NAME:
        return text
    return f"{clean[: _MAX_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
