"""Programs in containers: one that does one thing and ends, and one inside a container that runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, About, Kind, Result, Undo
from longshore.orchestration.operations.command import (
    COMMAND_ABOUT,
    CommandParams,
    CommandResult,
    is_read_only_command,
    repeatable,
)
from longshore.orchestration.operations.docker.containers import CreateParams
from longshore.orchestration.operations.docker.fields import ContainerName, docker_operation


class RunParams(CreateParams):
    """A container that does one thing and ends; the step's timeout bounds it.

    The container is made once, started once and awaited. `ok_codes` are the exit codes of success.
    The ended container stays, labelled `longshore.kind=run`, until its undo or gc: it is the proof
    that it ran, by which a second delivery knows not to run it again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    restart: Literal["no"] = "no"
    #: Between TERM and KILL, when it is cancelled or runs out of its time.
    grace: Duration = 10.0


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


class DockerExecParams(CommandParams):
    """A program inside a container that runs; no shell sees its arguments.

    Where the container has no /bin/sh, a program that is cancelled or out of its time cannot be ended from outside.
    """

    container: Annotated[ContainerName, Field(description="Its name or id")]
    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]
    user: str | None = Field(None, description="user[:group] inside; the container's own if left out")


RUN = docker_operation(
    "run.execute",
    RunParams,
    RunResult,
    "Run a container to its end, once",
    About(
        changed="it ran",
        undo="stops and removes the container; what it did elsewhere stays done",
        duplicate="finds the container by its label, and waits for it or reads how it ended",
        dry_run="says what would be run, and whether image and name are to be had",
        retried="an engine that does not answer or is busy; an exit code only where the plan says so",
    ),
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env"}),
)
EXEC = docker_operation(
    "exec.execute",
    DockerExecParams,
    CommandResult,
    "Run a program inside a container that runs",
    COMMAND_ABOUT,
    kind=Kind.ACTS,
    undo=Undo.NONE,
    retry=NO_RETRY,
    repeatable=repeatable,
    is_read_only_command=is_read_only_command,
    secrets=frozenset({"env", "stdin"}),
)
