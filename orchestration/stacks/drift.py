"""Drift: services that differ from their files and images, the reasons, and the action that updates them. Pure.

Containers that were stopped by hand, or ended with 0, are intended to be stopped: they are noted, and left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longshore.orchestration.stacks.inventory import Inventory, Project, Replica, Service, short

#: up: recreate containers that differ from the files. redeploy: recreate all. restart: stop and start.
Action = Literal["up", "redeploy", "restart"]
Kind = Literal["image", "config", "missing", "unhealthy", "file", "asked"]
#: The kinds of a difference in the version: image and configuration.
_VERSIONS = frozenset({"image", "config"})


@dataclass(frozen=True)
class Reason:
    """A reason why a service is stale, as a kind for programs and a text for people."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Stale:
    """A stale service, and the action that updates it."""

    host: str
    project: str
    service: str
    reasons: tuple[Reason, ...]
    action: Action
    #: Whether its image must be pulled first.
    fetch: bool = False

    @property
    def name(self) -> str:
        return f"{self.project}/{self.service}"

    def as_json(self) -> dict[str, Any]:
        found = {"host": self.host, "project": self.project, "service": self.service, "name": self.name}
        reasons = [{"kind": reason.kind, "text": reason.text} for reason in self.reasons]
        return found | {"action": self.action, "fetch": self.fetch, "reasons": reasons}


@dataclass(frozen=True)
class Note:
    """A note about a service, or a whole project (no service), that is left alone.

    `undetermined`: the state of the project cannot be determined. `general`: the note is about a rule, a label or an
    answer of a registry; no service is left alone because of it.
    """

    host: str
    project: str
    service: str
    text: str
    undetermined: bool = False
    general: bool = False

    def __str__(self) -> str:
        return ": ".join(filter(None, ["/".join(filter(None, [self.project, self.service])), self.text]))


def find_drift(host: str, seen: Inventory, *, retry: bool = False) -> Iterator[Stale | Note]:
    """The stale services of a host and the notes about others, sorted by project and service.

    A version that has failed, and the new version of a service that depends on one, are notes, unless `retry` is set.
    """
    for name, project in sorted(seen.projects.items()):
        if project.error:
            yield Note(host, name, "", project.error, undetermined=not project.unknown)
            continue
        kept_back = {} if retry else _kept_back(project.services)
        for service, described in sorted(project.services.items()):
            yield from _drift_of(host, name, service, described, kept_back.get(service, ""))


def stale_of(project: Project, *, retry: bool = False) -> dict[str, Stale]:
    """The stale services of one project, by name."""
    found = find_drift("", Inventory(projects={"p": project}), retry=retry)
    return {one.service: one for one in found if isinstance(one, Stale)}


def _drift_of(host: str, project: str, name: str, service: Service, kept_back: str) -> Iterator[Stale | Note]:
    """`kept_back`: why the service must not get a new version; '' if it may."""
    if not service.hash:
        yield Note(host, project, name, "not defined in the files of its project")
        return
    if service.profiled and not service.containers:
        return
    if service.label_error:
        yield Note(host, project, name, service.label_error, general=True)
    stopped = [one for one in service.containers if one.by_hand]
    ended = [one for one in service.containers if one.succeeded and not one.by_hand]
    others = _others(service)
    if stopped:
        yield Note(host, project, name, f"stopped by hand{_which(service, stopped)}")
    if ended:
        yield Note(host, project, name, f"ended with 0{_which(service, ended)}")
    if any(one.state == "paused" for one in others):
        yield Note(host, project, name, "paused")
    if len(service.containers) > service.replicas:
        extra = f"{len(service.containers)} containers, but its files define {service.replicas}; all are kept"
        yield Note(host, project, name, extra)
    found = list(_reasons(service, others))
    if kept_back and (versions := _versions(found)):
        # Every other action than a restart would bring the new version as well.
        yield Note(host, project, name, f"{versions}: {kept_back}; to try it again: --retry")
        found = [(reason, action) for reason, action in found if action == "restart"]
    reasons = [reason for reason, _ in found]
    actions: set[Action] = {action for _, action in found}
    if (stopped or ended) and not others and len(service.containers) >= service.replicas:
        return  # stopped on purpose
    if reasons:
        # To recreate a container covers every other action.
        action: Action = actions.pop() if len(actions) == 1 else "redeploy"
        fetch = bool(service.newer) and any(reason.kind in _VERSIONS for reason in reasons)
        yield Stale(host, project, name, tuple(reasons), action, fetch)


def _kept_back(services: Mapping[str, Service]) -> dict[str, str]:
    """Why services must not get their new version: this version has failed, or that of a direct or indirect dependency.

    Otherwise, a stack would run new versions beside the old version of a service that they need.
    """
    failed = {name for name, one in services.items() if one.failed and _versions(list(_reasons(one, _others(one))))}
    why = {name: f"this version {services[name].failed}" for name in failed}
    for name in services.keys() - failed:
        if needed := sorted(_dependencies(services, name) & failed):
            versions = "version" if len(needed) == 1 else "versions"
            why[name] = f"depends on {' and '.join(needed)}, whose {versions} failed"
    return why


def _dependencies(services: Mapping[str, Service], name: str) -> set[str]:
    """The direct and indirect dependencies of a service."""
    found: set[str] = set()
    left = [name]
    while left:
        new = set(services.get(left.pop(), Service()).depends_on) - found
        found |= new
        left += new
    return found


def _others(service: Service) -> list[Replica]:
    """The containers that are not intended to be stopped."""
    return [one for one in service.containers if not one.by_hand and not one.succeeded]


def _versions(found: list[tuple[Reason, Action]]) -> str:
    """The texts of the reasons whose repair brings a new version."""
    return ", ".join(reason.text for reason, _ in found if reason.kind in _VERSIONS)


def _reasons(service: Service, containers: list[Replica]) -> Iterator[tuple[Reason, Action]]:
    live = [one for one in containers if one.runs]
    if old := _first(one for one in live if service.image_id and one.image_id != service.image_id):
        yield Reason("image", f"image {short(old.image_id)} → {short(service.image_id)}"), "up"
    if service.newer:
        yield Reason("image", f"image {service.image} → {short(service.newer)} at its registry"), "up"
    if differing := _first(one for one in containers if one.hash != service.hash):
        files = f" ({', '.join(differing.changed)} changed)" if differing.changed else ""
        yield Reason("config", f"config {differing.hash[:12]} → {service.hash[:12]}{files}"), "up"
    if len(service.containers) < service.replicas:
        there = f" ({len(service.containers)} of {service.replicas})" if service.containers else ""
        yield Reason("missing", f"missing{there}"), "up"
    for one in containers:
        if not one.runs:
            how = "was never started" if one.state == "created" else f"ended with {one.exit_code}"
            yield Reason("missing", f"missing ({one.name} {how})"), "up"
        elif one.state == "restarting":
            yield Reason("unhealthy", f"unhealthy ({one.name} keeps restarting)"), "restart"
        elif one.health == "unhealthy":
            yield Reason("unhealthy", f"unhealthy ({one.name})"), "restart"
    for path, tracked in sorted(service.files.items()):
        if tracked.requires == "none":
            continue
        if any(one.files.get(path, tracked.digest) != tracked.digest for one in live):
            yield Reason("file", f"file {path} changed"), tracked.requires


def _first(found: Iterator[Replica]) -> Replica | None:
    return next(found, None)


def _which(service: Service, some: list[Replica]) -> str:
    return "" if len(some) == len(service.containers) else f" ({', '.join(one.name for one in some)})"
