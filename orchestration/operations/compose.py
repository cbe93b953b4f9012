"""Compose projects, whole or some of their services."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from longshore.orchestration.durations import Duration
from longshore.orchestration.operations.base import Kind, Operation, Params, Result, Undo, register


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


class UpParams(ProjectParams):
    """Nothing is built, and nothing pulled unless `pull` says so, before anything is stopped.

    The step succeeds when each service is healthy by `healthy_deadline`, or, where it has no health
    check, has run for `min_healthy_time` without a restart.
    """

    pull: Literal["never", "missing", "always"] = "never"
    healthy_deadline: Duration = 60.0
    min_healthy_time: Duration = 5.0
    remove_orphans: bool = False
    #: Between TERM and KILL for a container that is replaced; its own if left out.
    grace: Duration | None = None


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


class StartParams(ProjectParams):
    """What was made and does not run is started, dependencies first; nothing is made."""

    healthy_deadline: Duration = 60.0
    min_healthy_time: Duration = 1.0


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


class ChangeResult(Result):
    """Names of the containers that were changed."""

    project: str
    removed: list[str] = []
    stopped: list[str] = []
    started: list[str] = []


def _operation(name: str, params: type[Params], result: type[Result], summary: str) -> Operation:
    return register(
        Operation(
            name=name,
            params=params,
            result=result,
            queue="compose",
            kind=Kind.CONVERGES,
            undo=Undo.FULL,
            summary=summary,
        )
    )


UP = _operation("compose.up.execute", UpParams, UpResult, "Bring a project up and wait until it is well")
DOWN = _operation("compose.down.execute", DownParams, ChangeResult, "Take a project down; volumes stay")
STOP = _operation("compose.stop.execute", StopParams, ChangeResult, "Stop what runs of a project")
START = _operation("compose.start.execute", StartParams, ChangeResult, "Start what is stopped of a project")
