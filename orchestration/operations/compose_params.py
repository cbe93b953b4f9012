"""Parameters of the operations on Compose projects."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import Params
from longshore.orchestration.operations.command import (
    OK_CODES,
    CommandParams,
    OkCodes,
)
from longshore.orchestration.operations.docker.images import Login
from longshore.orchestration.operations.docker.programs import KEEP_FAILED

#: Accept one text as a list.
AS_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Paths = Annotated[list[Annotated[str, Field(min_length=1)]], AS_LIST]
NoWayBack = Literal["refuse", "accept"]
#: The reaction of a step if the image of an existing container is not on the host.
NO_WAY_BACK: Any = Field(
    "refuse",
    description="refuse: fail before any change if the image of an existing container is not on the host; accept: "
    "continue without a way back",
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
        None,
        description="Name of the project; required without `project_dir`. The labels of the containers then name the "
        "files",
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

    healthy_deadline: Duration = Field(60.0, description="Time limit for the services to become healthy")
    min_healthy_time: Duration = Field(5.0, description=UNDISTURBED)


class RolloutParams(HealthLimits):
    """A rollout of a configuration to services."""

    auto_revert: bool = Field(
        default=False,
        description="If a service does not become healthy, restore the version from before the step, and then fail",
    )
    grace: Duration | None = Field(None, description=GRACE)
    no_way_back: NoWayBack = NO_WAY_BACK


class Replacing(RolloutParams, ProjectParams):
    """A rollout: containers are replaced in batches."""

    max_parallel: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Number of services that change at the same time, by default all. The next ones follow when these "
        "are healthy",
    )


class UpParams(Replacing):
    """The step creates missing containers, starts stopped ones, and replaces those that differ from the files or the
    images.

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
    dependency with the condition `service_completed_successfully` that has exited with 0 is not started again.
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

    policy: Literal["always", "missing"] = Field("always", description="missing: pull only images that the host lacks")
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
        "previous",
        description="Number of a revision; previous: the latest one whose images or configuration differ from the "
        "running containers",
    )

    @field_validator("services")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("a rollback covers the whole project: remove services")
        return value
