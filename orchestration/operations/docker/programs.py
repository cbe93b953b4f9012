"""Programs in containers: one-off containers, and programs inside running containers."""

from __future__ import annotations

import posixpath
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

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
    """A one-off container, bounded by the step's timeout.

    The container is created once, started once and awaited. `ok_codes` are the exit codes of success. The exited
    container, labelled `longshore.kind=run`, stays until the end of the run, so that a duplicate delivery detects it
    and does not run it again. `docker inspect` shows `env`, and does not show `files`, which are read-only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    restart: Literal["no"] = "no"
    #: Between TERM and KILL after a cancellation or timeout.
    grace: Duration = 10.0
    keep_failed: bool = Field(default=False, description="Keep a failed container after the run, until its undo or gc")
    files: dict[str, str] = Field({}, description="Files to create in the container before its start, by absolute path")

    @field_validator("files")
    @classmethod
    def _absolute(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            if "{{" not in path and (posixpath.normpath(path) != path or not path.startswith("/") or path == "/"):
                raise ValueError(f"{path!r} is not the absolute path of a file")
        return value


class RunResult(Result):
    """The last 64 KiB of each output stream; `truncated` if there was more."""

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
    """A program inside a running container, executed without a shell.

    In a container without /bin/sh, a cancelled or timed out program cannot be terminated from outside.
    """

    container: Annotated[ContainerName, Field(description="Name or id")]
    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]
    user: str | None = Field(None, description="user[:group] inside; by default that of the container")


RUN = docker_operation(
    "run.execute",
    RunParams,
    RunResult,
    "Run a container to completion, once",
    About(
        changed="the container ran",
        undo="stops and removes the container; its effects elsewhere stay",
        duplicate="finds the container by its label, and waits for it or reads its exit code",
        dry_run="shows the container, and whether image and name are available",
        retried="an unreachable or busy engine; an exit code only with a retry policy of the plan",
    ),
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env", "files"}),
)
EXEC = docker_operation(
    "exec.execute",
    DockerExecParams,
    CommandResult,
    "Run a program inside a running container",
    COMMAND_ABOUT,
    kind=Kind.ACTS,
    undo=Undo.NONE,
    retry=NO_RETRY,
    repeatable=repeatable,
    is_read_only_command=is_read_only_command,
    secrets=frozenset({"env", "stdin"}),
)
