"""`longshore ops …`: the catalogue of operations, and one of them run by itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from longshore.orchestration.cli.common import command, current, say, say_lines
from longshore.orchestration.errors import UsageError

if TYPE_CHECKING:
    from longshore.orchestration.operations import Operation

_WIDE = 24


@click.group("ops")
def ops_group() -> None:
    """List, show and run operations."""


@command(ops_group, "ls")
@click.argument("pattern", default="")
def ls(pattern: str) -> None:
    """All operations, or those with PATTERN in their name."""
    from longshore.orchestration.operations import all_operations  # noqa: PLC0415 - see cli.common

    found = [operation for name, operation in all_operations().items() if pattern in name]
    if current().json:
        named = [{"name": one.name, "summary": one.summary, "kind": str(one.kind)} for one in found]
        current().show([row | {"undo": str(op.undo), "queue": op.queue} for row, op in zip(named, found, strict=True)])
        return
    for one in found:
        say(f"{one.name:<32} {one.kind!s:<10} undo {one.undo!s:<8} {one.summary}")


@command(ops_group, "show")
@click.argument("operation")
def show(operation: str) -> None:
    """What OPERATION takes, gives and promises."""
    from longshore.orchestration.operations import find  # noqa: PLC0415
    from longshore.orchestration.operations.reference import describe  # noqa: PLC0415 - see cli.common

    said = describe(find(operation))
    if current().json:
        current().show(said)
        return
    say_lines(f"{said['name']}: {said['summary']}\n{said['notes']}\n")
    facts = {"queue": said["queue"]} | said["about"]
    if said["inside"]:
        facts["inside"] = "can be done inside a container (in: {container: NAME})"
    if said["secrets"]:
        facts["secrets"] = f"secret() may stand in {', '.join(said['secrets'])}"
    for name, text in facts.items():
        say(f"  {name:<16} {text}")
    for title in ("parameters", "result"):
        say_lines(f"\n{title}" + (f": {said['result_notes']}" if title == "result" else ""))
        for row in said[title]:
            default = f" [{row['default']}]" if row["default"] else ""
            described = f"  {row['description']}" if row["description"] else ""
            say(f"  {row['name']:<{_WIDE}} {row['type']}{default}{described}")


@command(ops_group, "run")
@click.argument("operation")
@click.argument("params", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--target", default="_any", help="_any worker, _all hosts, or one host by its name.")
@click.option("--in", "inside", metavar="CONTAINER", help="Do it inside a container.")
@click.option("--timeout", metavar="DURATION", help="Of an attempt.")
@click.option("--run-id", metavar="ID", help="The same id with the same parameters attaches to the run that is there.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
def run(
    operation: str,
    params: tuple[str, ...],
    target: str,
    inside: str | None,
    timeout: str | None,
    run_id: str | None,
    detach: bool,
) -> None:
    """Run OPERATION as a run of one step.

    A value that begins with [ or { is YAML; KEY.INNER sets a part of a value; a KEY that is given twice is a list.
    """
    from longshore.orchestration.cli.run import begin  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.operations import find  # noqa: PLC0415
    from longshore.orchestration.plans.model import single  # noqa: PLC0415

    values = typed(find(operation), read_values(params))
    plan = single(operation, values, target=target, inside=inside, timeout=timeout)
    begin(plan, {}, run_id, detach=detach, show=True)


def typed(operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """Numbers and truth values as what they are; what does not fit stays as it was written, and is told of later."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - slow to import

    found = dict(values)
    for name, field in operation.params.model_fields.items():
        if isinstance(value := values.get(name), str) and "{{" not in value:
            try:
                fits = TypeAdapter(field.annotation or str).validate_python(value)
            except ValidationError:
                continue
            if isinstance(fits, bool | int | float):
                found[name] = fits
    return found


def read_values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parameters as they are given on a command line. UsageError for what is none."""
    import yaml  # noqa: PLC0415 - slow to import

    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
            raise UsageError(f"{pair!r} is not key=value")
        value: Any = text
        if text[:1] in {"[", "{"} and not text.startswith("{{"):
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UsageError(f"{key}: {text!r} is no YAML: {' '.join(str(error).split())}") from None
            except RecursionError:
                raise UsageError(f"{key}: it is nested too deeply") from None
        *path, last = key.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{key}: {part} has a value already")
        if last in inner:
            before = inner[last]
            value = [*before, value] if isinstance(before, list) else [before, value]
        inner[last] = value
    return found
