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
from longshore.orchestration.operations.docker.programs import KEEP_FAILED, RunResult
from longshore.orchestration.operations.docker.programs import RUN as DOCKER_RUN

#: Accept one text as a list.
AS_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Paths = Annotated[list[Annotated[str, Field(min_length=1)]], AS_LIST]
NoWayBack = Literal["refuse", "accept"]
#: The reaction of a step if the running containers could not be created again.
NO_WAY_BACK: Any = Field(
    "refuse", description="If the running version could not be restored: fail before any change, or continue"
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
        None, description="Folder of the project on the Docker host"
    )
    project: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Name; without `project_dir`, its containers must exist"
    )
    files: Paths = Field([], description="Compose files, relative to `project_dir`")
    services: Paths = Field([], description="All by default")
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

    healthy_deadline: Duration = Field(60.0, description="Time for the services to become healthy")
    min_healthy_time: Duration = Field(5.0, description=UNDISTURBED)


class RolloutParams(HealthLimits):
    """A rollout of a configuration to services."""

    auto_revert: bool = Field(
        default=False, description="If the services do not become healthy, restore the earlier version at once"
    )
    grace: Duration | None = Field(None, description=GRACE)
    no_way_back: NoWayBack = NO_WAY_BACK


class Replacing(RolloutParams, ProjectParams):
    """A rollout: containers are replaced in batches."""

    max_parallel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Services in one batch; each batch must be healthy before the next. All by default"
    )


class UpParams(Replacing):
    """Images are not built, and are pulled as `pull` sets, before any container is stopped.

    The step fails if a service is not healthy within `healthy_deadline`.
    """

    pull: Literal["never", "missing", "always"] = Field("never", description="missing: images that the host lacks")
    auth: Login | None = Field(None, description=AUTH)
    remove_orphans: bool = Field(default=False, description="Remove containers of services that no file defines")


class DownParams(ProjectParams):
    """Containers and networks are removed; volumes and images stay."""

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
    """Running containers are stopped, dependents before their dependencies."""

    grace: Duration | None = Field(None, description=GRACE)


class StartParams(HealthLimits, ProjectParams):
    """Stopped containers are started, dependencies first; no container is created."""

    min_healthy_time: Duration = Field(1.0, description=UNDISTURBED)


class RestartParams(HealthLimits, ProjectParams):
    """Changes of the files are not applied; use `compose.up.execute` for those."""

    min_healthy_time: Duration = Field(1.0, description=UNDISTURBED)
    grace: Duration | None = Field(None, description=GRACE)


class ConfigParams(ProjectParams):
    """An unset variable in the files is an error."""


class PsParams(ProjectParams):
    """The list includes the containers of `docker compose run`."""


class PullParams(ProjectParams):
    """No container is started."""

    policy: Literal["always", "missing"] = Field("always", description="missing: only images that the host lacks")
    auth: Login | None = Field(None, description=AUTH)


class BuildParams(ProjectParams):
    """Services without a `build` section are left out. No container is started."""

    no_cache: bool = Field(default=False, description="Build without the cache of the engine")
    pull: bool = Field(default=False, description="Pull newer base images")


class ServiceExecParams(CommandParams):
    """The container must be running."""

    project: Annotated[str, Field(min_length=1, description="Name of the project")]
    service: Annotated[str, Field(min_length=1, description="Name of the service")]
    number: Annotated[int, Field(ge=1)] = Field(1, description="Number of the container")
    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]
    user: str | None = Field(None, description="user[:group]; by default that of the container")


class ServiceRunParams(ProjectParams):
    """The container has the image, networks, volumes and environment of the service, and publishes no ports.

    The dependencies of the service must be running.
    """

    services: Paths = Field([], description="Must be empty: use `service`")
    service: Annotated[str, Field(min_length=1, description="Name of the service")]
    command: list[str] | None = Field(None, description="In place of the command of the service")
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
    """A revision is the resolved configuration of a successful `compose.up.execute`, with its images.

    `longshore ops run compose.ps.get project=…` lists the revisions. Images are neither pulled nor built.
    """

    services: Paths = Field([], description="Must be empty: a project is rolled back as a whole")

    to: Annotated[int, Field(ge=1)] | Literal["previous"] = Field(
        "previous", description="Number of a revision; previous: the latest that differs from the running one"
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
    """Names of containers by action, and the present containers.

    `revision` is the path of the saved configuration on the Docker host.
    """

    project: str
    created: list[str] = []
    recreated: list[str] = []
    started: list[str] = []
    removed: list[str] = []
    unchanged: list[str] = []
    containers: list[ContainerState] = []
    revision: str | None = None
    standing: list[dict[str, Any]] = Field(
        [], description="The version that runs now: images, revision, health, and a sentence"
    )


class ConfigResult(Result):
    """Image, configuration hash and number of containers of each service, without the values of variables."""

    project: str
    services: dict[str, dict[str, Any]] = {}
    #: Hash of the resolved files as a whole.
    sha256: str = ""


class PsResult(Result):
    """`revisions` lists the possible rollbacks, the latest last, each as `number, at, run, services` (image ids)."""

    project: str
    exists: bool = False
    containers: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []


class ImagesResult(Result):
    """The id of each image before and after the step; null for none."""

    project: str
    images: dict[str, dict[str, str | None]] = {}


class ChangeResult(Result):
    """Names of the changed containers."""

    project: str
    removed: list[str] = []
    stopped: list[str] = []
    started: list[str] = []
    restarted: list[str] = []


def _compose(
    verb: str, params: type[Params], result: type[Result], summary: str, about: About | None, **more: Any
) -> Operation:
    said: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL} | more
    name = f"compose.{verb}"
    return register(name=name, params=params, result=result, queue="compose", summary=summary, about=about, **said)


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE, "about": READ_ONLY}
_ENGINE = "an unreachable engine or registry, or a Compose conflict after a crash"
_BY_STATE = "finds the containers in the requested state"

UP = _compose(
    "up.execute",
    UpParams,
    UpResult,
    "Bring a project up and wait until it is healthy",
    About(
        changed="a container was created, replaced, started or removed, or a pull fetched another image",
        undo="restores the former configuration, images and running containers from backups; takes a new project "
        "down, without its volumes. Fails if the project was changed since",
        duplicate="waits for the lock of the project; changes only what differs from the files",
        dry_run="lists the services that would change, with reasons: missing, configuration, image, not running",
        retried=_ENGINE,
    ),
    secrets=frozenset({"auth"}),
)
DOWN = _compose(
    "down.execute",
    DownParams,
    ChangeResult,
    "Take a project down; volumes stay",
    About(
        changed="a container or network existed",
        undo="creates the containers again from backups, and starts those that ran; anonymous volumes and data "
        "written inside the containers are lost",
        duplicate="finds the project removed",
        retried=_ENGINE,
    ),
    undo=Undo.PARTIAL,
)
STOP = _compose(
    "stop.execute",
    StopParams,
    ChangeResult,
    "Stop running containers of a project",
    About(
        changed="a container ran",
        undo="starts exactly the containers that the step stopped, and pauses those that were paused",
        duplicate=_BY_STATE,
        retried=_ENGINE,
    ),
)
START = _compose(
    "start.execute",
    StartParams,
    ChangeResult,
    "Start stopped containers of a project",
    About(
        changed="a container did not run",
        undo="stops exactly the containers that the step started",
        duplicate=_BY_STATE,
        retried=_ENGINE,
    ),
)
RESTART = _compose(
    "restart.execute",
    RestartParams,
    ChangeResult,
    "Restart running containers of a project",
    About(
        changed="a container ran, or was started",
        undo="starts the containers that ran, if the restart left one stopped",
        duplicate="skips containers that were started since the step began",
        dry_run="lists the containers to restart",
        retried=_ENGINE,
    ),
    kind=Kind.ACTS,
)
PULL = _compose(
    "pull.execute",
    PullParams,
    ImagesResult,
    "Pull the images of a project",
    About(
        changed="a tag refers to another image",
        undo="restores or removes the tags; layers stay on disk",
        duplicate="finds the tags at the images of the registry",
        dry_run="compares the registry's digests with the local ones",
        retried="an unreachable registry or engine, or an interrupted download",
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
        changed="a tag refers to another image",
        undo="restores or removes the tags; layers and cache stay on disk",
        duplicate="builds again; the engine's cache returns the same images",
        dry_run="lists the services to build; the resulting images are not known in advance",
        retried=_ENGINE,
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
        undo="restores the former state, like the undo of compose.up.execute",
        duplicate="waits for the lock of the project; finds the revision running",
        dry_run="lists the services that would change, with reasons",
        retried=_ENGINE,
    ),
)
CONFIG = _compose("config.get", ConfigParams, ConfigResult, "Get the resolved configuration of a project", **_LOOKS)
PS = _compose("ps.get", PsParams, PsResult, "List the containers and revisions of a project", **_LOOKS)
EXEC = _compose(
    "exec.execute",
    ServiceExecParams,
    CommandResult,
    "Run a program inside a container of a service",
    replace(COMMAND_ABOUT, retried="temporary errors; with `retry`, after exit codes and time limits, too"),
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
    DOCKER_RUN.about,
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env"}),
)
