"""The way back of a project: the configuration from which its running containers can be created again.

A step proves it before its first change. The configuration comes from the project's files, from a stored one, or, where
neither matches the containers, from the containers themselves.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from longshore.orchestration.errors import Preflight
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import Compose, Resolved, Source
from longshore.tasks.operations.compose.injected import variables
from longshore.tasks.operations.compose.reconstruction import describe
from longshore.tasks.operations.compose.standing import was_stopped
from longshore.tasks.operations.compose.state import Member, containers, is_well, members

_REMEDY = "pull or build the image again, or set no_way_back: accept"


def keep(
    ctx: Context, docker: Engine, project: str, found: list[Member], policy: str, likely: Resolved | None = None
) -> dict[str, Any]:
    """Store the way back of these containers for the undo. Returns the part of the step's `before` that describes it.

    Raises Preflight if there is none, unless the policy is `accept`.
    """
    if not found:
        return {"revision": False, "no_way_back": "", "undo": "remove its containers; the volumes stay"}
    lost = next((member for member in found if docker.image(member.image_id) is None), None)
    if lost is not None:
        image = f"image {lost.image_id.removeprefix('sha256:')[:12]} ({lost.image}) of container {lost.name}"
        why_not = f"{image} is not on the Docker host any more"
        ctx.log(f"no way back: {why_not}")
        if policy != "accept":
            unharmed = "" if ctx.dry_run else "; nothing was changed"
            raise Preflight(f"no way back: {why_not}{unharmed}", remedy=_REMEDY)
        return {"revision": False, "no_way_back": why_not, "undo": f"none: {why_not}"}
    configuration = _configuration(ctx, docker, project, likely)
    if not ctx.dry_run:
        revisions.save(ctx, "before", configuration)
    source = ", as the containers describe them" if configuration.containers else ""
    undo = f"restore the former configuration and images{source}"
    return {"revision": True, "no_way_back": "", "undo": undo}


def _configuration(ctx: Context, docker: Engine, project: str, likely: Resolved | None) -> Resolved:
    """The configuration of all containers of a project."""
    everything = members(docker, project)
    recorded = revisions.recorded_source(project, containers(docker, project)) or Source(project)
    known = revisions.former(ctx, Compose(ctx, docker), project, everything, recorded, likely)
    if known is not None and variables(known.config):
        known = None  # the variables may have other values now, or none: the containers have the files
    return known or reconstructed(docker, project, everything, recorded)


def note_running(ctx: Context, docker: Engine, project: str) -> None:
    """Store the state before the step as a revision, if it is healthy and no revision describes it.

    The caller holds the project's lock. Later attempts find a state that is changed already.
    """
    kept = revisions.load(revisions.path_of(ctx, project, "before")) if ctx.attempt == 1 else None
    everything = members(docker, project)
    is_new = kept is not None and revisions.running(project, everything) is None
    well = all(is_well(member) or was_stopped(docker, member) for member in everything)
    if kept is not None and is_new and well:
        revisions.note(ctx, docker, kept, everything)
    revisions.tidy(docker, project)


def reconstructed(docker: Engine, project: str, found: list[Member], source: Source) -> Resolved:
    """The configuration of containers as the engine describes them."""
    described = [replace(one, hash=member.hash) for member in found if (one := describe(docker, member.id)) is not None]
    services: dict[str, dict[str, Any]] = {}
    for member in found:
        needs = {name: {"condition": condition} for name, condition in member.depends_on.items()}
        service = services.setdefault(member.service, {"image": member.image, "depends_on": needs, "scale": 0})
        service["scale"] += 1
    text = json.dumps({"name": project, "services": services})
    hashes = {member.service: member.hash for member in found}
    return Resolved(project, text, services, hashes, source, containers=tuple(one.as_json() for one in described))
