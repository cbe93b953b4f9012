"""The snapshot of the containers that ran before a job, stored in a label of the worker, and their start order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.jobs.labels import STACK
from longshore.orchestration.operations.jobs import JobParams
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import PROJECT, Source
from longshore.tasks.operations.compose.state import Member
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.docker.levels import levels

#: The kind label of a job container.
KIND = "job"
JOB = "longshore.job.run-of"
SNAPSHOT = "longshore.job.snapshot"
RECIPE = "longshore.job.recipe"
#: The installation of a worker; several installations may use one engine.
OF = "longshore.job.installation"
ONEOFF = "com.docker.compose.oneoff"
#: Suffix of the name of a failed worker that is kept for an inspection.
KEPT_NAME = "--kept"
#: Prefix of the network mode of a container in the network of another.
_JOINS = "container:"


@dataclass(frozen=True)
class ContainerSnapshot:
    """One container that ran, stored as JSON in a label."""

    id: str
    name: str
    project: str = ""
    service: str = ""
    number: int = 0
    #: Condition by service.
    depends_on: dict[str, str] = field(default_factory=dict)
    #: The container whose network it shares.
    joins: str = ""
    paused: bool = False
    #: The container's own stop timeout in seconds, between TERM and KILL.
    grace: int = 0
    #: Its state before the job if not healthy: restarting or unhealthy; otherwise ''.
    ill: str = ""
    #: Whether its service is one-shot and must exit with 0.
    ends: bool = False

    @classmethod
    def of(cls, container: Container, ends: Set[tuple[str, str]] = frozenset()) -> ContainerSnapshot:
        member = Member.of(container)
        ill = "restarting" if container.restarting else "unhealthy" if container.health == "unhealthy" else ""
        return cls(
            id=container.id,
            name=container.name,
            project=container.labels.get(PROJECT, ""),
            service=member.service,
            number=member.number,
            depends_on=member.depends_on,
            joins=joins(container),
            paused=container.paused,
            grace=container.stop_timeout or 0,
            ill=ill,
            ends=(container.labels.get(PROJECT, ""), member.service) in ends,
        )


@dataclass(frozen=True)
class Snapshot:
    """All containers that ran, and the files of their projects, from which a removed container can be created."""

    kept: tuple[ContainerSnapshot, ...] = ()
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps({"kept": [asdict(one) for one in self.kept], "sources": self.sources}, separators=(",", ":"))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Snapshot:
        """The snapshot from the decoded JSON of `text`."""
        return cls(tuple(ContainerSnapshot(**one) for one in record["kept"]), record["sources"])

    def source(self, project: str) -> Source | None:
        files = self.sources.get(project)
        if files is None:
            return None
        return Source(project, files["directory"], tuple(files["files"]), tuple(files["env_files"]))

    @property
    def projects(self) -> list[str]:
        return sorted({one.project for one in self.kept if one.project})


def joins(container: Container) -> str:
    mode = container.network_mode
    return mode.removeprefix(_JOINS) if mode.startswith(_JOINS) else ""


def named_containers(docker: Engine, stacks: Sequence[str], names: Sequence[str]) -> list[Container]:
    """The containers that a job names. Raises Preflight for a stack without containers or a missing container."""
    found: dict[str, Container] = {}
    for stack in stacks:
        there = [one for label in (PROJECT, STACK) for one in docker.containers({label: stack})]
        there = [one for one in there if _is_of(one, stack)]
        if not there:
            raise Preflight(
                f"stack {stack!r} has no containers on this host", remedy="correct the name of the stack or the host"
            )
        found |= {one.id: one for one in there}
    for name in names:
        container = docker.inspect(name)
        if container is None:
            raise Preflight(
                f"container {name!r} does not exist on this host",
                remedy="correct the name of the container or the host",
            )
        found[container.id] = container
    return list(found.values())


def _is_of(container: Container, stack: str) -> bool:
    """Reports whether a container belongs to a stack: no one-off container, no worker, and no other stack's label."""
    labels = container.labels
    return labels.get(ONEOFF, "False") != "True" and spec.KIND not in labels and labels.get(STACK) in {None, "", stack}


def take(docker: Engine, stacks: Sequence[str], names: Sequence[str]) -> Snapshot:
    """A snapshot of the running ones, and of all containers that share their networks. Raises as `named_containers`."""
    everything = named_containers(docker, stacks, names)
    chosen = {one.id: one for one in everything if one.running}
    rows = [row for row in docker.rows({}, all_of_them=False) if row["HostConfig"]["NetworkMode"].startswith(_JOINS)]
    others = [one for row in rows if (one := docker.inspect(row["Id"]))]
    while more := {one.id: one for one in others if one.id not in chosen and joins(one) in chosen}:
        chosen |= more
    if temporary := [one.name for one in chosen.values() if one.auto_remove]:
        what = f"the engine would delete container {temporary[0]} at its stop (--rm), so that no start could follow"
        raise Preflight(what, remedy="create it without --rm, or remove it from the job")
    sources = {}
    for project in sorted({one.labels.get(PROJECT, "") for one in chosen.values()} - {""}):
        source = revisions.recorded_source(project, everything)
        if source is not None:
            sources[project] = {"directory": source.directory, "files": source.files, "env_files": source.env_files}
    ends = {
        (one.labels.get(PROJECT, ""), service)
        for one in everything
        for service, condition in Member.of(one).depends_on.items()
        if condition == "service_completed_successfully"
    }
    kept = sorted(
        (ContainerSnapshot.of(one, ends) for one in chosen.values()),
        key=lambda k: (k.project, k.service, k.number, k.name),
    )
    return Snapshot(tuple(kept), sources)


def in_order(kept: Iterable[ContainerSnapshot]) -> list[list[ContainerSnapshot]]:
    """Containers in levels: a level depends only on earlier levels. Cycles share a level."""
    by_id = {one.id: one for one in kept}
    by_service: dict[tuple[str, str], set[str]] = {}
    for one in by_id.values():
        by_service.setdefault((one.project, one.service), set()).add(one.id)
    needs = {
        one.id: {i for service in one.depends_on for i in by_service.get((one.project, service), ())} | {one.joins}
        for one in by_id.values()
    }
    return [[by_id[i] for i in level] for level in levels(needs)]


def names(kept: Iterable[ContainerSnapshot]) -> str:
    return ", ".join(one.name for one in kept) or "nothing"


def worker_of(docker: Engine, ctx: Context, params: JobParams) -> Container | None:
    """The job container of the run, if it exists."""
    ours = get_settings().installation()
    found = docker.containers({spec.RUN: params.run or ctx.run_id, spec.KIND: KIND, OF: ours})
    return found[0] if found else None


def recall(docker: Engine, ctx: Context, params: JobParams) -> tuple[Container | None, Snapshot]:
    """The run's worker and its snapshot, from its label or else from the run's record; in a dry run, a new snapshot."""
    if ctx.dry_run:
        return None, take(docker, params.stacks, params.containers)
    worker = worker_of(docker, ctx, params)
    if worker is not None and SNAPSHOT in worker.labels:
        return worker, Snapshot.of(json.loads(worker.labels[SNAPSHOT]))
    record = ctx.results["worker"].data.get("snapshot") if "worker" in ctx.results else None
    if record is None:
        return worker, Snapshot()
    try:
        return worker, Snapshot.of(record)
    except (KeyError, TypeError) as error:
        raise OperationError(f"the job's snapshot in the record of the run is unreadable: {error}") from None
