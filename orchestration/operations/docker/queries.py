"""Read-only container operations: list, inspect, logs and wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import READ_ONLY, Kind, Params, Result, Undo
from longshore.orchestration.operations.command import OK_CODES, OkCodes
from longshore.orchestration.operations.docker.fields import OfContainer, docker_operation


class ListParams(Params):
    """The list has the containers that meet all given conditions."""

    state: Literal["running", "stopped", "all"] = Field(
        "running", description="running: also paused and restarting containers; stopped: created or exited containers"
    )
    name: str | None = Field(None, description="Exact name")
    label: dict[str, str | None] = Field({}, description="Required labels; null for any value")
    project: str | None = Field(None, description="A Compose project")
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1000, description="Maximum number of containers, the newest first"
    )


class ListResult(Result):
    """Each container has `id`, `name`, `image`, `image_id`, `state`, `status`, `labels` and `created` (seconds since
    1970). `count` counts all matches, even beyond `limit`.
    """

    containers: list[dict[str, Any]] = []
    count: int = 0


class InspectParams(OfContainer):
    """If the container does not exist, the result has `exists: false`."""


class InspectResult(Result):
    """`running` is also true while the container is paused or restarts. `config_hash` is the configuration hash of
    Compose. `networks` has names of networks. `full` is the answer of the engine, without environment variables.
    """

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
    networks: list[str] = []
    #: The engine's own answer, without the environment, which may contain secrets.
    full: dict[str, Any] = {}


class LogsParams(OfContainer):
    """`tail`, `since` and `max_bytes` limit the output."""

    tail: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of last lines, of both streams together; all by default"
    )
    since: Duration | None = Field(None, description="Only output that is younger than this")
    max_bytes: Annotated[int, Field(ge=1, le=1024 * 1024)] = Field(65536, description="Bytes of each stream, at most")


class LogsResult(Result):
    """If a stream exceeded `max_bytes`, `truncated` is true."""

    stdout: str = ""
    stderr: str = ""
    truncated: bool = False


class WaitParams(OfContainer):
    """`running`: the container has run for `min_healthy_time` without a restart. `healthy`: the health check passes, or
    the container has none and is `running`. `exited`: the container has exited with one of `ok_codes`.
    """

    until: Literal["healthy", "running", "exited"] = Field("healthy", description="The state to wait for")
    healthy_deadline: Duration = Field(60.0, description="Longest wait")
    min_healthy_time: Duration = Field(5.0, description="Required time without a restart")
    ok_codes: OkCodes = OK_CODES


class WaitResult(Result):
    """The state of the container after the wait. `waited_s` is the duration of the wait in seconds."""

    id: str
    name: str
    status: str
    health: str | None = None
    exit_code: int | None = None
    restart_count: int = 0
    waited_s: float = 0.0


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}
_MISSING = "if the container does not exist"

LIST = docker_operation("list.get", ListParams, ListResult, "List containers", READ_ONLY, **_LOOKS)
INSPECT = docker_operation("inspect.get", InspectParams, InspectResult, "Inspect a container", READ_ONLY, **_LOOKS)
LOGS = docker_operation(
    "logs.get",
    LogsParams,
    LogsResult,
    "Read the end of the logs of a container",
    replace(READ_ONLY, fails=_MISSING),
    **_LOOKS,
)
WAIT = docker_operation(
    "wait.get",
    WaitParams,
    WaitResult,
    "Wait until a container is healthy, running or exited",
    replace(
        READ_ONLY,
        duplicate="waits again",
        fails=f"{_MISSING}, or does not reach the state within `healthy_deadline`; at once if the container can no "
        "longer reach the state",
        dry_run="shows the present state of the container",
    ),
    **_LOOKS,
)
