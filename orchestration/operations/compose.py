"""Compose projects, as a whole or by service."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Operation, Params, Result, Undo, register
from longshore.orchestration.operations.command import (
    COMMAND_ABOUT,
    OK_CODES,
    CommandParams,
    CommandResult,
    OkCodes,
    is_read_only_command,
    repeatable,
)
from longshore.orchestration.operations.docker.images import Login
from longshore.orchestration.operations.docker.programs import FAILED_RUN, KEEP_FAILED, RUN_ABOUT, RunResult

#: Accept one text as a list.
AS_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Paths = Annotated[list[Annotated[str, Field(min_length=1)]], AS_LIST]
NoWayBack = Literal["refuse", "accept"]
#: The reaction of a step if the running containers could not be created again.
NO_WAY_BACK: Any = Field(
    "refuse",
    description="If the running containers could not be created again: fail before any change, or continue",
)
#: Descriptions that several parameters share.
GRACE = "Time between TERM and KILL; by default that of each container"
AUTH = "Registry credentials; by default the worker's docker configuration"
UNDISTURBED = "Time that a service without a health check must run without a restart"


class ProjectParams(Params):
    """A project, and a selection of its services (all by default).

    `project_dir` is a folder on the Docker host; `files` and `env_file` are relative to it unless absolute. With
    `project` alone, folder and files are those of the existing containers.
    """

    project_dir: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Absolute path of the project's folder on the Docker host"
    )
    project: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Name of the project; without `project_dir`, the labels of its containers name the files"
    )
    files: Paths = Field([], description="Compose files, relative to `project_dir`")
    services: Paths = Field([], description="Services; all by default")
    profiles: Paths = Field([], description="Profiles to enable")
    env_file: Paths = Field([], description="Files of variables, relative to `project_dir`")

    @field_validator("project_dir")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("/", "{{")):
            raise ValueError(f"{value!r} is not an absolute path on the Docker host")
        return value

    @field_validator("project")
    @classmethod
    def _project(cls, value: str | None) -> str | None:
        legal = "abcdefghijklmnopqrstuvwxyz0123456789_-"
        if value is not None and "{{" not in value and (set(value) - set(legal) or value[0] in "_-"):
            raise ValueError(f"{value!r} is not a project name: use a-z, 0-9, _ and -, with a letter or digit first")
        return value

    @model_validator(mode="after")
    def _which(self) -> ProjectParams:
        if self.project_dir is None and self.project is None:
            raise ValueError("give project_dir or project")
        if self.files and self.project_dir is None and not all(f.startswith(("/", "{{")) for f in self.files):
            raise ValueError("relative files need project_dir")
        return self


class HealthLimits(Params):
    """Waits until each service is healthy or, without a health check, has run without a restart."""

    healthy_deadline: Duration = Field(60.0, description="Time for the services to become healthy; then the step fails")
    min_healthy_time: Duration = Field(5.0, description=UNDISTURBED)


class RolloutParams(HealthLimits):
    """A rollout of a configuration to services."""

    auto_revert: bool = Field(
        default=False, description="If the services do not become healthy, restore the earlier version, and then fail"
    )
    grace: Duration | None = Field(None, description=GRACE)
    no_way_back: NoWayBack = NO_WAY_BACK


class Replacing(RolloutParams, ProjectParams):
    """A rollout: containers are replaced in batches."""

    max_parallel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Services that change at the same time; the next ones follow when these are healthy"
    )


class UpParams(Replacing):
    """The step creates missing containers, starts stopped ones, and replaces those that differ from files or images.

    With `pull`, images are pulled before any container is stopped. Images are never built.
    """

    pull: Literal["never", "missing", "always"] = Field("never", description="missing: pull images that the host lacks")
    auth: Login | None = Field(None, description=AUTH)
    remove_orphans: bool = Field(default=False, description="Remove containers of services that no file defines")


class DownParams(ProjectParams):
    """Volumes and images stay."""

    services: Paths = Field([], description="Must be empty: a project goes down as a whole")
    remove_orphans: bool = Field(default=False, description="Remove containers of services that no file defines")
    grace: Duration | None = Field(None, description=GRACE)
    no_way_back: NoWayBack = NO_WAY_BACK

    @field_validator("services")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("a project goes down as a whole: use compose.stop.execute for single services")
        return value


class StopParams(ProjectParams):
    """Each service stops before the services that it depends on."""

    grace: Duration | None = Field(None, description=GRACE)


class StartParams(HealthLimits, ProjectParams):
    """The step also starts the dependencies of `services`, and waits until all are healthy. No container is created. A
    one-shot service that has succeeded is not started again.
    """

    min_healthy_time: Duration = Field(1.0, description=UNDISTURBED)


class RestartParams(HealthLimits, ProjectParams):
    """Stopped containers stay stopped. The step does not apply changes of the files; use `compose.up.execute`."""

    min_healthy_time: Duration = Field(1.0, description=UNDISTURBED)
    grace: Duration | None = Field(None, description=GRACE)


class ConfigParams(ProjectParams):
    """The values of variables, which may be secret, are not returned."""


class PsParams(ProjectParams):
    """The list includes the one-off containers of `docker compose run`."""


class PullParams(ProjectParams):
    """Services with `build` and without `image` are left out. No container is started."""

    policy: Literal["always", "missing"] = Field("always", description="missing: only images that the host lacks")
    auth: Login | None = Field(None, description=AUTH)


class BuildParams(ProjectParams):
    """Services without a `build` section are left out. No container is started."""

    no_cache: bool = Field(default=False, description="Build without the cache of the engine")
    pull: bool = Field(default=False, description="Pull newer base images")


class ServiceExecParams(CommandParams):
    """If the container has no /bin/sh, Longshore cannot end a program that is cancelled or exceeds its time limit."""

    project: Annotated[str, Field(min_length=1, description="Name of the project")]
    service: Annotated[str, Field(min_length=1, description="Name of the service")]
    number: Annotated[int, Field(ge=1)] = Field(1, description="Number of the container of this service")
    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]
    user: str | None = Field(None, description="user[:group]; by default that of the container")


class ServiceRunParams(ProjectParams):
    """The container has the image, networks, volumes and environment of the service, and publishes no ports.

    The step does not start the dependencies of the service.
    """

    services: Paths = Field([], description="Must be empty: use `service`")
    service: Annotated[str, Field(min_length=1, description="Name of the service")]
    command: list[str] | None = Field(None, description="Replaces the command of the service")
    env: dict[str, str] = Field({}, description="Additional environment variables")
    user: str | None = Field(None, description="user[:group]; by default that of the service")
    workdir: str | None = Field(None, description="Working directory")
    ok_codes: OkCodes = OK_CODES
    grace: Duration = Field(10.0, description="Time between TERM and KILL")
    keep_failed: bool = Field(default=False, description=KEEP_FAILED)

    @field_validator("services")
    @classmethod
    def _one(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("the step runs one service: set service, not services")
        return value


class RollbackParams(Replacing):
    """A revision is the resolved configuration of the project, with its images, after a successful
    `compose.up.execute`. `longshore ops run compose.ps.get project=…` lists the revisions. Images are neither pulled
    nor built.
    """

    services: Paths = Field([], description="Must be empty: a project is rolled back as a whole")

    to: Annotated[int, Field(ge=1)] | Literal["previous"] = Field(
        "previous", description="Number of a revision; previous: the latest that differs from what runs now"
    )

    @field_validator("services")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("a rollback covers the whole project: remove services")
        return value


class ContainerState(Result):
    """One container of a project."""

    id: str
    name: str
    service: str
    status: str
    health: str | None = None
    image_id: str
    config_hash: str


class UpResult(Result):
    """The lists of text have names of containers, and `containers` describes the present ones. `revision` is the path
    of the stored configuration. `standing` describes the version that runs now.
    """

    project: str
    created: list[str] = []
    recreated: list[str] = []
    started: list[str] = []
    removed: list[str] = []
    unchanged: list[str] = []
    containers: list[ContainerState] = []
    revision: str | None = None
    standing: list[dict[str, Any]] = []


class ConfigResult(Result):
    """Each service has `image`, `hash` (of its configuration), `replicas`, `depends_on` and `build`. `sha256` is the
    digest of all resolved files.
    """

    project: str
    services: dict[str, dict[str, Any]] = {}
    #: Hash of the resolved files as a whole.
    sha256: str = ""


class PsResult(Result):
    """`revisions` lists the revisions for `compose.rollback.execute`, the latest last. Each has `number`, `at`, `run`
    and `services` (with image ids).
    """

    project: str
    exists: bool = False
    containers: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []


class ImagesResult(Result):
    """`images` has for each tag the image ids `before` and `after` the step; null for none."""

    project: str
    images: dict[str, dict[str, str | None]] = {}


class DownResult(Result):
    """`removed` has the names of the removed containers."""

    project: str
    removed: list[str] = []


class StopResult(Result):
    """`stopped` has the names of the stopped containers."""

    project: str
    stopped: list[str] = []


class StartResult(Result):
    """`started` has the names of the started containers."""

    project: str
    started: list[str] = []


class RestartResult(Result):
    """`restarted` has the names of the restarted containers."""

    project: str
    restarted: list[str] = []


def _compose(
    verb: str, params: type[Params], result: type[Result], summary: str, about: About | None, **more: Any
) -> Operation:
    said: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL} | more
    name = f"compose.{verb}"
    return register(name=name, params=params, result=result, queue="compose", summary=summary, about=about, **said)


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE, "about": READ_ONLY}
_FILES = "if the files are invalid or use an unset variable"
UNHEALTHY = "or a service is not healthy within `healthy_deadline`"
NO_WAY = "the running containers could not be created again (`no_way_back`)"
_MOVED_TAGS = "restores the former tags, or removes new ones; fails if a tag was moved since"

UP = _compose(
    "up.execute",
    UpParams,
    UpResult,
    "Create or update the containers of a project, and wait until they are healthy",
    About(
        changed="a container was created, replaced, started or removed, or a pull fetched another image",
        undo="restores the former configuration, images and running containers; removes a new project, but not its "
        "volumes. Fails if the project was changed since",
        duplicate="waits for the lock of the project, and completes the changes of the first attempt",
        fails=f"{_FILES}, an image is missing, {NO_WAY}, {UNHEALTHY}",
        dry_run="lists the services that would change, with reasons",
    ),
    secrets=frozenset({"auth"}),
)
DOWN = _compose(
    "down.execute",
    DownParams,
    DownResult,
    "Remove the containers and networks of a project",
    About(
        changed="a container or network was removed",
        undo="creates the containers again, and starts those that ran. Anonymous volumes, and data written inside of "
        "the containers, are lost",
        duplicate="removes the remaining containers and networks",
        fails=f"if {NO_WAY}, or Compose reports an error",
    ),
    undo=Undo.PARTIAL,
)
STOP = _compose(
    "stop.execute",
    StopParams,
    StopResult,
    "Stop running containers of a project",
    About(
        changed="a container ran",
        undo="starts the containers that ran, and pauses those that were paused; fails if one was removed since",
        duplicate="stops the containers that still run",
        fails="if another program starts a container during the step; if only `project` is given, and this project has "
        "no containers",
    ),
)
START = _compose(
    "start.execute",
    StartParams,
    StartResult,
    "Start stopped containers of a project",
    About(
        changed="a container did not run",
        undo="stops the containers that did not run before the step",
        duplicate="starts the containers that do not run",
        fails=f"if a service has no container, {UNHEALTHY}",
    ),
)
RESTART = _compose(
    "restart.execute",
    RestartParams,
    RestartResult,
    "Restart running containers of a project",
    About(
        changed="a container ran",
        undo="starts containers that ran before the step and do not run now",
        duplicate="skips containers that were started since the step began",
        fails=f"if a service has no container, {UNHEALTHY}",
        dry_run="lists the containers to restart",
    ),
    kind=Kind.ACTS,
)
PULL = _compose(
    "pull.execute",
    PullParams,
    ImagesResult,
    "Pull the images of a project",
    About(
        changed="a tag refers to another image than before",
        undo=f"{_MOVED_TAGS}. Layers stay on disk",
        duplicate="pulls again; the host already has the complete layers",
        fails=f"{_FILES}, or a registry has no such image or refuses the access",
        dry_run="compares the digests on the host with those of the registries",
    ),
    undo=Undo.PARTIAL,
    secrets=frozenset({"auth"}),
)
BUILD = _compose(
    "build.execute",
    BuildParams,
    ImagesResult,
    "Build the images of a project",
    About(
        changed="a tag refers to another image than before",
        undo=f"{_MOVED_TAGS}. Layers and build cache stay on disk",
        duplicate="builds again, with the cache of the engine",
        fails=f"{_FILES}, no service has a `build` section, or a build fails",
        dry_run="lists the services to build",
    ),
    undo=Undo.PARTIAL,
)
ROLLBACK = _compose(
    "rollback.execute",
    RollbackParams,
    UpResult,
    "Roll a project back to an earlier revision",
    About(
        changed="a container was created, replaced, started or removed",
        undo="restores the former configuration, images and running containers; fails if the project was changed since",
        duplicate="waits for the lock of the project, and completes the changes of the first attempt",
        fails=f"if the revision or one of its images does not exist, {NO_WAY}, {UNHEALTHY}",
        dry_run="lists the services that would change, with reasons",
    ),
)
CONFIG = _compose(
    "config.get",
    ConfigParams,
    ConfigResult,
    "Get the resolved configuration of a project",
    **_LOOKS | {"about": replace(READ_ONLY, fails=_FILES)},
)
PS = _compose("ps.get", PsParams, PsResult, "List the containers and revisions of a project", **_LOOKS)
EXEC = _compose(
    "exec.execute",
    ServiceExecParams,
    CommandResult,
    "Run a program inside a container of a service",
    replace(COMMAND_ABOUT, fails=f"if the container does not run; {COMMAND_ABOUT.fails}"),
    kind=Kind.ACTS,
    undo=Undo.NONE,
    repeatable=repeatable,
    is_read_only_command=is_read_only_command,
    secrets=frozenset({"env", "stdin"}),
)
RUN = _compose(
    "run.execute",
    ServiceRunParams,
    RunResult,
    "Run a one-off container of a service to completion",
    replace(
        RUN_ABOUT,
        fails=f"{_FILES}, the image is not on the host, {FAILED_RUN}",
        dry_run="shows the command, and whether the image is on the host",
    ),
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env"}),
)
