"""What the `compose.*` operations share: which project, which of its containers, and who else is at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from longshore.orchestration.operations.compose import ProjectParams
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import Context, Prediction
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import PROJECT, Compose, Resolved, Source, source_of
from longshore.tasks.operations.compose.state import Member, containers


@contextlib.contextmanager
def project_lock(ctx: Context, docker: Engine, project: str) -> Iterator[None]:
    """Compose has no lock of its own, and two at once break a project.

    The one of this host is freed by the kernel when its holder dies; that in Redis counts for all hosts whose
    workers use the same engine.
    """
    with (
        exclusive(f"compose {docker.url} {project}", ctx.check),
        ctx.lock(f"{identity(docker)}/{project}", f"project {project}"),
    ):
        yield


_identities: dict[str, str] = {}


def identity(docker: Engine) -> str:
    """Asked once a process."""
    if docker.url not in _identities:
        _identities[docker.url] = str(docker.info().get("ID") or docker.url)
    return _identities[docker.url]


def source_for(docker: Engine, params: ProjectParams) -> Source:
    recorded = None
    if params.project is not None:
        recorded = revisions.recorded_source(params.project, containers(docker, params.project))
    return source_of(params, recorded)


def named(ctx: Context, docker: Engine, params: ProjectParams) -> tuple[str, Resolved | None]:
    """The project's name; and what its files say, where only they know the name or the services."""
    if params.project_dir is None and params.project is not None:
        return params.project, None
    resolved = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
    return resolved.project, resolved


def project_of(ctx: Context, docker: Engine, params: ProjectParams) -> str:
    """The project's name; where only its folder is given, its files are asked."""
    if params.project is not None:
        return params.project
    return Compose(ctx, docker).resolve(source_for(docker, params)).project


def snapshot(docker: Engine, project: str, found: list[Member]) -> dict[str, Any]:
    """What an undo needs to know. Image names that are ids stand for themselves."""
    refs = {member.image for member in found if not member.image.startswith("sha256:")}
    return {
        "project": project,
        "containers": [member.as_json() for member in found],
        "networks": sorted(docker.networks({PROJECT: project}).values()),
        "refs": {ref: docker.image_id(ref) for ref in sorted(refs)},
    }


def members_of(before: dict[str, Any]) -> list[Member]:
    return [Member(**said) for said in before["containers"]]


def names(found: list[Member]) -> str:
    return ", ".join(member.name for member in found)


def failing(ctx: Context, verb: str, why: str) -> Prediction:
    """For what is wrong now, and may be right once the steps before have run."""
    if ctx.has_upstream:
        return Prediction(f"would {verb} the project, unless this is still so then: {why}", changed=None)
    return Prediction(f"would fail: {why}", changed=False, impossible=why)
