"""What is deployed on a host: looked at, kept in a cache, and brought right."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Operation, Params, Result, Undo, register
from longshore.orchestration.operations.docker.images import Login

Demand = Literal["redeploy", "restart", "none"]
Files = dict[Annotated[str, Field(min_length=1)], Demand]
_Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class ServiceSpec(Params):
    """What is said of one service beside its labels."""

    files: Files = Field(
        {}, description="Paths or patterns, relative to the project's folder, and what a change demands"
    )


class StackSpec(ServiceSpec):
    """What is said of a whole project; its files are those of each service that has them."""

    after: _Names = Field([], description="Projects that have to be right before this one")
    services: dict[str, ServiceSpec] = {}


class StackParams(Params):
    """What a file says of the stacks; the same for all who are to see the same."""

    stacks: dict[str, StackSpec] = Field({}, description="What is said of projects beside their labels")
    only: _Names = Field([], description="Patterns of the projects that count, and with ! that do not; all if left out")
    registries: dict[str, Login] = Field(
        {}, description="By a registry's host[:port]; the worker's own docker configuration for those left out"
    )


class InspectParams(StackParams):
    """How the host is looked at: all Compose projects of its engine, their files and images.

    `registry` has each image's registry asked whether its tag has moved, at most once in `registry_every`, and not
    for a while after it said that it was asked too often. What a check hears is not kept.
    """

    registry: bool = False
    registry_every: Duration = 600.0


class CheckParams(InspectParams):
    """`state`: give back what there is to be seen, too; files that have changed are read for it."""

    state: bool = False


class CheckResult(Result):
    """Whether the cache of this host says what is there, and why not. `seen` is what there is to be seen."""

    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None
    seen: dict[str, Any] | None = None


class RebuildParams(InspectParams):
    """`fresh`: nothing of what is cached is trusted."""

    fresh: bool = False
    asked: int = Field(0, ge=0, description="What somebody else has begun to build since will do; ms of Redis's clock")
    ttl: Duration = Field(3600.0, description="After that everything is read again, whether it has changed or not")


class RebuildResult(Result):
    """`generation` is the one that is current now; `built` whether this step built it. Counts of what it holds."""

    cache: str
    generation: int
    previous: int | None = None
    built: bool = False
    why: str = ""
    projects: int = 0
    services: int = 0
    stale: int = 0


class ServiceAction(Params):
    """What is to be done to one service; `up`: what its files say, if it is not so."""

    do: Literal["up", "redeploy", "restart"] = "up"
    fetch: bool = Field(default=False, description="Ask its registry for the image first")
    why: list[str] = []


class RestartParams(StackParams):
    """Brings services of one project right, dependencies first, and nothing else of it.

    With `index`, the fingerprint of what they were selected by, it is looked again where the project is another by
    now: what is not stale any more is left alone. `asked`: they were named, and are restarted in any case.
    """

    project: Annotated[str, Field(min_length=1)]
    services: Annotated[dict[str, ServiceAction], Field(min_length=1)]
    index: str = ""
    asked: bool = False
    healthy_deadline: Duration = 60.0
    min_healthy_time: Duration = 5.0
    auto_revert: bool = Field(
        default=True, description="If they do not get well, they go back at once to what they were"
    )
    grace: Duration | None = Field(None, description="Between TERM and KILL for what is replaced; its own if left out")


class RestartResult(Result):
    """Names of services by what was done to them. `moved`: the project was another than when they were selected."""

    project: str
    moved: bool = False
    services: dict[str, list[str]] = {}
    left: list[str] = []
    recreated: list[str] = []
    started: list[str] = []
    created: list[str] = []
    unchanged: list[str] = []


_SECRET = frozenset({"registries"})
#: What is read from files and labels, and is no template.
_LITERAL = frozenset({"stacks", "only", "project", "services", "index"})

CHECK = register(
    Operation(
        name="stacks.check.get",
        params=CheckParams,
        result=CheckResult,
        queue="cache",
        kind=Kind.READ_ONLY,
        undo=Undo.NONE,
        summary="Whether the cache of what is deployed on a host says what is there",
        secrets=_SECRET,
        literal=lambda _params: _LITERAL,
        about=About(
            changed="never: it only looks",
            undo="nothing to take back",
            duplicate="looks again",
            dry_run="looks, and says what it found",
        ),
    )
)
REBUILD = register(
    Operation(
        name="stacks.rebuild.execute",
        params=RebuildParams,
        result=RebuildResult,
        queue="cache",
        kind=Kind.CONVERGES,
        undo=Undo.FULL,
        summary="Cache what is deployed on a host, where the cache does not say it",
        secrets=_SECRET,
        literal=lambda _params: _LITERAL,
        about=About(
            changed="a generation was built",
            undo="brings the generation before it back, unless another one was built since",
            duplicate="one at a time by the cache's lock; the others find the generation that it built",
            dry_run="says what is not as the cache has it",
        ),
    )
)
RESTART = register(
    Operation(
        name="stacks.restart.execute",
        params=RestartParams,
        result=RestartResult,
        queue="compose",
        kind=Kind.ACTS,
        undo=Undo.FULL,
        summary="Bring services of a project right, and wait until they are well",
        secrets=_SECRET,
        literal=lambda _params: _LITERAL,
        about=About(
            changed="a container was created, replaced, started or restarted, or an image was fetched",
            undo="brings back the former configuration, images and what ran, from what was kept. Refuses where "
            "somebody else has changed it since",
            duplicate="one at a time by the project's lock; what was done is known by the containers that were there",
            dry_run="looks again, and says which services would be brought right, and why",
            retried="an engine or registry that does not answer; Compose's own conflict after a crash",
        ),
    )
)
