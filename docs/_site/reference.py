"""Writes the pages of the reference that the code defines: `python -m docs._site.reference`.

A page is written where a developer runs `make docs`, and a test compares the committed pages with the code.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from pydantic import BeforeValidator

from docs._site.page_text import first_sentence, with_signatures
from longshore import orchestration
from longshore.orchestration import celery, errors, testing
from longshore.orchestration.cli.error_texts import ERRORS, error_reference
from longshore.orchestration.cli.lazy import LazyCommand
from longshore.orchestration.cli.main import cli
from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.monitoring.metrics import Collector
from longshore.orchestration.operations import reference as operations
from longshore.orchestration.plans import loading
from longshore.orchestration.settings import Settings
from longshore.tasks.simulation.memory_store import MemoryStore

FOLDER = Path(__file__).resolve().parents[1] / "reference"


def command_line() -> str:
    """Each command with its usage, help and options."""
    lines = ["# Command line", "", *_paragraphs(cli.help or ""), "", "Options of every command:", ""]
    lines += _options(cli)
    for name, command in commands("longshore", cli):
        lines += ["", f"## {name}", "", "```text", _usage(name, command), "```", "", *_paragraphs(command.help or "")]
        if rows := _options(command, without={option.name for option in cli.params}):
            lines += ["", *rows]
    return "\n".join(lines) + "\n"


def commands(prefix: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name in sorted(group.commands):
        found = group.commands[name]
        command = found.load() if isinstance(found, LazyCommand) else found
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(f"{prefix} {name}", command)


def runnable() -> Iterator[tuple[str, click.Command]]:
    """The commands that do something without a subcommand."""
    for name, command in commands("longshore", cli):
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command


def _usage(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name, **cli.context_settings)
    return " ".join([name, *command.collect_usage_pieces(context)]).strip()


def _options(command: click.Command, without: Collection[str | None] = ()) -> list[str]:
    context = click.Context(command, **cli.context_settings)
    options = [each for each in command.params if isinstance(each, click.Option) and each.name not in without]
    records = [option.get_help_record(context) for option in options]
    rows = [f"| `{_cell(names)}` | {_cell(_bounds(text))} |" for names, text in filter(None, records)]
    return ["| option | meaning |", "|---|---|", *rows] if rows else []


def _paragraphs(text: str) -> list[str]:
    """A help text as Markdown: what click is not to wrap becomes a block."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        verbatim = paragraph.startswith("\b\n")
        body = paragraph.removeprefix("\b\n")
        if listed := _listed_exit_codes(body):
            lines += [body.partition("\n")[0], "", *(f"* {code}: {_cell(meaning)}" for code, meaning in listed), ""]
        else:
            lines += ["```text", body, "```", ""] if verbatim else [_cell(" ".join(body.split())), ""]
    return lines[:-1]


def _listed_exit_codes(paragraph: str) -> list[tuple[str, str]]:
    """The exit codes with their meanings, of a paragraph that lists them a line each; empty for any other."""
    title, _, body = paragraph.partition("\n")
    if not re.fullmatch(r"Exit codes\b.*:", title):
        return []
    found = re.findall(r"^  (\d+)  +(.*(?:\n   .*)*)", body, re.M)
    return [(code, " ".join(meaning.split())) for code, meaning in found]


def _bounds(text: str) -> str:
    """The help of an option, with the bounds of a number in words."""
    text = re.sub(r"(\d+)<=x<=(\d+)", r"from \1 to \2", text)
    return re.sub(r"x>=(\d+)", r"at least \1", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


#: Each exit code, its meaning, and examples.
_EXIT_CODES = (
    (
        "0", "The run or the command succeeded.",
        "A run is `succeeded`. Its steps may have failed [units](hosts.md#units) that `tolerate` allows.",
    ),
    (
        "1", "The run did not succeed. No effect is"
        " [left over or in doubt](../concepts/compensation.md#effects-that-remain), and no `always` step failed."
        " Effects that the report omits, such as those of `always` steps, do not count.",
        "A run is `undone`. A run is `failed`, and no step has acted. A run was cancelled before it began.",
    ),
    (
        "1", "The command failed.",
        "A worker refuses a command such as `longshore runs undo`. Redis does not answer.",
    ),
    (
        "2", "The request is invalid. Nothing was stored.",
        "Wrong usage, a wrong setting, an invalid plan, an unknown run, or a `--run-id` that belongs to a run of"
        " another plan.",
    ),
    (
        "3", "An effect of the run remains or may remain.",
        "Each run that is `partial` or `undo_failed`. A run with an effect that is left over or in doubt.",
    ),
    (
        "3", "An `always` step of the run failed.",
        "A run is `undone`, but the `always` step that restarts a service failed.",
    ),
    (
        "130", "Ctrl-C ended the command. The run continues, unless a second Ctrl-C has cancelled the run.",
        "`longshore run` was interrupted.",
    ),
)  # fmt: skip


def exit_codes() -> str:
    """The exit codes, those of each command that has its own, and those of the errors."""
    own = {name: text for name, command in runnable() if (text := _exit_codes_in(command))}
    lines = [
        "# Exit codes", "",
        "Every command ends with the exit code 0, 1, 2, 3 or 130. Only `longshore worker`, `beat` and `flower` can also"
        " end with another exit code of Celery.", "",
        "| code | meaning | examples |", "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in _EXIT_CODES), "",
        "In Python, `report.exit_code` is the exit code of a run, and `None` until the run has ended.", "",
        "With these options, a command does not return the exit code of a run:", "",
        "* `longshore run --detach` returns 0 after the request is stored.",
        "* `longshore runs cancel`, `resume` and `undo` with `--detach` return 0 after a worker has accepted the"
        " command.",
        "* `longshore run --dry-run` returns 1 if the dry run predicts the failure of a step, and otherwise 0.", "",
        "After the [errors](errors.md) `wait-timeout` and `store-unavailable` (exit code 1), the run may still be"
        " running: `longshore runs show RUN` prints its state.", "",
        "## Commands", "",
        "All exit codes that this table does not list have the meaning of the first table. If Redis does not answer,"
        " `longshore check` ends with 2. `longshore worker`, `beat` and `flower` wait for Redis. Every other command"
        " that needs Redis ends with 1.", "",
        "| command | exit codes |", "|---|---|",
        *(f"| `{name}` | {re.sub(r'; (?=[0-9]+:)', '<br>', _cell(text))} |" for name, text in own.items()), "",
        "## Errors", "",
        "After an exception of the row *1 or 3*, the command ends with the exit code of the run.", "",
        "| code | exceptions |", "|---|---|",
    ]  # fmt: skip
    by_code: dict[str, list[str]] = {}
    for error in _error_classes():
        by_code.setdefault(ERRORS[error.code].exit_codes, []).append(f"`{error.__name__}`")
    lines += [f"| {code} | {', '.join(classes)} |" for code, classes in sorted(by_code.items())]
    return "\n".join(lines) + "\n"


def _exit_codes_in(command: click.Command) -> str:
    """The part of a command's help about its exit codes, without these words."""
    paragraph = inspect.cleandoc(command.help or "").rpartition("\n\n")[2].removeprefix("\b\n")
    if listed := _listed_exit_codes(paragraph):
        return "; ".join(f"{code}: {meaning}" for code, meaning in listed) + "."
    found = re.search(r"Exit codes?:? (.*)", " ".join((command.help or "").split()))
    return found[1] if found else ""


def exit_codes_of(command: click.Command) -> set[int]:
    """The exit codes that the help of a command names; those of all commands where the help names none."""
    text = _exit_codes_in(command)
    named = {int(code) for code in re.findall(r"(?:^|[;,] | or )(\d+)\b", text)}
    return {0, 1, 2, 3, 130} if not named or "the same as" in text else named | {0}


def all_settings() -> str:
    """Each setting with its variable, type, default and description, by section."""
    lines = [
        "# Settings", "",
        "Three places can have the value of a setting. The first of them that has a value counts:", "",
        "1. a flag of the command, if there is one: `longshore --actor NAME`",
        "2. the environment variable",
        "3. a settings file (YAML or TOML), which `--config FILE` or `LONGSHORE_CONFIG` selects. There, the name is in"
        " lower case and without `LONGSHORE_`: `redis_url`", "",
        "Give all clients, workers and beats of an installation the same values. Only these settings may differ:", "",
        "* `LONGSHORE_CONNECT_TIMEOUT`",
        "* settings in the section [Limits of a worker](#limits-of-a-worker)",
        "* settings whose meaning says *beat*, *this process* or *this host*", "",
        "A *duration* is a number of seconds, or a text such as `500ms`, `30s`, `10m`, `1h` or `1d`. Only"
        " `LONGSHORE_FAST_RETRY` and `LONGSHORE_RETRY_SPREAD` may be 0. If the default is"
        " empty, the setting is off, unless the meaning gives a default. An invalid value is an error"
        " ([`config-invalid`](errors.md#config-invalid)). The [glossary](../concepts/glossary.md) defines the terms.",
    ]  # fmt: skip
    source = inspect.getsource(Settings)
    described, sections = _described_fields(source), _sections(source)
    kinds = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        if name in sections:
            lines += ["", *sections[name], "", "| variable | type | default | meaning |", "|---|---|---|---|"]
        is_duration = any(isinstance(part, BeforeValidator) for part in field.metadata) or "duration" in str(
            field.annotation
        )
        kind = "duration" if is_duration else _type(kinds[name]).replace("(#", "(plan.md#") + _range(kinds[name])
        default = "" if field.default_factory or field.default in (None, "") else field.default
        shown = format_duration(default) if is_duration and default != "" else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        cells = (f"`LONGSHORE_{name.upper()}`", kind, f"`{shown}`" if shown else "", _cell(described[name]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(field: dict[str, Any]) -> str:
    """The bounds of an integer, in words; '' without bounds."""
    bounds = next((one for one in (field, *field.get("anyOf", ())) if "minimum" in one), None)
    if bounds is None:
        return ""
    least, most = bounds["minimum"], bounds.get("maximum")
    return f", at least {least}" if most is None else f", {least} to {most}"


def _sections(source: str) -> dict[str, list[str]]:
    """The heading and the text of each section of the settings, by its first field."""
    sections: dict[str, list[str]] = {}
    heading = ""
    text: list[str] = []
    for line in map(str.strip, source.splitlines()):
        if title := re.match(r"# --- (.+)", line):
            heading, text = f"## {title[1]}", []
        elif heading and line.startswith("# "):
            text.append(line[2:])
        elif heading and (field := re.match(r"([a-z_]+): ", line)):
            sections[field[1]] = [heading, *(["", " ".join(text)] if text else [])]
            heading = ""
    return sections


def _described_fields(source: str) -> dict[str, str]:
    """The `#:` comment of each field."""
    described: dict[str, str] = {}
    comment: list[str] = []
    for line in map(str.strip, source.splitlines()):
        if line.startswith("#:"):
            comment.append(line[2:].strip())
        elif field := re.match(r"([a-z_]+): ", line):
            described[field[1]] = " ".join(comment)
            comment = []
    return described


def plan() -> str:
    """Each field of a plan, from the JSON schema."""
    schema = loading.schema()
    lines = [
        "# Plan schema", "",
        "[The plan language](../concepts/plan-language.md), [Guards](guards.md) and [Hosts and targets](hosts.md)"
        " explain the fields. `longshore plan schema` prints the JSON schema of plans, for editors.", "",
        "A *duration* is a number of seconds, or a text such as `500ms`, `30s`, `10m`, `1h` or `1d`. A *map* has names"
        " with values. A type with a link has a section below. The [glossary](../concepts/glossary.md)"
        " defines the terms.", "",
        "## Plan", "", *_fields(schema),
    ]  # fmt: skip
    for name, part in schema["$defs"].items():
        # A part with a short form has its fields in one of several schemas.
        whole = next(each for each in (part, *part.get("anyOf", ())) if each.get("properties"))
        lines += ["", f"## {name}", "", " ".join(whole.get("description", "").split()), "", *_fields(whole)]
    return "\n".join(lines) + "\n"


def _fields(part: dict[str, Any]) -> list[str]:
    required = part.get("required", ())
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in part["properties"].items():
        default = "required" if name in required else _json_default(field)
        rows.append(f"| `{name}` | {_cell(_type(field))} | {default} | {_cell(field.get('description', ''))} |")
    return rows


def _json_default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default is None or default in ([], {}, ""):
        return ""
    return f"`{format_duration(default) if _type(field) == 'duration' else _cell(str(default))}`"


def _type(field: dict[str, Any]) -> str:
    if choices := field.get("anyOf") or field.get("oneOf"):
        if {"type": "string"} in choices:  # the listed values are proposals
            choices = [one for one in choices if "enum" not in one]
        if len(choices) == 2 and choices[1] == {"type": "array", "items": choices[0]}:
            return f"{_type(choices[0])}, or a list of them"
        return ", ".join(dict.fromkeys(_type(one) for one in choices if one.get("type") != "null"))
    if choices := field.get("allOf"):
        return _type(choices[0])
    if reference := field.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    kind = field.get("type", "any")
    if kind == "object":
        values = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
        return next((f"map of {_type(value)}" for value in values if isinstance(value, dict) and value), "map")
    if kind == ["string", "number"] and "30s" in field.get("examples", ()):
        return "duration"
    return ", ".join(kind) if isinstance(kind, list) else str(kind)


def python() -> str:
    """The public names of Python, each with its entry by mkdocstrings."""
    lines = [
        "# Python API", "",
        "This page lists the public names of Longshore in Python, by module, with their signatures, and the"
        " fields of models and dataclasses. The built site (`make docs`) also shows the other members and the"
        " documentation of each name.", "",
    ]  # fmt: skip
    parts: list[tuple[str, str, ModuleType]] = [
        ("longshore.orchestration", "Plans, runs, clients and errors", orchestration),
        ("longshore.orchestration.celery", "Celery applications", celery),
        ("longshore.orchestration.testing", "Tests of plans and operations", testing),
        ("longshore.orchestration.django", "Django", import_module("longshore.orchestration.django")),
    ]
    for name, title, module in parts:
        lines += [f"## {title}", "", f"Import these names from `{name}`.", ""]
        offered = {public: getattr(module, public) for public in sorted(module.__all__, key=str.lower)}
        lines += [*_summaries(offered), ""]
        for public in offered:
            lines += [f"::: {_home(module, public)}", ""]
    shown = {_home(module, public) for _, _, module in parts for public in module.__all__}
    further = {error.__name__: error for error in _error_classes() if _home(errors, error.__name__) not in shown}
    lines += [
        "## Further errors", "",
        "Import these names from `longshore.orchestration.errors`. This module also contains the errors of the first"
        " section.", "",
        *_summaries(further), "",
    ]  # fmt: skip
    for error in further:
        lines += [f"::: {_home(errors, error)}", ""]
    return with_signatures("\n".join(lines).rstrip() + "\n")


def _summaries(offered: Mapping[str, Any]) -> list[str]:
    """A table of names with the first sentences of their docstrings."""
    rows = [f"| `{name}` | {_cell(first_sentence(inspect.getdoc(value) or ''))} |" for name, value in offered.items()]
    return ["| name | meaning |", "|---|---|", *rows]


def _error_classes() -> list[type[errors.LongshoreError]]:
    found = [
        each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.LongshoreError)
    ]
    return sorted(found, key=lambda each: each.__name__.lower())


def _home(module: ModuleType, name: str) -> str:
    """The module that defines a public name: mkdocstrings finds no names that a package loads late."""
    value = getattr(module, name)
    defined = getattr(value, "__module__", module.__name__)
    if not isinstance(defined, str) or not defined.startswith("longshore."):
        defined = module.__name__
    return f"{defined}.{getattr(value, '__qualname__', name)}"


def metrics() -> str:
    """Each metric with its type, labels and description."""
    lines = [
        "# Metrics", "",
        "`longshore metrics` prints the metrics, and `longshore metrics --listen :9808` serves them to Prometheus."
        " [Monitor runs and workers](../how-to/monitoring.md#metrics-and-alerts) shows an example. Counters never"
        " decrease, even when runs are deleted. The [glossary](../concepts/glossary.md) defines the terms.\n\n"
        "Values of `state` and `status`: the states of [runs, steps, compensations](../concepts/states.md) and"
        " [hosts](hosts.md#states-of-a-host).", "",
        "| metric | type | labels | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    store = MemoryStore(Settings())
    store.client.info = lambda *_: {}  # the server in memory has no INFO
    for family in Collector(store).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines) + "\n"


#: The pages that define the terms of the error texts.
_TERMS = {
    "admission": "../concepts/glossary.md#runs",
    "dead letters": "../concepts/glossary.md#redis",
    "breaker": "../concepts/glossary.md#redis",
    "audit trail": "../concepts/glossary.md#redis",
    "objects in Redis": "../concepts/glossary.md#redis",
    "point of no return": "../concepts/compensation.md#choices-of-a-plan",
    "`done` function": "../how-to/own-operation.md#look-up-an-earlier-effect",
    "`retry`": "../concepts/plan-language.md#retries",
}


def error_codes() -> str:
    """Each error code with its meaning, exit code and remedy."""
    head = (
        "A command that fails prints `error[CODE]: message`. `longshore explain CODE` prints the entry of this page. In"
        " Python, the attribute `code` of an exception contains the code. The exit code `1 or 3` is the [exit code of"
        " the run](exit-codes.md#errors).\n\n"
        "The entries from [`operation-failed`](#operation-failed) on describe errors of workers. No command prints"
        " their codes: their messages are in the report of the run, the log of the worker, or `longshore audit`."
    )
    first, *entries = re.split(r"^(?=## )", error_reference(), flags=re.M)
    return f"# Errors\n\n{head}\n\n{first}{''.join(map(_linked, entries))}"


def _linked(entry: str) -> str:
    """An entry with links: the first occurrence of each term to its definition, and other codes to their entries."""
    heading, _, text = entry.partition("\n")
    linked: set[str] = set()

    def link(found: re.Match[str]) -> str:
        word = found[0]
        code = word.strip("`")
        if word in _TERMS and word not in linked:
            linked.add(word)
            return f"[{word}]({_TERMS[word]})"
        return f"[{word}](#{code})" if code in ERRORS and f"## {code}" != heading else word

    terms = "|".join(map(re.escape, _TERMS))
    return f"{heading}\n" + re.sub(rf"(?<!\w)(?:{terms})(?!\w)|`[^`\n]+`", link, text)


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line,
    "settings.md": all_settings,
    "plan.md": plan,
    "operations.md": operations.page,
    "python.md": python,
    "metrics.md": metrics,
    "exit-codes.md": exit_codes,
    "errors.md": error_codes,
}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for file, page in PAGES.items():
        (folder / file).write_text(page())
