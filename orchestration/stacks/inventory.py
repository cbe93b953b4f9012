"""What runs on a host, beside what its files and images say: what the cache keeps.

It is read on the host (`longshore.tasks.operations.stacks.inspect_host`), and judged without it (`stale`).
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
    """A file that a service has from its host. `digest` is '' for one that is not there."""

    digest: str
    requires: Demand = "redeploy"


class Replica(_Model):
    """One container of a service."""

    id: str
    name: str
    number: int
    image_id: str
    hash: str
    #: The engine's word: running, exited, …
    state: str
    health: str | None = None
    exit_code: int | None = None
    #: It was stopped on purpose, not by its own end.
    by_hand: bool = False
    #: Another one with each start.
    start: str = ""
    #: Digests of the tracked files as it was started with them; '' for one that was changed since, nobody knows from
    #: what.
    files: dict[str, str] = {}

    @property
    def runs(self) -> bool:
        return self.state in {"running", "paused", "restarting"}

    @property
    def ended_well(self) -> bool:
        return self.state == "exited" and self.exit_code == 0


class Service(_Model):
    """One service of a project: what its files and images say now, and its containers.

    Without a `hash` the project's files tell nothing of it.
    """

    image: str = ""
    #: What the image's name means on this host; None where it means nothing.
    image_id: str | None = None
    #: Digest that the name has at its registry, where that is another image.
    newer: str = ""
    hash: str = ""
    replicas: int = 0
    #: Its restart policy; and whether it is of a profile, so that it may be missing.
    restart: str = ""
    profiled: bool = False
    #: As its files give them, and as its containers have them.
    declared: dict[str, str] = {}
    labels: dict[str, str] = {}
    files: dict[str, Tracked] = {}
    containers: list[Replica] = []
    #: What is wrong with its labels.
    wrong: str = ""


class Project(_Model):
    """One Compose project. `inputs` are the digests of all files that its configuration was read from; without `known`
    it cannot be told which these are, so that it is read each time.
    """

    directory: str = ""
    files: list[str] = []
    inputs: dict[str, str] = {}
    known: bool = True
    #: Projects that have to be right before this one.
    after: list[str] = []
    services: dict[str, Service] = {}
    #: Why its files cannot be read; or that nobody knows which they are.
    error: str = ""
    unknown: bool = False

    @property
    def fingerprint(self) -> str:
        return digest_of(self.model_dump())[:16]


class Remote(_Model):
    """What a registry said of a name, when, in seconds since 1970; and what the name meant on the host then."""

    digest: str = ""
    at: float = 0.0
    error: str = ""
    image_id: str = ""


class Inventory(_Model):
    """All projects of a host."""

    engine: str = ""
    #: Digest of what it was looked at by.
    rules: str = ""
    projects: dict[str, Project] = {}
    remotes: dict[str, Remote] = {}

    @property
    def fingerprint(self) -> str:
        """Of what it says of the world; when a registry was asked is no part of it."""
        return digest_of(self.model_dump(exclude={"remotes"}))

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


def inventory_of(found: Found) -> tuple[Inventory | None, str]:
    """What a generation says; and why it says nothing."""
    if found.entry is None:
        return None, found.why
    try:
        seen = Inventory.model_validate(found.entry.value)
    except ValidationError as error:
        return None, f"what is there cannot be used: {error.errors()[0]['msg']}"
    if seen.fingerprint != found.entry.fingerprint:
        return None, "what is there cannot be used: it contradicts its fingerprint"
    return seen, ""


def difference(was: Inventory, now: Inventory) -> str:
    """The first of what is not as it was, for people; '' if nothing is."""
    if was.rules != now.rules:
        return "other files are tracked"
    if was.engine != now.engine:
        return "it is another engine"
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
    return f"service {gone[0]} is gone" if gone else "it is not as it was"


def _of_service(was: Service, now: Service) -> str:
    if was.image_id != now.image_id:
        return f"image {short(was.image_id)} → {short(now.image_id)}"
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
    return "it is not as it was"


def short(image_id: str | None) -> str:
    """An id as people read it."""
    return image_id.removeprefix("sha256:")[:12] if image_id else "none"
