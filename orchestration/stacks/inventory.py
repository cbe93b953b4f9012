"""The inventory of a host, as cached: its running containers beside the content of its files and images.

The host collects the inventory (`longshore.tasks.operations.stacks.inspect_host`); `drift` evaluates it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longshore.orchestration.operations.stacks import Demand
from longshore.orchestration.store.caches import Found, digest_of


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Tracked(_Model):
    """A file mounted from the host into a service. `digest` is '' for a missing file."""

    digest: str
    requires: Demand = "redeploy"


class Replica(_Model):
    """One container of a service."""

    id: str
    name: str
    number: int
    image_id: str
    hash: str
    #: State as the engine reports it: running, exited, …
    state: str
    health: str | None = None
    exit_code: int | None = None
    #: Whether the container was stopped by a person, and did not end by itself.
    by_hand: bool = False
    #: Identifies the start of the container; differs after each start.
    start: str = ""
    #: The files of its configuration that have changed since its creation, as far as known.
    changed: list[str] = []
    #: Digests of the tracked files at the start of the container; '' for a file that changed since, from an unknown
    #: content.
    files: dict[str, str] = {}

    @property
    def runs(self) -> bool:
        return self.state in {"running", "paused", "restarting"}

    @property
    def succeeded(self) -> bool:
        return self.state == "exited" and self.exit_code == 0


class Service(_Model):
    """One service of a project: its definition in files and images, and its containers.

    Without a `hash`, the project's files do not define the service.
    """

    image: str = ""
    #: Id of the image of that name on this host; None where the host has none.
    image_id: str | None = None
    #: Digest of that name at its registry, if the image there differs.
    newer: str = ""
    hash: str = ""
    replicas: int = 0
    #: Restart policy; and whether the service has a profile, so that it may be missing.
    restart: str = ""
    profiled: bool = False
    #: The services in its `depends_on`.
    depends_on: list[str] = []
    #: Labels in its files, and labels of its containers.
    declared: dict[str, str] = {}
    labels: dict[str, str] = {}
    files: dict[str, Tracked] = {}
    containers: list[Replica] = []
    #: When and why the version in its files and at its registry has failed, if it has.
    failed: str = ""
    #: Why its labels are invalid.
    label_error: str = ""


class Project(_Model):
    """One Compose project. `inputs` are the digests of all files of its configuration; without `known` their list is
    incomplete, and the configuration is read each time.
    """

    directory: str = ""
    files: list[str] = []
    inputs: dict[str, str] = {}
    known: bool = True
    #: Projects to update before this one.
    after: list[str] = []
    services: dict[str, Service] = {}
    #: Why its files cannot be read; `unknown`, if their paths are unknown.
    error: str = ""
    unknown: bool = False

    @property
    def fingerprint(self) -> str:
        return digest_of(self.model_dump())[:16]


#: Error of a registry whose rate limit is exceeded.
RATE_LIMITED = "its rate limit is exceeded"


class Remote(_Model):
    """A registry's answer about an image name at `at`, seconds since 1970, and the host's image id at that time."""

    digest: str = ""
    at: float = 0.0
    error: str = ""
    image_id: str = ""


class Inventory(_Model):
    """All projects of a host."""

    engine: str = ""
    #: Digest of the rules used for the inspection.
    rules: str = ""
    projects: dict[str, Project] = {}
    remotes: dict[str, Remote] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the inventory without the times of registry queries."""
        return digest_of(self.model_dump(exclude={"remotes"}))

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


def inventory_of(found: Found) -> tuple[Inventory | None, str]:
    """The inventory in a cache generation; or None, and the reason."""
    if found.entry is None:
        return None, found.why
    try:
        seen = Inventory.model_validate(found.entry.value)
    except ValidationError as error:
        return None, f"the cached inventory cannot be used: {error.errors()[0]['msg']}"
    if seen.fingerprint != found.entry.fingerprint:
        return None, "the cached inventory cannot be used: its fingerprint does not match"
    return seen, ""


def difference(was: Inventory, now: Inventory) -> str:
    """The first difference between two inventories, for people; '' if none."""
    if was.rules != now.rules:
        return "the rules for tracked files changed"
    if was.engine != now.engine:
        return "the engine was replaced"
    for word, names in (
        ("new", sorted(now.projects.keys() - was.projects.keys())),
        ("gone", sorted(was.projects.keys() - now.projects.keys())),
    ):
        if names:
            return f"project {names[0]} is {word}"
    for name, project in sorted(now.projects.items()):
        if project != was.projects[name]:
            return f"{name}: {_changed(was.projects[name], project)}"
    return ""


def _changed(was: Project, now: Project) -> str:
    for path in sorted({*was.inputs, *now.inputs}):
        if was.inputs.get(path) != now.inputs.get(path):
            return f"file {path} changed"
    for name, service in sorted(now.services.items()):
        before = was.services.get(name)
        if before is None:
            return f"service {name} is new"
        if service != before:
            return f"service {name}: {_of_service(before, service)}"
    gone = sorted(was.services.keys() - now.services.keys())
    return f"service {gone[0]} is gone" if gone else "changed"


def _of_service(was: Service, now: Service) -> str:
    if was.image_id != now.image_id:
        return f"image {short(was.image_id)} → {short(now.image_id)}"
    if was.failed != now.failed:
        return "the version in its files failed" if now.failed else "the version in its files may be tried"
    before: Mapping[str, Replica] = {one.name: one for one in was.containers}
    for one in now.containers:
        if one.name not in before or before[one.name].id != one.id:
            return f"container {one.name} is new"
        if before[one.name] != one:
            word = one.health if one.health != before[one.name].health and one.health else one.state
            return f"container {one.name} is {word}"
    if gone := sorted(before.keys() - {one.name for one in now.containers}):
        return f"container {gone[0]} is gone"
    for path in sorted({*was.files, *now.files}):
        if was.files.get(path) != now.files.get(path):
            return f"file {path} changed"
    return "changed"


def short(image_id: str | None) -> str:
    """The first 12 digits of an image id."""
    return image_id.removeprefix("sha256:")[:12] if image_id else "none"
