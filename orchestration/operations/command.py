"""Programs and shell commands, on the worker's host or inside a container."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, About, Kind, Operation, Params, Result, Undo, register

OkCodes = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)]
#: The exit codes with which a program or container succeeds.
OK_CODES: Any = Field([0], description="Exit codes of success")


class CommandParams(Params):
    """A program with its environment and limits."""

    cwd: str | None = Field(None, description="Working directory")
    env: dict[str, str] = Field(
        {},
        description="Environment variables, in addition to LONGSHORE_RUN_ID, LONGSHORE_STEP and LONGSHORE_ATTEMPT",
    )
    stdin: str | None = Field(None, description="Text for standard input")
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="Time limit, after which the program gets TERM; by default that of the step"
    )
    grace: Duration = Field(10.0, description="Time between TERM and KILL")
    ok_codes: OkCodes = OK_CODES
    changes: bool = Field(default=True, description="Set to false if the command changes nothing, and needs no undo")
    creates: str | None = Field(None, description="A path; if the path exists, the command does not run")
    unless: str | list[str] | None = Field(
        None,
        description="A test, as arguments or a line for /bin/sh; if the test exits with 0, the command does not run",
    )


class ExecParams(CommandParams):
    """On the host, the program inherits only PATH, HOME, USER, LOGNAME, LANG, LC_ALL, TZ and TMPDIR from the worker.
    LONGSHORE_ALLOWED_ENVIRONMENT may limit the names in `env`.
    """

    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]


class ShellParams(CommandParams):
    """On the host, the command inherits only PATH, HOME, USER, LOGNAME, LANG, LC_ALL, TZ and TMPDIR from the worker.
    LONGSHORE_ALLOWED_ENVIRONMENT may limit the names in `env`.
    """

    command: Annotated[str, Field(min_length=1, description="The command line")]


class CommandResult(Result):
    """`stdout` and `stderr` have the last 64 KiB; if a stream was longer, `truncated` is true. If the command did not
    run, `skipped` has the reason.
    """

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    duration_ms: int = 0
    truncated: bool = False
    skipped: str | None = None


def is_read_only_command(params: dict[str, Any]) -> bool:
    return params.get("changes") is False


def repeatable(params: dict[str, Any]) -> bool:
    return is_read_only_command(params) or bool(params.get("creates")) or bool(params.get("unless"))


COMMAND_ABOUT = About(
    changed="the command ran, unless `changes` is false",
    undo="none; give the step an `undo` in the plan",
    duplicate="after a lost attempt, the command runs again only with `creates`, `unless` or `changes: false`; "
    "otherwise, the step is unknown",
    fails="if the program cannot start, exceeds `timeout`, or exits with a code outside of `ok_codes`",
    dry_run="shows the command, and whether `creates` prevents the command",
)


def _command(name: str, params: type[CommandParams], summary: str) -> Operation:
    return register(
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


EXEC = _command("command.exec.execute", ExecParams, "Run a program with an argument list, without a shell")
SHELL = _command("command.shell.execute", ShellParams, "Run a command line with /bin/sh")
