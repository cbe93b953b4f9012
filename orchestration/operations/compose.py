"""Compose projects, whole or some of their services."""

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


class ProjectParams(Params):
    """Which project, and which of its services (none named: all).

    `project_dir` is a folder on the Docker host; `files` and `env_file` lie in it unless they are
    absolute. With `project` alone, folder and files are those that its containers were made from.
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
            raise ValueError(f"{value!r} is not a project's name: a-z, 0-9, _ and -, a letter or digit first")
        return value

    @model_validator(mode="after")
    def _which(self) -> ProjectParams:
        if self.project_dir is None and self.project is None:
            raise ValueError("give project_dir or project")
        if self.files and self.project_dir is None and not all(f.startswith(("/", "{{")) for f in self.files):
            raise ValueError("relative files need project_dir")
        return self


class HealthChecked(ProjectParams):
    """Waits until each service is healthy, or, where it has no health check, has run steadily."""

    healthy_deadline: Duration = Field(60.0, description="The longest wait for it; then the step fails")
    min_healthy_time: Duration = Field(5.0, description="So long one without a health check must run without a restart")


class Replacing(HealthChecked):
    """Containers are replaced by others, some at a time."""

    max_parallel: Annotated[int, Field(ge=1)] | None = Field(
        None, description="So many services at once, each gated before the next, dependencies first; all if left out"
    )
    auto_revert: bool = Field(
        default=False, description="If they do not get well, the project goes back at once to what it was"
    )
    grace: Duration | None = Field(None, description="Between TERM and KILL for what is replaced; its own if left out")


class UpParams(Replacing):
    """Nothing is built, and nothing pulled unless `pull` says so, before anything is stopped.

    The step succeeds when each service is healthy by `healthy_deadline`, or, where it has no health
    check, has run for `min_healthy_time` without a restart.
    """

    pull: Literal["never", "missing", "always"] = "never"
    auth: Login | None = Field(None, description="For the registry; the worker's own docker configuration if left out")
    remove_orphans: bool = Field(default=False, description="Remove containers of services that no file tells of")


class DownParams(ProjectParams):
    """Containers and networks go; volumes and images stay. Only a whole project can go down.

    With `remove_orphans`, containers go as well of which the files tell nothing any more.
    """

    remove_orphans: bool = False
    grace: Duration | None = None

    @field_validator("services")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("a project goes down as a whole: compose.stop.execute takes services")
        return value


class StopParams(ProjectParams):
    """What runs is stopped, dependents before what they depend on."""

    grace: Duration | None = None


class StartParams(HealthChecked):
    """What was made and does not run is started, dependencies first; nothing is made."""

    min_healthy_time: Duration = 1.0


class RestartParams(HealthChecked):
    """What runs is stopped and started again, in order. What was changed in the files is not applied: that is `up`."""

    min_healthy_time: Duration = 1.0
    grace: Duration | None = None


class ConfigParams(ProjectParams):
    """What the files say, with nothing left open. A variable that is not set is an error."""


class PsParams(ProjectParams):
    """All containers of the project, those of `compose run` as well."""


class PullParams(ProjectParams):
    """The images of the services; nothing is started."""

    policy: Literal["always", "missing"] = "always"
    auth: Login | None = Field(None, description="For the registry; the worker's own docker configuration if left out")


class BuildParams(ProjectParams):
    """The images of the services that have a `build`; nothing is started."""

    no_cache: bool = False
    pull: bool = Field(default=False, description="Ask for newer base images")


class ServiceExecParams(CommandParams):
    """A program inside a running container of a service."""

    project: Annotated[str, Field(min_length=1)]
    service: Annotated[str, Field(min_length=1)]
    number: Annotated[int, Field(ge=1)] = Field(1, description="Which of its containers")
    argv: Annotated[list[str], Field(min_length=1)]
    user: str | None = None


class ServiceRunParams(ProjectParams):
    """A container of a service's image, networks, volumes and environment that does one thing and ends, once.

    What the service depends on must be there; it is not started by this. It publishes no ports.
    """

    service: Annotated[str, Field(min_length=1)]
    command: list[str] | None = Field(None, description="In the place of the service's own")
    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    grace: Duration = Field(10.0, description="Between TERM and KILL, when it is cancelled or out of its time")

    @field_validator("services")
    @classmethod
    def _one(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("it is one service: give service")
        return value


class RollbackParams(Replacing):
    """Back to a revision: the resolved files and images of an `up` that went well. Nothing is pulled or built.

    The whole project goes back; `longshore ops run compose.ps.get project=…` shows its revisions.
    """

    to: Annotated[int, Field(ge=1)] | Literal["previous"] = Field(
        "previous", description="A revision's number; previous is the latest that is not what runs now"
    )

    @field_validator("services")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("a revision is of the whole project")
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
    """Containers' names by what happened to them, and what is there now.

    `revision` is the saved resolved file on the Docker host; it may hold secrets and never leaves it.
    """

    project: str
    created: list[str] = []
    recreated: list[str] = []
    started: list[str] = []
    removed: list[str] = []
    unchanged: list[str] = []
    containers: list[ContainerState] = []
    revision: str | None = None


class ConfigResult(Result):
    """Per service its image, the hash of its configuration and how many containers it has; no values of variables."""

    project: str
    services: dict[str, dict[str, Any]] = {}
    #: Of the resolved files as a whole.
    sha256: str = ""


class PsResult(Result):
    """`revisions`: those that can be gone back to, the latest last: `number, at, run, services` (image ids)."""

    project: str
    exists: bool = False
    containers: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []


class ImagesResult(Result):
    """Per image its id before (null where there was none) and after."""

    project: str
    images: dict[str, dict[str, str | None]] = {}


class ChangeResult(Result):
    """Names of the containers that were changed."""

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
_ENGINE = "an engine or registry that does not answer; Compose's own conflict after a crash"
_BY_STATE = "finds the containers as they should be"

UP = _compose(
    "up.execute",
    UpParams,
    UpResult,
    "Bring a project up and wait until it is well",
    About(
        changed="a container was created, replaced, started or removed, or a pull brought another image",
        undo="brings back the former configuration, images and what ran, from what was kept; takes a new project "
        "down, its volumes stay. Refuses where somebody else has changed it since",
        duplicate="one at a time by the project's lock; finds hashes, images and state as they should be",
        dry_run="which services would be touched, and why: missing, configuration, image, not running",
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
        changed="a container or network was there",
        undo="makes the containers again out of what was kept, and starts those that ran; anonymous volumes and "
        "what was written inside the containers are lost",
        duplicate="finds it gone",
        retried=_ENGINE,
    ),
    undo=Undo.PARTIAL,
)
STOP = _compose(
    "stop.execute",
    StopParams,
    ChangeResult,
    "Stop what runs of a project",
    About(
        changed="one of its containers ran",
        undo="starts exactly those that it stopped, in order, and pauses those that were paused",
        duplicate=_BY_STATE,
        retried=_ENGINE,
    ),
)
START = _compose(
    "start.execute",
    StartParams,
    ChangeResult,
    "Start what is stopped of a project",
    About(
        changed="one of its containers did not run",
        undo="stops exactly those that it started",
        duplicate=_BY_STATE,
        retried=_ENGINE,
    ),
)
RESTART = _compose(
    "restart.execute",
    RestartParams,
    ChangeResult,
    "Stop and start what runs of a project",
    About(
        changed="one of its containers ran, or was started",
        undo="starts those that ran, if the restart left one stopped",
        duplicate="those that were started since the step began are left alone",
        dry_run="says what would be restarted",
        retried=_ENGINE,
    ),
    kind=Kind.ACTS,
)
PULL = _compose(
    "pull.execute",
    PullParams,
    ImagesResult,
    "Fetch the images of a project",
    About(
        changed="one of the names means another image than before",
        undo="lets the names mean what they meant, or takes them off; the layers stay on the disk",
        duplicate="the names mean what the registry has",
        dry_run="compares the registry's digests with the local ones",
        retried="a registry or an engine that does not answer; a download that breaks off",
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
        changed="one of the names means another image than before",
        undo="lets the names mean what they meant, or takes them off; layers and cache stay on the disk",
        duplicate="the engine's cache gives the same images again",
        dry_run="says which services would be built; whether that gives other images is not known before",
        retried=_ENGINE,
    ),
    undo=Undo.PARTIAL,
)
ROLLBACK = _compose(
    "rollback.execute",
    RollbackParams,
    UpResult,
    "Bring a project back to an earlier revision",
    About(
        changed="a container was created, replaced, started or removed",
        undo="brings back what ran before, as that of compose.up.execute does",
        duplicate="one at a time by the project's lock; finds the revision running",
        dry_run="which services would be touched, and why",
        retried=_ENGINE,
    ),
)
CONFIG = _compose("config.get", ConfigParams, ConfigResult, "What a project's files say", **_LOOKS)
PS = _compose("ps.get", PsParams, PsResult, "A project's containers and revisions", **_LOOKS)
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
    "Run a container of a service to its end, once",
    DOCKER_RUN.about,
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env"}),
)
