"""The port between the operations and a Docker engine: its calls, its records and its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from longshore.orchestration.errors import OperationError, Transient

#: The engine's time for "never".
_NEVER = "0001-01-01"
#: Permanent errors that the engine reports with status 500.
_PERMANENT = (
    "port is already allocated",
    "address already in use",
    "no basic auth credentials",
    "unauthorized",
    "denied",
    "no matching manifest",
    "no space left",
    "runtime create failed",
    "invalid",
    "not a directory",
    "is not supported",
)


class NotThere(OperationError):
    """404: the object, or an object that it needs, does not exist."""

    code = "engine-not-found"


class Conflict(OperationError):
    """409: the name is in use, or the state forbids the call."""

    code = "engine-conflict"


class EngineTimeout(Transient):
    """The engine did not respond in time. The call may still be completed."""

    code = "engine-timeout"


@dataclass(frozen=True)
class Container:
    """The state of a container, as far as operations need it."""

    id: str
    name: str
    image: str
    image_id: str
    labels: dict[str, str] = field(default_factory=dict)
    status: str = ""
    running: bool = False
    paused: bool = False
    restarting: bool = False
    health: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    restart_count: int = 0
    restart_policy: dict[str, Any] = field(default_factory=dict)
    auto_remove: bool = False
    stop_timeout: int | None = None
    networks: tuple[str, ...] = ()
    #: `container:<id>` for a container in the network of another.
    network_mode: str = ""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Container:
        state, config, host = raw["State"], raw["Config"], raw["HostConfig"]
        health = (state.get("Health") or {}).get("Status")
        return cls(
            id=raw["Id"],
            name=raw["Name"].removeprefix("/"),
            image=config["Image"],
            image_id=raw["Image"],
            labels=dict(config.get("Labels") or {}),
            status=state["Status"],
            running=bool(state["Running"]),
            paused=bool(state["Paused"]),
            restarting=bool(state["Restarting"]),
            health=None if health == "none" else health,
            exit_code=state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]),
            error=state["Error"],
            started_at=_time(state["StartedAt"]),
            finished_at=_time(state["FinishedAt"]),
            restart_count=raw.get("RestartCount", 0),
            restart_policy=dict(host.get("RestartPolicy") or {"Name": "no", "MaximumRetryCount": 0}),
            auto_remove=bool(host.get("AutoRemove")),
            stop_timeout=config.get("StopTimeout"),
            networks=tuple((raw.get("NetworkSettings") or {}).get("Networks") or ()),
            network_mode=str(host.get("NetworkMode") or ""),
        )


@dataclass(frozen=True)
class Output:
    """The end of a container's output."""

    stdout: str = ""
    stderr: str = ""
    truncated: bool = False


@dataclass(frozen=True)
class Image:
    """The properties of an image, as far as operations need them."""

    id: str
    tags: tuple[str, ...] = ()
    #: `repository@sha256:…`, from the registries that it was pulled from or pushed to.
    digests: tuple[str, ...] = ()
    size: int = 0
    architecture: str = ""
    os: str = ""

    def is_at(self, digest: str) -> bool:
        """Reports whether the digest identifies this image at a registry."""
        return any(text.endswith(f"@{digest}") for text in self.digests)


@dataclass(frozen=True)
class Execution:
    """The state of a program inside a container."""

    running: bool
    exit_code: int | None
    #: In the PID namespace of the engine's host; 0 after the end.
    pid: int = 0


@dataclass(frozen=True)
class Login:
    """The credentials for a registry."""

    username: str
    password: str = field(repr=False)


#: Receives output as it arrives: the stream (1, 2) and its bytes.
OnOutput = Callable[[int, bytes], None]
#: Called about five times a second; an error that it raises ends the call.
Check = Callable[[], None]


class Engine(Protocol):
    """The calls that operations make to an engine. A read of a missing object returns None or False, and never raises.

    `check` ends the calls that may take long (pull, push, build, start_exec).
    """

    url: str

    def info(self) -> dict[str, Any]: ...
    def inspect(self, container: str) -> Container | None: ...
    def raw(self, container: str) -> dict[str, Any] | None: ...
    def rows(self, filters: Mapping[str, list[str]], *, all_of_them: bool) -> list[dict[str, Any]]: ...
    def containers(self, labels: Mapping[str, str]) -> list[Container]: ...
    def update(self, container: str, body: Mapping[str, Any]) -> None: ...
    def create_exec(self, container: str, body: Mapping[str, Any]) -> str: ...
    def start_exec(self, execution: str, stdin: bytes | None, on_output: OnOutput, check: Check) -> None: ...
    def execution(self, execution: str) -> Execution | None: ...
    def has_path(self, container: str, path: str) -> bool: ...
    def read_archive(self, container: str, path: str, limit: int) -> bytes | None: ...
    def write_archive(self, container: str, folder: str, archive: bytes) -> None: ...
    def image(self, ref: str) -> Image | None: ...
    def images(self) -> list[Image]: ...
    def tagged_at(self, image_id: str) -> str: ...
    def events(self, names: Sequence[str], since: float, until: float) -> list[dict[str, Any]]: ...
    def pull(self, ref: str, *, login: Login | None, platform: str | None, check: Check) -> None: ...
    def push(self, ref: str, *, login: Login | None, check: Check) -> None: ...
    def build(
        self, context: BinaryIO, params: Mapping[str, Any], on_text: Callable[[str], None], check: Check
    ) -> str: ...
    def remote_digest(self, ref: str, *, login: Login | None) -> str: ...
    def network(self, name: str) -> dict[str, Any] | None: ...
    def create_network(self, body: Mapping[str, Any]) -> str: ...
    def volume(self, name: str) -> dict[str, Any] | None: ...
    def create_volume(self, body: Mapping[str, Any]) -> None: ...
    def create(self, name: str, body: Mapping[str, Any]) -> tuple[str, list[str]]: ...
    def start(self, container: str) -> bool: ...
    def stop(self, container: str, grace: float | None = None) -> bool: ...
    def pause(self, container: str) -> None: ...
    def rename(self, container: str, name: str) -> None: ...
    def set_restart(self, container: str, policy: Mapping[str, Any]) -> None: ...
    def remove(self, container: str) -> bool: ...
    def logs(
        self,
        container: str,
        limit: int,
        *,
        tail: int | None = None,
        since: float | None = None,
        redact: Callable[[str], str] = lambda text: text,
    ) -> Output: ...
    def follow(
        self, container: str, on_output: OnOutput, ended: Callable[[], bool], *, since: float | None = None
    ) -> None: ...
    def image_id(self, ref: str) -> str | None: ...
    def tag(self, image_id: str, ref: str) -> None: ...
    def untag(self, ref: str) -> bool: ...
    def networks(self, labels: Mapping[str, str]) -> dict[str, str]: ...
    def connect(
        self, network: str, container: str, aliases: list[str], endpoint: Mapping[str, Any] | None = None
    ) -> None: ...
    def remove_network(self, network: str) -> bool: ...
    def volumes(self, labels: Mapping[str, str]) -> list[str]: ...
    def labelled_volumes(self, label: str) -> dict[str, dict[str, str]]: ...
    def remove_volume(self, name: str) -> bool: ...
    def close(self) -> None: ...


def _time(text: str) -> str | None:
    return None if text.startswith(_NEVER) else text


def seconds_of(time: str) -> float:
    """Seconds since 1970 of a time in the engine's format, which has nanoseconds."""
    return datetime.fromisoformat(time).timestamp()


def classified(status: int, message: str) -> OperationError:
    """The error for an engine's response: Transient if a retry may succeed, otherwise permanent."""
    low = message.lower()
    if status == 404:
        return NotThere(message)
    if status == 409:
        return Transient(message) if "already in progress" in low else Conflict(message)
    if status >= 500 and not any(text in low for text in _PERMANENT):
        return Transient(message)
    return OperationError(message)


#: Transient errors of a registry before or during a download.
_PASSING = (
    "connection refused",
    "connection reset",
    "no such host",
    "timeout",
    "toomanyrequests",
    "too many requests",
    "unexpected eof",
    "eof",
    "temporary failure",
    "service unavailable",
    "blob unknown",
    "unknown blob",
)


def in_stream(message: str) -> OperationError:
    """The error for a message in a stream with a successful status: most come from the registry and are transient."""
    low = message.lower()
    if any(text in low for text in ("manifest unknown", "not found", "does not exist", "unauthorized", "denied")):
        return OperationError(message)
    return Transient(message) if any(text in low for text in _PASSING) else OperationError(message)
