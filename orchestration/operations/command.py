"""Programs and shell commands on the worker's host."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, register


class _CommandParams(Params):
    """What both commands share.

    `changes: false` says that it only looks. `creates` names a path: if it is there, nothing is run.
    `unless` is a command: if it ends with 0, nothing is run.
    """

    cwd: str | None = None
    #: Given, not inherited: the command sees these and PATH, HOME, LANG, USER, TZ.
    env: dict[str, str] = {}
    #: Text for its standard input.
    stdin: str | None = None
    timeout: Duration | None = None
    ok_codes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)] = [0]
    changes: bool = True
    creates: str | None = None
    unless: str | list[str] | None = None


class ExecParams(_CommandParams):
    """An argument list; no shell sees it."""

    argv: Annotated[list[str], Field(min_length=1)]


class ShellParams(_CommandParams):
    """Text for `/bin/sh -c`."""

    command: Annotated[str, Field(min_length=1)]


class CommandResult(Result):
    """Output is kept up to 64 KiB a stream, its end; `truncated` says when there was more."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    duration_ms: int = 0
    truncated: bool = False


def _looks_only(params: dict[str, Any]) -> bool:
    return params.get("changes") is False


def _repeatable(params: dict[str, Any]) -> bool:
    return _looks_only(params) or bool(params.get("creates")) or bool(params.get("unless"))


EXEC = register(
    Operation(
        name="command.exec.execute",
        params=ExecParams,
        result=CommandResult,
        queue="command",
        kind=Kind.ACTS,
        undo=Undo.NONE,
        summary="Run a program with an argument list",
        retry=NO_RETRY,
        repeatable=_repeatable,
        looks_only=_looks_only,
    )
)

SHELL = register(
    Operation(
        name="command.shell.execute",
        params=ShellParams,
        result=CommandResult,
        queue="command",
        kind=Kind.ACTS,
        undo=Undo.NONE,
        summary="Run a command line by /bin/sh",
        retry=NO_RETRY,
        repeatable=_repeatable,
        looks_only=_looks_only,
    )
)
