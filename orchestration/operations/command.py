"""Programs and shell commands, on the worker's host or inside a container."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, About, Kind, Operation, Params, Result, Undo, register


class CommandParams(Params):
    """A program with its environment and limits. An exit code outside of `ok_codes` is a failure."""

    cwd: str | None = Field(None, description="Working directory")
    env: dict[str, str] = Field(
        {},
        description="Environment, not inherited: these, PATH, HOME, LANG, USER, TZ, TMPDIR, LONGSHORE_*. The setting "
        "`allowed_environment` limits the names",
    )
    stdin: str | None = Field(None, description="Text for standard input")
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="Then TERM, grace and KILL for the process group; by default the step's timeout"
    )
    grace: Duration = Field(10.0, description="Between TERM and KILL")
    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    changes: bool = Field(default=True, description="false: the command only reads, and needs no undo")
    creates: str | None = Field(None, description="A path; if it exists, the command is not run")
    unless: str | list[str] | None = Field(None, description="A command; if it exits with 0, the command is not run")


class ExecParams(CommandParams):
    """An argument list, executed without a shell."""

    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]


class ShellParams(CommandParams):
    """A command line for `/bin/sh -c`."""

    command: Annotated[str, Field(min_length=1)]


class CommandResult(Result):
    """The last 64 KiB of each output stream; `truncated` if there was more."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    duration_ms: int = 0
    truncated: bool = False


def is_read_only_command(params: dict[str, Any]) -> bool:
    return params.get("changes") is False


def repeatable(params: dict[str, Any]) -> bool:
    return is_read_only_command(params) or bool(params.get("creates")) or bool(params.get("unless"))


COMMAND_ABOUT = About(
    changed="the command ran, and changes is not false",
    undo="none by itself: declare undo on the step",
    duplicate="one at a time by its receipt; a lost attempt is unknown, and retried only with creates, unless or "
    "changes: false",
    dry_run="shows the command, and whether creates skips it",
    retried="none, unless the plan has a retry policy; then exit codes too",
)


def _command(name: str, params: type[CommandParams], summary: str) -> Operation:
    return register(
        Operation(
            name=name,
            params=params,
            result=CommandResult,
            queue="command",
            kind=Kind.ACTS,
            undo=Undo.NONE,
            summary=summary,
            retry=NO_RETRY,
            repeatable=repeatable,
            is_read_only_command=is_read_only_command,
            secrets=frozenset({"env", "stdin"}),
            inside=True,
            about=COMMAND_ABOUT,
        )
    )


EXEC = _command("command.exec.execute", ExecParams, "Run a program with an argument list")
SHELL = _command("command.shell.execute", ShellParams, "Run a command line with /bin/sh")
