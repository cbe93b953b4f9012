"""Single containers of a Docker engine: create, start, stop, restart, update, rename, remove."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo, expected
from longshore.orchestration.operations.docker.fields import (
    NAME,
    OfContainer,
    Text,
    container_name,
    docker_operation,
    is_template,
    parse_size,
)

_PORT = re.compile(
    r"(?:(?:(?P<host>\[[0-9a-fA-F:]+\]|[0-9.]+):)?(?P<outer>\d*):)?(?P<inner>\d+)(?:/(?P<protocol>tcp|udp|sctp))?"
)
#: The longest volume text, in characters: two paths of the greatest length.
_LONGEST = 2 * 4096 + 16
#: Descriptions that several parameters share.
_POLICIES = "no, always, unless-stopped or on-failure[:times]"
GRACE = "Time between TERM and KILL; by default that of the container, else 10 s"
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(?::\d+)?")


class Mount(Params):
    """A mount. `source` is an absolute path (bind) or a volume name; tmpfs has none."""

    target: Annotated[str, Field(pattern=r"^(/|\{\{)"), expected("an absolute path")]
    source: str | None = None
    type: Literal["bind", "volume", "tmpfs"] = "volume"
    read_only: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Parse `source:target[:ro|rw]`, as on Docker's command line, without anonymous volumes."""
        if not isinstance(value, str):
            return value
        source, *rest = _split(value)
        if not source or len(rest) not in {1, 2} or (len(rest) == 2 and rest[1] not in {"ro", "rw"}):
            raise ValueError(f"{value!r} is not source:target[:ro]")
        kind = "bind" if source.startswith("/") else "volume"
        return {"source": source, "target": rest[0], "type": kind, "read_only": rest[1:] == ["ro"]}

    @model_validator(mode="after")
    def _fits(self) -> Mount:
        if (self.type == "tmpfs") != (self.source is None):
            raise ValueError("a tmpfs has no source" if self.source else f"a {self.type} needs a source")
        if self.source is None or is_template(self.source):
            return self
        if self.type == "bind" and not self.source.startswith("/"):
            raise ValueError(f"the path {self.source!r} is not absolute")
        if self.type == "volume" and not NAME.fullmatch(self.source):
            raise ValueError(f"{self.source!r} is neither an absolute path nor a volume name")
        return self


def _split(text: str) -> list[str]:
    """Split at colons outside of templates."""
    if len(text) > _LONGEST:  # the pattern is quadratic: each colon searches the end of a template
        raise ValueError(f"a volume of {len(text)} characters is too long: use at most {_LONGEST}")
    return re.split(r":(?![^{]*\}\})", text)


class Network(Params):
    """A network to join, and the container's aliases in it."""

    name: Annotated[str, Field(min_length=1)]
    aliases: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Log(Params):
    """The log driver. Without a size limit, json-file can fill the disk."""

    driver: str = "json-file"
    max_size: str | None = "10m"
    max_file: Annotated[int, Field(ge=1)] | None = 3


class Health(Params):
    """The health check: a program inside the container that exits with 0."""

    test: Annotated[list[str], Field(min_length=1)]
    interval: Duration = 30.0
    timeout: Duration = 30.0
    retries: Annotated[int, Field(ge=1)] = 3
    start_period: Duration = 0.0


class CreateParams(Params):
    """The step creates missing volumes. If another run has created a container of this name with the same parameters
    and image, the step keeps this container.
    """

    image: Annotated[str, Field(min_length=1, description="An image on the host")]
    name: str | None = Field(None, description="Name; by default derived from run and step")
    command: list[Text] | None = Field(None, description="Replaces the command of the image")
    entrypoint: list[Text] | None = Field(None, description="Replaces the entrypoint of the image")
    env: dict[str, Text] = Field({}, description="Environment variables")
    labels: dict[str, Text] = Field({}, description="Labels; names that begin with longshore. are reserved")
    volumes: list[Mount] = Field([], description="Each as source:target[:ro] or a mapping")
    networks: list[Network] = Field(
        [], description="Each as a name or a mapping; by default the engine's default network"
    )
    ports: list[Text] = Field([], description="80, 8080:80 or 127.0.0.1:8080:80, each also with /udp")
    user: Text | None = Field(None, description="user[:group] in the container")
    workdir: str | None = Field(None, description="Working directory")
    hostname: str | None = Field(None, description="Host name in the container")
    restart: str = Field("no", description=_POLICIES)
    init: bool = Field(default=True, description="Run a small init as process 1, so that TERM ends the program")
    memory: Text | None = Field(None, description="Memory limit: 64m, 1g, or bytes")
    cpus: Annotated[float, Field(gt=0)] | None = Field(None, description="CPU limit, such as 1.5")
    dns: list[str] = Field([], description="Name servers")
    health: Health | None = Field(None, description="Replaces the health check of the image")
    log: Log = Field(Log(), description="Log driver; by default json-file with 3 files of 10 MB")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return None if value is None else container_name(value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        own = [key for key in value if key.startswith("longshore.")]
        if own:
            raise ValueError(
                f"label {own[0]!r} is reserved: rename it, as longshore. is the prefix of Longshore's own labels"
            )
        return value

    @field_validator("ports")
    @classmethod
    def _ports(cls, value: list[str]) -> list[str]:
        for text in value:
            if is_template(text):
                continue
            match = _PORT.fullmatch(text)
            numbers = [int(n) for n in (match["outer"], match["inner"]) if n] if match else []
            if not match or not all(0 < n < 65536 for n in numbers):
                raise ValueError(f"{text!r} is not a port: 80, 8080:80 or 127.0.0.1:8080:80, each with /udp")
        return value

    @field_validator("restart", mode="before")
    @classmethod
    def _restart(cls, value: Any) -> Any:
        text = "no" if value is False else value  # YAML parses an unquoted no as false
        if not isinstance(text, str) or not (is_template(text) or _RESTART.fullmatch(text)):
            raise ValueError(f"{value!r} is not no, always, unless-stopped or on-failure[:times]")
        return text

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None and not is_template(value):
            parse_size(value)
        return value


class StartParams(OfContainer):
    """The step does not wait until the container is healthy; use `docker.wait.get`."""


class StopParams(OfContainer):
    """The container gets TERM, and KILL after `grace`."""

    grace: Duration | None = Field(None, description=GRACE)


class RemoveParams(OfContainer):
    """The step renames the container, so that the undo can restore the name. Later, `longshore gc` deletes the
    container.
    """

    force: bool = Field(default=False, description="If the container runs, stop the container first")
    grace: Duration | None = Field(None, description=GRACE)


class ContainerResult(Result):
    """The container after the step."""

    id: str
    name: str
    status: str | None = None
    started_at: str | None = None


class CreateResult(Result):
    """If an earlier attempt of this step created the container, `attached` is true."""

    id: str
    name: str
    image_id: str
    attached: bool = False
    warnings: list[str] = []


class StopResult(ContainerResult):
    """The container after the step. `killed` is true if the container got KILL after `grace`."""

    exit_code: int | None = None
    killed: bool = False


class RemoveResult(Result):
    """`kept_as` is the new name of the container."""

    id: str | None = None
    name: str | None = None
    kept_as: str | None = None


class RestartParams(OfContainer):
    """A stopped container is started. The step does not apply changes of Compose files; use `compose.up.execute`."""

    grace: Duration | None = Field(None, description=GRACE)


class RenameParams(OfContainer):
    """The container keeps its id, and has the new name in its networks."""

    name: str = Field(description="The new name")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return container_name(value)


class RenameResult(Result):
    """`was` is the former name of the container."""

    id: str
    name: str
    was: str


class UpdateParams(OfContainer):
    """At least one value is required. Omitted values stay as they are."""

    restart: str | None = Field(None, description=_POLICIES)
    memory: Text | None = Field(None, description="Memory limit: 64m, 1g, or bytes; 0 for none")
    cpus: Annotated[float, Field(ge=0)] | None = Field(None, description="CPU limit, such as 1.5; 0 for none")
    pids: Annotated[int, Field(ge=-1)] | None = Field(None, description="Process limit; -1 for none")

    @field_validator("restart", mode="before")
    @classmethod
    def _restart(cls, value: Any) -> Any:
        return None if value is None else CreateParams._restart(value)

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        return CreateParams._memory(value)

    @model_validator(mode="after")
    def _something(self) -> UpdateParams:
        if self.restart is None and self.memory is None and self.cpus is None and self.pids is None:
            raise ValueError("give at least one of restart, memory, cpus and pids")
        return self


class UpdateResult(Result):
    """The values after the step; `memory` is in bytes. For no limit, `memory` and `cpus` are 0, and `pids` is null."""

    id: str
    name: str
    restart: str
    memory: int = 0
    cpus: float = 0.0
    pids: int | None = None


_CONVERGES: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}
_MISSING = "if the container does not exist"
_ONE_OFF = "belongs to a step `docker.run.execute`"

CREATE = docker_operation(
    "create.execute",
    CreateParams,
    CreateResult,
    "Create a container without starting it",
    About(
        changed="the step created the container",
        undo="removes the container and the volumes that the step created; if the container was started since, its "
        "volumes stay",
        duplicate="finds the container by its labels",
        fails="if the image or the path of a bind does not exist, or a container with other parameters has the name",
    ),
    secrets=frozenset({"env"}),
    **_CONVERGES,
)
START = docker_operation(
    "start.execute",
    StartParams,
    ContainerResult,
    "Start a container",
    About(
        changed="the container was not running",
        undo="stops the container if it did not run before the step",
        duplicate="does not start a container again that was started since the step began",
        fails=f"{_MISSING}, is paused, or {_ONE_OFF}",
    ),
    **_CONVERGES,
)
STOP = docker_operation(
    "stop.execute",
    StopParams,
    StopResult,
    "Stop a container",
    About(
        changed="the container was running",
        undo="starts the container if it ran before the step, and pauses it if it was paused",
        duplicate="finds the container stopped, or stops it",
        fails=f"{_MISSING}, or was created with --rm",
    ),
    **_CONVERGES,
)
RESTART = docker_operation(
    "restart.execute",
    RestartParams,
    ContainerResult,
    "Stop a container and start it again",
    About(
        changed="always",
        undo="stops the container if it did not run before the step; starts it if it ran before and does not run now",
        duplicate="does not restart a container that was started since the step began",
        fails=f"{_MISSING}, is paused, was created with --rm, or {_ONE_OFF}",
    ),
    kind=Kind.ACTS,
    undo=Undo.FULL,
)
REMOVE = docker_operation(
    "remove.execute",
    RemoveParams,
    RemoveResult,
    "Remove a container",
    About(
        changed="the container existed",
        undo="renames the container back, and starts it if it ran; fails if another container has the name",
        duplicate="finds the container renamed, or renames it",
        fails="if the container runs without `force`, or was created with --rm",
    ),
    **_CONVERGES,
)
RENAME = docker_operation(
    "rename.execute",
    RenameParams,
    RenameResult,
    "Rename a container",
    About(
        changed="the name differed",
        undo="restores the old name; fails if another container has that name",
        duplicate="finds the container renamed, or renames it",
        fails=f"{_MISSING}, or another container has the new name",
    ),
    **_CONVERGES,
)
UPDATE = docker_operation(
    "update.execute",
    UpdateParams,
    UpdateResult,
    "Change the restart policy and the limits of a container, without a restart",
    About(
        changed="one of the given values differed",
        undo="restores the former values; fails if one was changed since",
        duplicate="changes the values that still differ",
        fails=f"{_MISSING}, or the engine does not apply a value",
    ),
    **_CONVERGES,
)
