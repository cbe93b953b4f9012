"""Global options and output of all commands. Imports click only, because `longshore --help` loads this module."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from longshore.orchestration.errors import LongshoreError, code_of, exit_code_of
from longshore.orchestration.language import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from longshore.orchestration.cli.console import PlainConsole

F = TypeVar("F", bound=Callable[..., Any])


class CommandRefused(LongshoreError):
    """A worker has refused a command to a run, or would refuse the command of a dry run."""

    code = "refused"


@dataclass
class Options:
    """The global options of one command."""

    output: str = "text"
    dry_run: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def json(self) -> bool:
        """Whether the output is JSON."""
        return self.output == "json"

    def console(self, *, error: bool = False) -> PlainConsole:
        """The console for people: stderr where stdout carries JSON.

        Like `print_line`, the console also prints with --quiet: callers leave out progress and confirmations, and print
        what the command exists to print.
        """
        from longshore.orchestration.cli.console import PlainConsole  # noqa: PLC0415 - rich takes 70 ms; --help has none

        return PlainConsole(stderr=error or self.json)

    def show(self, value: Any) -> None:
        """Print a value as JSON."""
        print_json(json.dumps(value, ensure_ascii=False, indent=2))


def print_line(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print one line; control characters and newlines in the text are escaped."""
    click.echo(printable.line(str(text)), err=err, nl=nl)


def print_lines(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print several lines; control characters other than newline and tab are escaped."""
    click.echo(printable.lines(text), err=err, nl=nl)


def print_error(error: Exception, options: Options) -> None:
    """Print an error to stderr: one line with its code, or with `-o json` an object of one line."""
    code = code_of(error)
    if isinstance(error, LongshoreError):
        message, remedy, text = error.message, error.remedy, str(error)
    else:
        message, remedy = f"{type(error).__name__}: {error}", ""
        text = f"{message} (-v shows the traceback)"
    if options.json:
        fact = {"code": code or None, "message": message, "remedy": remedy, "exit_code": exit_code_of(error)}
        click.echo(printable.as_json(json.dumps({"error": fact}, ensure_ascii=False)), err=True)
        return
    print_line(f"error[{code}]: {text}" if code else f"error: {text}", err=True)


def print_report(report: BaseModel) -> None:
    """Print a report as JSON. `model_dump_json` is not used: pydantic rejects text decoded with `surrogateescape`."""
    current_options().show(report.model_dump(mode="json"))


def print_json(document: str) -> None:
    """Print a JSON document; control characters become JSON escapes."""
    click.echo(printable.as_json(document))


def current_options() -> Options:
    """The global options of the command that runs."""
    return click.get_current_context().ensure_object(Options)


def _store_option(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.find_root().ensure_object(Options), name, value)

    return callback


def _set_config(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    _set_environment("LONGSHORE_CONFIG", value)


def _set_actor(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    _set_environment("LONGSHORE_ACTOR", value)


def _set_environment(name: str, value: str | None) -> None:
    """Set an environment variable, which the processes that this command starts inherit."""
    if value:
        os.environ[name] = value


def global_options(function: F, *, without: str = "") -> F:
    """Add the global options to a command, so that users may write them before or after the command's name.

    `without` names an option that the command defines itself.

    """
    for names, settings in _GLOBAL:
        if without in names:
            continue
        function = click.option(*names, expose_value=False, **settings)(function)
    return function


_GLOBAL: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("-v", "--verbose"),
        {"is_flag": True, "callback": _store_option("verbose"), "help": "Print the traceback of an error."},
    ),
    (
        ("-q", "--quiet"),
        {
            "is_flag": True,
            "callback": _store_option("quiet"),
            "help": "Print requested data and errors, but no progress and confirmations. `run` prints nothing if "
            "the run succeeds.",
        },
    ),
    (
        ("--dry-run",),
        {
            "is_flag": True,
            "callback": _store_option("dry_run"),
            "help": "Change nothing; print what the command would do. Exit code 1: the command would fail.",
        },
    ),
    (
        ("-o", "--output"),
        {
            "type": click.Choice(["text", "json"]),
            "callback": _store_option("output"),
            "help": "Output format. Default: text.",
        },
    ),
    (
        ("--config",),
        {
            "metavar": "FILE",
            "is_eager": True,
            "callback": _set_config,
            "help": "Settings file (YAML or TOML). Default: LONGSHORE_CONFIG.",
        },
    ),
    (
        ("--actor",),
        {
            "metavar": "NAME",
            "callback": _set_actor,
            "help": "Your name in events and in the audit trail. Default: LONGSHORE_ACTOR, else the OS user.",
        },
    ),
)


def command(group: click.Group, name: str | None = None) -> Callable[[F], click.Command]:
    """Decorator that adds a command with the global options to a group."""

    def add(function: F) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return group.command(name)(global_options(run))

    return add


def print_result(line: str, **facts: Any) -> None:
    """Print the confirmation of a command, or its dry run; with `-o json` the facts, and the line as `message`."""
    options = current_options()
    if options.json:
        options.show({**facts, "dry_run": options.dry_run, "message": line})
    elif options.dry_run or not options.quiet:
        print_line(line)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; the first row is the header."""
    rows = [[printable.line(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print_line("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def exit_with(code: int) -> None:
    """End the command with an exit code."""
    sys.stdout.flush()
    click.get_current_context().exit(code)
