"""Containers of a Docker engine, one at a time: made, started, stopped, changed, removed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
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
#: Characters of a volume as one text: two paths of the longest kind.
_LONGEST = 2 * 4096 + 16
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(?::\d+)?")


class Mount(Params):
    """What is mounted where. `source` is an absolute path (bind) or a volume's name; tmpfs has none."""

    target: Annotated[str, Field(pattern=r"^(/|\{\{)")]
    source: str | None = None
    type: Literal["bind", "volume", "tmpfs"] = "volume"
    read_only: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """`source:target[:ro|rw]`, as on Docker's command line, without its anonymous volumes."""
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
            raise ValueError(f"{self.source!r} is neither an absolute path nor a volume's name")
        return self


def _split(text: str) -> list[str]:
    """At the colons, but not at those inside a template."""
    if len(text) > _LONGEST:  # each colon looks for the end of a template
        raise ValueError(f"{len(text)} characters are too long for it")
    return re.split(r":(?![^{]*\}\})", text)


class Network(Params):
    """A network to be in, and the names to be found by there."""

    name: Annotated[str, Field(min_length=1)]
    aliases: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Log(Params):
    """Where output goes. Without a limit, json-file fills the disk."""

    driver: str = "json-file"
    max_size: str | None = "10m"
    max_file: Annotated[int, Field(ge=1)] | None = 3


class Health(Params):
    """How the engine finds out whether it is well: a program inside that ends with 0."""

    test: Annotated[list[str], Field(min_length=1)]
    interval: Duration = 30.0
    timeout: Duration = 30.0
    retries: Annotated[int, Field(ge=1)] = 3
    start_period: Duration = 0.0


class CreateParams(Params):
    """A container's making. Its image must be on the host.

    Without `name` it is called after the run and the step. A bind's path must exist; a volume that
    does not is made. `memory` takes 64m, 1g or bytes, `cpus` a number such as 1.5.
    """

    image: Annotated[str, Field(min_length=1)]
    name: str | None = None
    command: list[Text] | None = None
    entrypoint: list[Text] | None = None
    env: dict[str, Text] = {}
    labels: dict[str, Text] = {}
    volumes: list[Mount] = []
    #: The first is joined at creation; the engine's default network if there is none.
    networks: list[Network] = []
    #: `80`, `8080:80`, `127.0.0.1:8080:80`, each with `/udp` if need be.
    ports: list[Text] = []
    user: Text | None = None
    workdir: str | None = None
    hostname: str | None = None
    restart: str = "no"
    #: A small init as process 1, so that TERM reaches a program that does not handle it.
    init: bool = True
    memory: Text | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    dns: list[str] = []
    health: Health | None = None
    log: Log = Log()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return None if value is None else container_name(value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        own = [key for key in value if key.startswith("longshore.")]
        if own:
            raise ValueError(f"labels that begin with longshore. are set by Longshore: {own[0]!r}")
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
        text = "no" if value is False else value  # YAML reads a bare no as false
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
    """A container that was made before."""


class StopParams(OfContainer):
    """`grace` lies between TERM and KILL; without it the container's own counts, else 10 seconds."""

    grace: Duration | None = None


class RemoveParams(OfContainer):
    """A running container is only removed with `force`, which stops it first."""

    force: bool = False
    grace: Duration | None = None


class ContainerResult(Result):
    """The container as it is now."""

    id: str
    name: str
    status: str | None = None
    started_at: str | None = None


class CreateResult(Result):
    """What was made. `attached` says that an earlier attempt of this step had made it."""

    id: str
    name: str
    image_id: str
    attached: bool = False
    warnings: list[str] = []


class StopResult(ContainerResult):
    """`killed`: it did not end on TERM within the grace."""

    exit_code: int | None = None
    killed: bool = False


class RemoveResult(Result):
    """`kept_as` is the name it is kept under until gc, so that the removal can be undone."""

    id: str | None = None
    name: str | None = None
    kept_as: str | None = None


class RestartParams(OfContainer):
    """Stopped and started again, whatever it does; one that does not run is started.

    What was changed in a project's files is not applied by this: that is `compose.up.execute`.
    """

    grace: Duration | None = Field(
        None, description="Between TERM and KILL; the container's own if left out, else 10 s"
    )


class RenameParams(OfContainer):
    """A container keeps its id; its networks know it by the new name from then on."""

    name: str = Field(description="The new name")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return container_name(value)


class RenameResult(Result):
    """Which container it is, and what it was called."""

    id: str
    name: str
    was: str


class UpdateParams(OfContainer):
    """What can be changed while it runs; what is left out stays as it is."""

    restart: str | None = Field(None, description="no, always, unless-stopped or on-failure[:times]")
    memory: Text | None = Field(None, description="The most it may use: 64m, 1g, or bytes; 0 for no limit")
    cpus: Annotated[float, Field(ge=0)] | None = Field(
        None, description="How many it may use, such as 1.5; 0: no limit"
    )
    pids: Annotated[int, Field(ge=-1)] | None = Field(None, description="How many processes; -1 for no limit")

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
    """What holds now; `memory` in bytes."""

    id: str
    name: str
    restart: str
    memory: int = 0
    cpus: float = 0.0
    pids: int | None = None


_CONVERGES: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}
_FOUND_AS_WANTED = "finds it as wanted"

CREATE = docker_operation(
    "create.execute",
    CreateParams,
    CreateResult,
    "Make a container, not started",
    About(
        changed="the container was made by this step",
        undo="removes what this step has made; volumes in which a program may have written stay",
        duplicate="finds the container by its label: the run, the step, and a digest of what it is made from",
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
        changed="it did not run",
        undo="stops it, if it did not run before",
        duplicate="it has been started since the step began, even if it has ended already",
    ),
    **_CONVERGES,
)
STOP = docker_operation(
    "stop.execute",
    StopParams,
    StopResult,
    "Stop a container",
    About(
        changed="it ran",
        undo="starts it, and pauses it if it was paused; only if it ran before",
        duplicate=_FOUND_AS_WANTED,
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
        undo="stops it, if it did not run before; starts it, if the restart left it stopped",
        duplicate="it has been started since the step began",
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
        changed="it was there",
        undo="gives it its name back and starts it: until gc it is kept, stopped, under another name",
        duplicate=_FOUND_AS_WANTED,
    ),
    **_CONVERGES,
)
RENAME = docker_operation(
    "rename.execute",
    RenameParams,
    RenameResult,
    "Give a container another name",
    About(
        changed="it had another name",
        undo="gives it its old name back; refuses where another container has it now",
        duplicate=_FOUND_AS_WANTED,
    ),
    **_CONVERGES,
)
UPDATE = docker_operation(
    "update.execute",
    UpdateParams,
    UpdateResult,
    "Change a container's restart policy and limits while it runs",
    About(
        changed="one of the values that are given was another",
        undo="brings the former values back; refuses where somebody else has changed them since",
        duplicate=_FOUND_AS_WANTED,
    ),
    **_CONVERGES,
)
