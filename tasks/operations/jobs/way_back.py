"""The way back of a job: descriptions of the containers that it stops, and their images under names of their own.

A stopped container and its image may be removed while the worker runs, for example by `docker system prune`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from longshore.orchestration.errors import Preflight
from longshore.orchestration.language import identifiers
from longshore.orchestration.operations.jobs import JobParams, WorkerParams
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.backups import write_private
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.reconstruction import Description, describe
from longshore.tasks.operations.docker.spec import KEEP, safe
from longshore.tasks.operations.jobs.snapshot import ContainerSnapshot


def require(docker: Engine, params: WorkerParams, kept: Iterable[ContainerSnapshot]) -> list[Description]:
    """Descriptions of the containers. Raises Preflight if the image of one is not on the host, unless accepted."""
    found = []
    for one in kept:
        described = describe(docker, one.id)
        if described is None:
            continue  # removed a moment ago: the step reads its containers again
        if docker.image(described.image_id) is None and params.no_way_back != "accept":
            image = f"image {described.image_id.removeprefix('sha256:')[:12]} ({described.image})"
            what = f"no way back: {image} of container {one.name} is not on the Docker host any more"
            raise Preflight(
                f"{what}; nothing was stopped", remedy="pull or build the image again, or set no_way_back: accept"
            )
        found.append(described)
    return found


def keep(ctx: Context, docker: Engine, params: JobParams, found: Iterable[Description]) -> None:
    """Store the descriptions, and tag the images, so that no prune deletes them."""
    found, run = list(found), params.run or ctx.run_id
    write_private(_path(run), json.dumps([one.as_json() for one in found]).encode())
    for image_id in {one.image_id for one in found}:
        if docker.image(image_id) is not None:
            docker.tag(image_id, _tag(run, image_id))


def stored(ctx: Context, params: JobParams) -> dict[str, Description]:
    """The stored descriptions by container id; empty on another host, or after `forget`."""
    try:
        listed = json.loads(_path(params.run or ctx.run_id).read_text())
        return {one["id"]: Description(**one) for one in listed}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def forget(ctx: Context, docker: Engine, params: JobParams) -> None:
    """Remove descriptions and tags; the stack is up again."""
    run = params.run or ctx.run_id
    for image_id in {one.image_id for one in stored(ctx, params).values()}:
        docker.untag(_tag(run, image_id))
    _path(run).unlink(missing_ok=True)


def _path(run: str) -> Path:
    return get_settings().state_dir / "jobs" / f"{identifiers.run_id(run)}.json"


def _tag(run: str, image_id: str) -> str:
    return f"{KEEP}/jobs:k-{safe(f'{run}.worker')}-{image_id.removeprefix('sha256:')[:12]}"
