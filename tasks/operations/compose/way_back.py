"""The way back of a project: the configuration from which its running containers can be created again.

A step proves it before its first change. The configuration comes from the project's files, from a stored one, or, where
neither matches the containers, from the containers themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class WayBack:
    """The configuration of all containers of a project, None if it has none; or why they cannot be created again."""

    configuration: Resolved | None = None
    why_not: str = ""

    @property
    def undo(self) -> str:
        """The undo of a step, for people."""
        if self.why_not:
            return f"none: {self.why_not}"
        if self.configuration is None:
            return "remove its containers; the volumes stay"
        kept = "the former configuration and images"
        return f"restore {kept}" + (", as the containers describe them" if self.configuration.containers else "")


def find(ctx: Context, docker: Engine, project: str, found: list[Member], likely: Resolved | None = None) -> WayBack:
    """The way back for these containers of a project. Reads only."""
    if not found:
        return WayBack()
    for member in found:
        if docker.image(member.image_id) is None:
            what = f"image {member.image_id.removeprefix('sha256:')[:12]} ({member.image}) of container {member.name}"
            return WayBack(why_not=f"{what} is not on the Docker host any more")
    everything = members(docker, project)
    recorded = revisions.recorded_source(project, containers(docker, project)) or Source(project)
    known = revisions.former(ctx, Compose(ctx, docker), project, everything, recorded, likely)
    if known is not None and variables(known.config):
        known = None  # the variables may have other values now, or none: the containers have the files
    return WayBack(known or reconstructed(docker, project, everything, recorded))


def keep(
    ctx: Context, docker: Engine, project: str, found: list[Member], policy: str, likely: Resolved | None = None
) -> dict[str, Any]:
    """Store the way back for the undo, and return the part of the step's `before` that describes it.

    Raises Preflight if there is none, unless the policy is `accept`.
    """
    way = find(ctx, docker, project, found, likely)
    if way.configuration is not None and not ctx.dry_run:
        revisions.save(ctx, "before", way.configuration)
    if way.why_not:
        ctx.log(f"no way back: {way.why_not}")
        if policy != "accept":
            unharmed = "" if ctx.dry_run else "; nothing was changed"
            raise Preflight(f"no way back: {way.why_not}{unharmed}", remedy=_REMEDY)
    return {"revision": way.configuration is not None, "no_way_back": way.why_not, "undo": way.undo}


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
