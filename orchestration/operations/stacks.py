"""The stacks of a host: inspection, the cached inventory, and reconciliation."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Params, Result, Undo, register
from longshore.orchestration.operations.compose import NO_WAY, UNHEALTHY
from longshore.orchestration.operations.compose_params import AS_LIST, RolloutParams
from longshore.orchestration.operations.docker.images import Login

Demand = Literal["redeploy", "restart", "none"]
Files = dict[Annotated[str, Field(min_length=1)], Demand]
_Names = Annotated[list[str], AS_LIST]


class ServiceSpec(Params):
    """Rules of one service in addition to its labels."""

    files: Files = Field(
        {}, description="Paths or patterns, relative to the folder of the project, with the action on a change"
    )


class StackSpec(ServiceSpec):
    """Rules of a whole project; its files apply to each service that mounts them."""

    after: _Names = Field([], description="Projects to reconcile before this one")
    services: dict[str, ServiceSpec] = {}


class StackParams(Params):
    """The stack rules of a file. Steps with equal rules share one inventory."""

    stacks: dict[str, StackSpec] = Field({}, description="Rules for projects, as in the file of LONGSHORE_STACKS")
    only: _Names = Field([], description="Patterns for names of projects; ! excludes; by default all projects")
    registries: dict[str, Login] = Field(
        {}, description="Credentials by host[:port]; by default the worker's docker configuration"
    )


class InspectParams(StackParams):
    """Inspection of a host: all Compose projects of its engine, with their files and images.

    `registry` also queries the registry of each image for a moved tag, with a pause after a rate limit. A check does
    not store the answers.
    """

    registry: bool = Field(default=False, description="Also compare the tags of images with their registries")
    registry_every: Duration = Field(600.0, description="Time for which a stored answer of a registry replaces a query")


class CheckParams(InspectParams):
    """The inventory lists the Compose stacks of the host, with their containers, files and images."""

    state: bool = Field(default=False, description="Also return the present inventory, as `seen`")


class CheckResult(Result):
    """If the cached inventory is not up to date, `valid` is false, and `reason` says why."""

    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None
    seen: dict[str, Any] | None = None


class RebuildParams(InspectParams):
    """The inventory lists the Compose stacks of the host, with their containers, files and images."""

    fresh: bool = Field(default=False, description="Inspect the whole host, without cached data")
    asked: int = Field(
        0,
        ge=0,
        description="Build no inventory if another run began to build one after this time (ms since 1970, by Redis's "
        "clock); by default, the start of the step",
    )
    ttl: Duration = Field(3600.0, description="Lifetime of the inventory")


class RebuildResult(Result):
    """If the step built `generation`, `built` is true, and `why` is the reason. `previous` is the generation before the
    step. `projects`, `services` and `stale` (stale services) are counts. `age_s` is the age of the inventory in
    seconds.
    """

    cache: str
    generation: int
    previous: int | None = None
    built: bool = False
    why: str = ""
    age_s: float = 0.0
    projects: int = 0
    services: int = 0
    stale: int = 0


class ServiceAction(Params):
    """The action on one service; `up` applies its files if the containers differ from them."""

    do: Literal["up", "redeploy", "restart"] = "up"
    fetch: bool = Field(default=False, description="Pull the image first")
    why: list[str] = []


class RestartParams(RolloutParams, StackParams):
    """The action `up` creates missing containers, and recreates containers that differ from the files or images.
    `redeploy` recreates all containers of the service. `restart` stops and starts them. Dependencies come first.
    Services that share the network, IPC or PID namespace of a changed service are restarted or recreated, too.

    If the project no longer has the fingerprint `index`, the step chooses the actions again, and leaves out services
    that are not stale. Without `index`, the step carries out `services` as given.
    """

    only: _Names = Field(
        [], description="Patterns for names of projects; ! excludes. If they exclude `project`, the step fails"
    )
    project: Annotated[str, Field(min_length=1, description="Name of the project")]
    services: Annotated[
        dict[str, ServiceAction],
        Field(
            min_length=1,
            description="By service: the action `do` (up, redeploy or restart); `fetch: true` to pull the image first; "
            "the reasons `why`, for people",
        ),
    ]
    index: str = Field(
        "",
        description="Fingerprint of the project in the inventory from which `services` were selected; empty: do not "
        "compare",
    )
    asked: bool = Field(default=False, description="Change the services even if they are no longer stale")
    retry: bool = Field(default=False, description="Start a version again that did not become healthy before")
    auto_revert: bool = Field(
        default=True,
        description="If a service does not become healthy, restore the version from before the step, and then fail",
    )


class RestartResult(Result):
    """`moved` is true if the project did not have the fingerprint `index`. `services` has the reasons for each changed
    service, and `left` the services that were left out. `recreated`, `started`, `created` and `unchanged` list
    containers. `standing` has the images, revision and health of the project after the step.
    """

    project: str
    moved: bool = False
    services: dict[str, list[str]] = {}
    left: list[str] = []
    recreated: list[str] = []
    started: list[str] = []
    created: list[str] = []
    unchanged: list[str] = []
    standing: list[dict[str, Any]] = []


_SECRET = frozenset({"registries"})
#: Parameters from files and labels, which are not templates.
_LITERAL = frozenset({"stacks", "only", "project", "services", "index"})

CHECK = register(
    name="stacks.check.get",
    params=CheckParams,
    result=CheckResult,
    queue="cache",
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    summary="Check whether the cached stack inventory of a host is up to date",
    secrets=_SECRET,
    literal=lambda _params: _LITERAL,
    about=replace(READ_ONLY, duplicate="inspects again", dry_run="inspects the host and returns the result"),
)
REBUILD = register(
    name="stacks.rebuild.execute",
    params=RebuildParams,
    result=RebuildResult,
    queue="cache",
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
    summary="Update the cached stack inventory of a host, unless it is up to date",
    secrets=_SECRET,
    literal=lambda _params: _LITERAL,
    about=About(
        changed="the step built a generation of the cache",
        undo="restores the previous generation; changes nothing if another generation was built since",
        duplicate="waits for the lock of the cache; uses the new generation, if the first attempt has stored it",
        dry_run="lists the differences between host and cache",
    ),
)
RESTART = register(
    name="stacks.restart.execute",
    params=RestartParams,
    result=RestartResult,
    queue="compose",
    kind=Kind.ACTS,
    undo=Undo.FULL,
    summary="Update or restart services of a project, and wait until they are healthy",
    secrets=_SECRET,
    literal=lambda _params: _LITERAL,
    about=About(
        changed="a container was created, replaced, started or restarted, or an image was pulled",
        undo="restores the former configuration, images and running containers; fails if the project was changed since",
        duplicate="waits for the lock of the project, and completes the actions of the first attempt",
        fails=f"if the project has no containers; if an image is neither on the host nor pulled; if {NO_WAY}; if "
        f"{UNHEALTHY}",
        dry_run="inspects again, and lists the services to change, with reasons",
    ),
)
