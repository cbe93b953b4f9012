"""Programs and shell commands, on the worker's host or inside a container."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, About, Kind, Operation, Params, Result, Undo, register


class CommandParams(Params):
    """A program that ends with one of `ok_codes`; any other exit code is a failure."""

    cwd: str | None = Field(None, description="Where it is run")
    env: dict[str, str] = Field(
        {},
        description="Given, not inherited: it sees these and PATH, HOME, LANG, USER, TZ, TMPDIR, LONGSHORE_*. Where a "
        "worker runs only some programs, it takes only some names",
    )
    stdin: str | None = Field(None, description="Text for its standard input")
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="Then it gets TERM, grace and KILL, its children too; the step's own time if left out"
    )
    grace: Duration = Field(10.0, description="Between TERM and KILL")
    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    changes: bool = Field(default=True, description="false: it only looks, and has nothing to take back")
    creates: str | None = Field(None, description="A path; if it is there, nothing is run")
    unless: str | list[str] | None = Field(None, description="A command; if it ends with 0, nothing is run")


class ExecParams(CommandParams):
    """An argument list; no shell sees it."""

    argv: Annotated[list[str], Field(min_length=1, description="The program and its arguments")]


class ShellParams(CommandParams):
    """Text for `/bin/sh -c`."""

    command: Annotated[str, Field(min_length=1)]


class CommandResult(Result):
    """Output is kept up to 64 KiB a stream, its end; `truncated` says when there was more."""

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
    changed="it was run, unless the step says changes: false; not where creates or unless held it back",
    undo="none of its own: give the step one",
    duplicate="one at a time by its receipt; one that was lost is unknown, and run again only with creates, unless "
    "or changes: false",
    dry_run="says what would be run, and whether creates holds it back",
    retried="none, unless the plan says so; then an exit code as well",
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
SHELL = _command("command.shell.execute", ShellParams, "Run a command line by /bin/sh")
