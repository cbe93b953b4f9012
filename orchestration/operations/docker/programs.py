"""Programs in containers: one-off containers, and programs inside running containers."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, About, Kind, Result, Undo
from longshore.orchestration.operations.command import (
    COMMAND_ABOUT,
    OK_CODES,
    CommandParams,
    CommandResult,
    OkCodes,
    is_read_only_command,
    repeatable,
)
from longshore.orchestration.operations.docker.containers import CreateParams
from longshore.orchestration.operations.docker.fields import ContainerName, docker_operation

KEEP_FAILED = "Keep a failed container after the end of the run, until the undo of the step or `longshore gc`"
FAILED_RUN = "or the container runs out of memory or exits with a code outside of `ok_codes`"


class RunParams(CreateParams):
    """The step waits for the end of the container. The exited container stays until the end of the run, so that a
    second attempt finds the container.

    Pass secrets in `files`, because `docker inspect` shows the values of `env`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    ok_codes: OkCodes = OK_CODES
    restart: Literal["no"] = Field("no", description="Only no: the container runs once")
    grace: Duration = Field(10.0, description="Time between TERM and KILL")
    keep_failed: bool = Field(default=False, description=KEEP_FAILED)
    files: dict[str, str] = Field(
        {}, description="Read-only files for the container: each absolute path with its content"
    )

    @field_validator("files")
    @classmethod
    def _absolute(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            if "{{" not in path and (posixpath.normpath(path) != path or not path.startswith("/") or path == "/"):
                raise ValueError(f"{path!r} is not the absolute path of a file")
        return value


class RunResult(Result):
    """`stdout` and `stderr` have the last 64 KiB; if a stream was longer, `truncated` is true."""

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
    """If the container has no /bin/sh, Longshore cannot end a program that is cancelled or exceeds its time limit."""

    container: Annotated[ContainerName, Field(description="Name or id")]
    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]
    user: str | None = Field(None, description="user[:group]; by default that of the container")


RUN_ABOUT = About(
    changed="the container was started",
    undo="stops and removes the container; the effects of its program stay",
    duplicate="starts no second container: waits for the first one, or reads its exit code",
    fails=f"if the image is not on the host, another container has the name, {FAILED_RUN}",
    dry_run="shows the container, and whether image and name are available",
)
RUN = docker_operation(
    "run.execute",
    RunParams,
    RunResult,
    "Run a container to completion, once",
    RUN_ABOUT,
    kind=Kind.ACTS,
    undo=Undo.PARTIAL,
    secrets=frozenset({"env", "files"}),
)
EXEC = docker_operation(
    "exec.execute",
    DockerExecParams,
    CommandResult,
    "Run a program inside a running container",
    replace(COMMAND_ABOUT, fails=f"if the container does not run; {COMMAND_ABOUT.fails}"),
    kind=Kind.ACTS,
    undo=Undo.NONE,
    retry=NO_RETRY,
    repeatable=repeatable,
    is_read_only_command=is_read_only_command,
    secrets=frozenset({"env", "stdin"}),
)
