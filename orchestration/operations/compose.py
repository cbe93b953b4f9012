"""Compose projects, as a whole or by service."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Operation, Params, Result, Undo, register
from longshore.orchestration.operations.command import (
    COMMAND_ABOUT,
    CommandParams,
    CommandResult,
    is_read_only_command,
    repeatable,
)
from longshore.orchestration.operations.docker.images import Login
from longshore.orchestration.operations.docker.programs import RUN as DOCKER_RUN
from longshore.orchestration.operations.docker.programs import RunResult


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_list)]


NoWayBack = Literal["refuse", "accept"]
#: The reaction of a step if the running containers could not be created again.
NO_WAY_BACK: Any = Field(
    "refuse", description="If what runs now cannot be brought back: fail before the first change, or accept it"
)


class ProjectParams(Params):
    """A project, and a selection of its services (all by default).

    `project_dir` is a folder on the Docker host; `files` and `env_file` are relative to it unless absolute. With
    `project` alone, folder and files are those of the existing containers.
    """

    project_dir: Annotated[str, Field(min_length=1)] | None = None
    project: Annotated[str, Field(min_length=1)] | None = None
    files: Paths = []
    services: Paths = []
    profiles: Paths = []
    env_file: Paths = []

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


class HealthChecked(ProjectParams):
    """Waits until each service is healthy or, without a health check, has run without a restart."""

    healthy_deadline: Duration = Field(60.0, description="Longest wait; then the step fails")
    min_healthy_time: Duration = Field(5.0, description="Time without a restart, for services without a health check")


class Replacing(HealthChecked):
    """A rollout: containers are replaced in batches."""

    max_parallel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Services per batch, dependencies first, each batch healthy before the next; all by default"
    )
    auto_revert: bool = Field(
        default=False, description="If the services do not become healthy, revert the project at once"
    )
    grace: Duration | None = Field(
        None, description="Between TERM and KILL for replaced containers; by default their own"
    )
    no_way_back: NoWayBack = NO_WAY_BACK


class UpParams(Replacing):
    """Images are never built, and only pulled as `pull` sets, before any container is stopped.

    The step succeeds when, by `healthy_deadline`, each service is healthy or, without a health check, has run for
    `min_healthy_time` without a restart.
    """

    pull: Literal["never", "missing", "always"] = "never"
    auth: Login | None = Field(None, description="Registry credentials; by default the worker's docker configuration")
    remove_orphans: bool = Field(default=False, description="Remove containers of services that no file defines")


class DownParams(ProjectParams):
    """Containers and networks are removed; volumes and images stay. A project goes down as a whole.

    `remove_orphans` also removes containers of services that the files no longer define.
    """

    remove_orphans: bool = False
    grace: Duration | None = None
    no_way_back: NoWayBack = NO_WAY_BACK

    @field_validator("services")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("a project goes down as a whole: use compose.stop.execute for single services")
        return value


class StopParams(ProjectParams):
    """Running containers are stopped, dependents before their dependencies."""

    grace: Duration | None = None


class StartParams(HealthChecked):
    """Stopped containers are started, dependencies first; no container is created."""

    min_healthy_time: Duration = 1.0


class RestartParams(HealthChecked):
    """Running containers are restarted in order. Changes of the files are not applied; use `up` for those."""

    min_healthy_time: Duration = 1.0
    grace: Duration | None = None


class ConfigParams(ProjectParams):
    """The resolved configuration of the files. An unset variable is an error."""


class PsParams(ProjectParams):
    """All containers of the project, including those of `compose run`."""


class PullParams(ProjectParams):
    """Pull the images of the services; no container is started."""

    policy: Literal["always", "missing"] = "always"
    auth: Login | None = Field(None, description="Registry credentials; by default the worker's docker configuration")


class BuildParams(ProjectParams):
    """Build the images of the services with a `build` section; no container is started."""

    no_cache: bool = False
    pull: bool = Field(default=False, description="Pull newer base images")


class ServiceExecParams(CommandParams):
    """A program inside a running container of a service."""

    project: Annotated[str, Field(min_length=1)]
    service: Annotated[str, Field(min_length=1)]
    number: Annotated[int, Field(ge=1)] = Field(1, description="Number of the container")
    argv: Annotated[list[str], Field(min_length=1)]
    user: str | None = None


class ServiceRunParams(ProjectParams):
    """A one-off container with the image, networks, volumes and environment of a service.

    Dependencies of the service must be running; the step does not start them. The container publishes no ports.
    """

    service: Annotated[str, Field(min_length=1)]
    command: list[str] | None = Field(None, description="Replaces the command of the service")
    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    grace: Duration = Field(10.0, description="Between TERM and KILL after a cancellation or timeout")
    keep_failed: bool = Field(default=False, description="Keep a failed container after the run, until its undo or gc")

    @field_validator("services")
    @classmethod
    def _one(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("the step runs one service: set service, not services")
        return value


class RollbackParams(Replacing):
    """Return to a revision: the resolved files and images of a successful `up`. Images are neither pulled nor built.

    The project is rolled back as a whole; `longshore ops run compose.ps.get project=…` lists its revisions.
    """

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
    """Container names by action, and the current containers.

    `revision` is the saved resolved file on the Docker host. The file may contain secrets and is never sent.
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
        [], description="The running version: images, revision, health, and a sentence"
    )


class ConfigResult(Result):
    """Image, configuration hash and number of containers of each service, without values of variables."""

    project: str
    services: dict[str, dict[str, Any]] = {}
    #: Hash of the resolved files as a whole.
    sha256: str = ""


class PsResult(Result):
    """`revisions`: targets of a rollback, the latest last: `number, at, run, services` (image ids)."""

    project: str
    exists: bool = False
    containers: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []


class ImagesResult(Result):
    """Id of each image before (null for none) and after the step."""

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
    return register(
        Operation(name=name, params=params, result=result, queue="compose", summary=summary, about=about, **said)
    )


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE, "about": READ_ONLY}
_ENGINE = "an unreachable engine or registry; a Compose conflict after a crash"
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
        duplicate="one at a time by the project's lock; finds hashes, images and states as requested",
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
        undo="starts exactly the containers that the step stopped, in order, and pauses those that were paused",
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
        retried="an unreachable registry or engine; an interrupted download",
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
        duplicate="one at a time by the project's lock; finds the revision running",
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
    COMMAND_ABOUT,
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
