"""What all commands share: the global options, wherever they stand, and output."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from longshore.orchestration.errors import UsageError
from longshore.orchestration.language import printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from longshore.orchestration.client.client import Client
    from longshore.orchestration.plans.model import Plan

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Options:
    """The global options of one call."""

    output: str = "text"
    dry_run: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def json(self) -> bool:
        return self.output == "json"

    def console(self, *, error: bool = False) -> Console:
        """Where people read. Progress goes to stderr when stdout is for a program."""
        from longshore.orchestration.cli.console import PlainConsole  # noqa: PLC0415 - 70 ms that --help need not pay

        return PlainConsole(stderr=error or self.json, quiet=self.quiet and not error)

    def show(self, value: Any) -> None:
        """Print data as JSON."""
        say_json(json.dumps(value, ensure_ascii=False, indent=2))


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print one line. What is in it from outside moves no cursor and makes no second line."""
    click.echo(printable.line(str(text)), err=err, nl=nl)


def say_lines(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text of several lines; newlines and tabs stay."""
    click.echo(printable.lines(text), err=err, nl=nl)


def say_report(report: BaseModel) -> None:
    """Print a report as JSON. Its own `model_dump_json` refuses text that was decoded by `surrogateescape`."""
    current().show(report.model_dump(mode="json"))


def say_json(document: str) -> None:
    """Print a document in JSON, with what would move a terminal's cursor as JSON's own escapes."""
    click.echo(printable.as_json(document))


def current() -> Options:
    """The options of the command that runs."""
    return click.get_current_context().ensure_object(Options)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.find_root().ensure_object(Options), name, value)

    return callback


def _set_config(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    _set_environment("LONGSHORE_CONFIG", value)


def _set_actor(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    _set_environment("LONGSHORE_ACTOR", value)


def _set_environment(name: str, value: str | None) -> None:
    """A flag comes before the environment, also in the processes that are started from here."""
    import os  # noqa: PLC0415 - beside its only use

    if value:
        os.environ[name] = value


def global_options(function: F, *, without: str = "") -> F:
    """Add the global options to a command; they may stand before or after its name. `without` one of them, where the
    command has its own.
    """
    for names, settings in _GLOBAL:
        if without in names:
            continue
        function = click.option(*names, expose_value=False, **settings)(function)
    return function


_GLOBAL: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("-v", "--verbose"),
        {"is_flag": True, "callback": _remember("verbose"), "help": "Say more; show tracebacks."},
    ),
    (("-q", "--quiet"), {"is_flag": True, "callback": _remember("quiet"), "help": "Print errors only."}),
    (
        ("--dry-run",),
        {"is_flag": True, "callback": _remember("dry_run"), "help": "Change nothing; say what would happen."},
    ),
    (
        ("-o", "--output"),
        {"type": click.Choice(["text", "json"]), "callback": _remember("output"), "help": "Form of the output."},
    ),
    (
        ("--config",),
        {"metavar": "FILE", "is_eager": True, "callback": _set_config, "help": "Settings, YAML or TOML."},
    ),
    (("--actor",), {"metavar": "NAME", "callback": _set_actor, "help": "Who does it, on every event."}),
)


def command(group: click.Group, name: str | None = None) -> Callable[[F], click.Command]:
    """Add a command with the global options to a group."""

    def add(function: F) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return group.command(name)(global_options(run))

    return add


def client() -> Client:
    """A client for this call."""
    from longshore.orchestration.client.client import Client  # noqa: PLC0415 - celery and redis are slow to import

    return Client()


def load_plan(name: str) -> Plan:
    from longshore.orchestration.plans.loading import load  # noqa: PLC0415 - pydantic is slow to import

    return load(name)


def read_params(plan: Plan, pairs: tuple[str, ...], file: str | None) -> dict[str, Any]:
    """Parameters from a file, then from `-p name=value`, which win."""
    from pathlib import Path  # noqa: PLC0415 - beside its only use

    from longshore.orchestration.plans.loading import read_mapping  # noqa: PLC0415 - see load_plan

    values = read_mapping(Path(file)) if file else {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"-p {pair!r} is not name=value")
        values[name] = plan.params[name].parse(text) if name in plan.params else text
    return values


def tell(line: str, **facts: Any) -> None:
    """Say what was done, or would be: a line for people; with `-o json` the facts, and that line as `message`."""
    options = current()
    if options.json:
        options.show({**facts, "dry_run": options.dry_run, "message": line})
    elif options.dry_run or not options.quiet:
        say(line)


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they have to be; the first row is their heads."""
    rows = [[printable.line(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def leave(code: int) -> None:
    """End the command with that exit code."""
    sys.stdout.flush()
    click.get_current_context().exit(code)
