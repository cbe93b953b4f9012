"""What only looks at containers: lists them, shows one, reads what it said, waits until it is well."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import OfContainer, docker_operation


class ListParams(Params):
    """Which containers; all that are left out do not count."""

    state: Literal["running", "stopped", "all"] = Field(
        "running", description="stopped: those that were made and do not run"
    )
    name: str | None = Field(None, description="The whole name")
    label: dict[str, str | None] = Field({}, description="Labels that it must have; null for any value")
    project: str | None = Field(None, description="A Compose project")
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(1000, description="At most so many, the newest first")


class ListResult(Result):
    """Each container as `id, name, image, image_id, state, status, labels, created` (seconds since 1970)."""

    containers: list[dict[str, Any]] = []
    #: How many there were; more than are listed where there is a limit.
    count: int = 0


class InspectParams(OfContainer):
    """A container that is not there is an answer (`exists: false`), not an error."""


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
    #: The engine's own words, without the environment, which may hold secrets.
    full: dict[str, Any] = {}


class LogsParams(OfContainer):
    """The end of what a container said."""

    tail: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The last so many lines, of both streams together; all if left out"
    )
    since: Duration | None = Field(None, description="Only what it said in so long a time before now")
    max_bytes: Annotated[int, Field(ge=1, le=1024 * 1024)] = Field(65536, description="Kept of each stream, its end")


class LogsResult(Result):
    """`truncated` says when there was more than `max_bytes`."""

    stdout: str = ""
    stderr: str = ""
    truncated: bool = False


class WaitParams(OfContainer):
    """Until it is well, or has ended, by `healthy_deadline`.

    `healthy`: its health check says so; without one it has run for `min_healthy_time` without a restart.
    `running`: it has run for `min_healthy_time` without a restart, whatever its health check says.
    `exited`: it has ended, with one of `ok_codes`.
    """

    until: Literal["healthy", "running", "exited"] = "healthy"
    healthy_deadline: Duration = Field(60.0, description="The longest wait; then the step fails")
    min_healthy_time: Duration = Field(5.0, description="So long it must have run without a restart")
    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]


class WaitResult(Result):
    """How it stands; `waited_s` in seconds."""

    id: str
    name: str
    status: str
    health: str | None = None
    exit_code: int | None = None
    restart_count: int = 0
    waited_s: float = 0.0


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}

LIST = docker_operation("list.get", ListParams, ListResult, "List containers", READ_ONLY, **_LOOKS)
INSPECT = docker_operation("inspect.get", InspectParams, InspectResult, "Look at a container", READ_ONLY, **_LOOKS)
LOGS = docker_operation("logs.get", LogsParams, LogsResult, "Read what a container said", READ_ONLY, **_LOOKS)
WAIT = docker_operation(
    "wait.get",
    WaitParams,
    WaitResult,
    "Wait until a container is healthy, runs steadily, or has ended",
    About(
        changed=READ_ONLY.changed,
        undo=READ_ONLY.undo,
        duplicate="waits again",
        dry_run="says how the container stands now",
        retried=f"{About('', '', '').retried}; a container that is ill or late is a failure",
    ),
    **_LOOKS,
)
