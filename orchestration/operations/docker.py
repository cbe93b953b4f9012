"""Containers of a Docker engine, one at a time."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from longshore.orchestration.durations import Duration
from longshore.orchestration.operations.base import Kind, Operation, Params, Result, Undo, register

_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)b?", re.IGNORECASE)
_PORT = re.compile(
    r"(?:(?:(?P<host>\[[0-9a-fA-F:]+\]|[0-9.]+):)?(?P<outer>\d*):)?(?P<inner>\d+)(?:/(?P<protocol>tcp|udp|sctp))?"
)
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(?::\d+)?")


def _is_template(text: str) -> bool:
    return "{{" in text


def _text(value: Any) -> Any:
    """Numbers are welcome where the engine wants text; truth values are not: `yes` or `true`?"""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is a truth value: put it in quotes")
    return str(value) if isinstance(value, int | float) else value


def _container(value: str) -> str:
    if not _is_template(value) and not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is neither a container's name nor its id")
    return value.removeprefix("/")


def parse_size(value: Any) -> int:
    """Bytes, from a number or from `512k`, `64m`, `1.5g`. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a size (64m, 1g, or bytes)")
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not a size (64m, 1g, or bytes)")
    return int(float(match[1]) * 1024 ** "bkmg".index(match[2].lower() or "b"))


Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": ["string", "number"]})]
ContainerName = Annotated[str, Field(min_length=1), BeforeValidator(_text)]


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
        if self.source is None or _is_template(self.source):
            return self
        if self.type == "bind" and not self.source.startswith("/"):
            raise ValueError(f"the path {self.source!r} is not absolute")
        if self.type == "volume" and not _NAME.fullmatch(self.source):
            raise ValueError(f"{self.source!r} is neither an absolute path nor a volume's name")
        return self


def _split(text: str) -> list[str]:
    """At the colons, but not at those inside a template."""
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


class _Target(Params):
    #: Name or id.
    container: ContainerName

    @field_validator("container")
    @classmethod
    def _valid(cls, value: str) -> str:
        return _container(value)


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
    log: Log = Log()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return None if value is None else _container(value)

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
            if _is_template(text):
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
        if not isinstance(text, str) or not (_is_template(text) or _RESTART.fullmatch(text)):
            raise ValueError(f"{value!r} is not no, always, unless-stopped or on-failure[:times]")
        return text

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None and not _is_template(value):
            parse_size(value)
        return value


class RunParams(CreateParams):
    """A container that does one thing and ends; the step's timeout bounds it.

    The container is made once, started once and awaited. `ok_codes` are the exit codes of success.
    The ended container stays, labelled `longshore.kind=run`, until its undo or gc: it is the proof
    that it ran, by which a second delivery knows not to run it again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    restart: Literal["no"] = "no"
    #: Between TERM and KILL, when it is cancelled or runs out of its time.
    grace: Duration = 10.0


class StartParams(_Target):
    """A container that was made before."""


class StopParams(_Target):
    """`grace` lies between TERM and KILL; without it the container's own counts, else 10 seconds."""

    grace: Duration | None = None


class RemoveParams(_Target):
    """A running container is only removed with `force`, which stops it first."""

    force: bool = False
    grace: Duration | None = None


class InspectParams(_Target):
    """A container that is not there is an answer (`exists: false`), not an error."""


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


class InspectResult(Result):
    """The normal form; `restarting` containers count as running in the engine's own words."""

    exists: bool
    id: str | None = None
    name: str | None = None
    status: str | None = None
    running: bool = False
    health: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: str | None = None
    finished_at: str | None = None
    restart_count: int = 0
    image: str | None = None
    image_id: str | None = None
    config_hash: str | None = None
    labels: dict[str, str] = {}


class RunResult(Result):
    """Output is kept up to 64 KiB a stream, its end; `truncated` says when there was more."""

    id: str
    name: str
    image_id: str
    exit_code: int
    oom_killed: bool = False
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    started_at: str | None = None
    finished_at: str | None = None


def _operation(verb: str, params: type[Params], result: type[Result], summary: str, **promises: Any) -> Operation:
    return register(
        Operation(name=f"docker.{verb}", params=params, result=result, queue="docker", summary=summary, **promises)
    )


_CONVERGES: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}

CREATE = _operation("create.execute", CreateParams, CreateResult, "Make a container, not started", **_CONVERGES)
START = _operation("start.execute", StartParams, ContainerResult, "Start a container", **_CONVERGES)
STOP = _operation("stop.execute", StopParams, StopResult, "Stop a container", **_CONVERGES)
REMOVE = _operation("remove.execute", RemoveParams, RemoveResult, "Remove a container", **_CONVERGES)
INSPECT = _operation(
    "inspect.get", InspectParams, InspectResult, "Look at a container", kind=Kind.READ_ONLY, undo=Undo.NONE
)
RUN = _operation(
    "run.execute",
    RunParams,
    RunResult,
    "Run a container to its end, once",
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
)
