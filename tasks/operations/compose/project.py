"""The parts that `compose.*` operations share: the project, the snapshot of its containers, and its lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from longshore.orchestration.operations.compose_params import ProjectParams
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import PROJECT, Compose, Resolved, Source, source_of
from longshore.tasks.operations.compose.state import Member, containers


@contextlib.contextmanager
def project_lock(ctx: Context, docker: Engine, project: str) -> Iterator[None]:
    """Hold the lock of a project, since two simultaneous Compose calls break it.

    The kernel releases the host's lock when its holder dies; the lock in Redis covers all hosts whose workers use the
    same engine.
    """
    with (
        exclusive(f"compose {docker.url} {project}", ctx.check),
        ctx.lock(f"{identity(docker)}/{project}", f"project {project}"),
    ):
        yield


_identities: dict[str, str] = {}


def identity(docker: Engine) -> str:
    """The engine's ID, queried once per process."""
    if docker.url not in _identities:
        _identities[docker.url] = str(docker.info().get("ID") or docker.url)
    return _identities[docker.url]


def source_for(docker: Engine, params: ProjectParams) -> Source:
    recorded = None
    if params.project is not None:
        recorded = revisions.recorded_source(params.project, containers(docker, params.project))
    return source_of(params, recorded)


def named(ctx: Context, docker: Engine, params: ProjectParams) -> tuple[str, Resolved | None]:
    """The project's name; and its resolved files, unless the parameters name the project only."""
    if params.project_dir is None and params.project is not None:
        return params.project, None
    resolved = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
    return resolved.project, resolved


def project_of(ctx: Context, docker: Engine, params: ProjectParams) -> str:
    """The project's name, from the parameters or else from its files."""
    if params.project is not None:
        return params.project
    return Compose(ctx, docker).resolve(source_for(docker, params)).project


def snapshot(docker: Engine, project: str, found: list[Member]) -> dict[str, Any]:
    """The state that an undo needs. Images that are named by id are omitted from `refs`."""
    refs = {member.image for member in found if not member.image.startswith("sha256:")}
    return {
        "project": project,
        "containers": [member.as_json() for member in found],
        "networks": sorted(docker.networks({PROJECT: project}).values()),
        "refs": {ref: docker.image_id(ref) for ref in sorted(refs)},
    }


def members_of(before: dict[str, Any]) -> list[Member]:
    return [Member(**one) for one in before["containers"]]


def names(found: list[Member]) -> str:
    return ", ".join(member.name for member in found)
