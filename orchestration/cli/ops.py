"""`longshore ops …`: the catalogue of operations, and runs of a single operation."""

from __future__ import annotations

import re
from typing import Any

import click
import yaml
from pydantic import TypeAdapter, ValidationError

from longshore.orchestration.cli.common import command, current_options, print_line, print_lines
from longshore.orchestration.cli.names import complete_operation
from longshore.orchestration.cli.run import start_and_watch
from longshore.orchestration.errors import UsageError
from longshore.orchestration.operations import Operation, all_operations, find
from longshore.orchestration.operations.reference import describe
from longshore.orchestration.plans.model import single

#: Characters of the column of names.
_NAME_WIDTH = 24


@click.group("ops")
def ops_group() -> None:
    """List, describe and run operations.

    An operation is an action that a step of a plan can perform, such as docker.pull.execute.

    """


@command(ops_group, "ls")
@click.argument("text", default="")
def ls(text: str) -> None:
    """List all operations, or the operations with TEXT in their name."""
    found = [operation for name, operation in all_operations().items() if text in name]
    if current_options().json:
        current_options().show(
            [
                {"name": op.name, "summary": op.summary, "kind": str(op.kind), "undo": str(op.undo), "queue": op.queue}
                for op in found
            ]
        )
        return
    for one in found:
        print_line(f"{one.name:<32} {one.kind!s:<10} undo {one.undo!s:<8} {one.summary}")


@command(ops_group, "show")
@click.argument("operation", shell_complete=complete_operation)
def show(operation: str) -> None:
    """Print the parameters, result, undo and retries of OPERATION."""
    entry = describe(find(operation))
    if current_options().json:
        current_options().show(entry)
        return
    print_lines("\n".join(filter(None, [f"{entry['name']}: {entry['summary']}", entry["notes"]])) + "\n")
    facts = {"queue": entry["queue"]} | entry["about"]
    if entry["inside"]:
        facts["inside"] = "can run inside a container (in: {container: NAME})"
    if entry["secrets"]:
        facts["secrets"] = f"secret() is allowed in {', '.join(entry['secrets'])}"
    for name, text in facts.items():
        print_line(f"  {name:<16} {text}")
    for title in ("parameters", "result"):
        print_lines(
            f"\n{title}" + (f": {entry['result_notes']}" if title == "result" and entry["result_notes"] else "")
        )
        for row in entry[title]:
            default = f" [{row['default']}]" if row["default"] and title == "parameters" else ""
            described = f"  {row['description']}" if row["description"] else ""
            print_line(f"  {row['name']:<{_NAME_WIDTH}} {row['type']}{default}{described}")


@command(ops_group, "run")
@click.argument("operation", shell_complete=complete_operation)
@click.argument("params", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--target",
    default="_any",
    show_default=True,
    help="Host: _any (one free worker), _all (each host), the name of a host, or a label such as role:web.",
)
@click.option("--in", "inside", metavar="CONTAINER", help="Run the operation inside this container.")
@click.option("--timeout", metavar="DURATION", help="Time limit of each attempt, such as 90s.")
@click.option(
    "--run-id",
    metavar="ID",
    help="Id of the run. An existing run with this id and the same parameters is watched, not started again.",
)
@click.option("--detach", is_flag=True, help="Print the id of the run and return at once.")
def run(
    operation: str,
    params: tuple[str, ...],
    target: str,
    inside: str | None,
    timeout: str | None,
    run_id: str | None,
    detach: bool,
) -> None:
    """Run OPERATION as a run of one step, and print its result.

    A value that begins with [ or { is parsed as YAML. KEY.INNER=VALUE sets one entry of a mapping. A repeated KEY makes
    a list.
    """
    values = typed(find(operation), read_values(params))
    plan = single(operation, values, target=target, inside=inside, timeout=timeout)
    start_and_watch(plan, {}, run_id, detach=detach, show=True)


def typed(operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """Parse numbers and booleans by the operation's schema.

    A value that does not fit stays a string, which the validation of the plan rejects.

    """
    found = dict(values)
    for name, field in operation.params.model_fields.items():
        if isinstance(value := values.get(name), str) and "{{" not in value:
            try:
                parsed = TypeAdapter(field.annotation or str).validate_python(value)
            except ValidationError:
                continue
            if isinstance(parsed, bool | int | float):
                found[name] = parsed
    return found


def read_values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parameters from KEY=VALUE arguments. UsageError for an argument of another form."""
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
                raise UsageError(f"{key}: {text!r} is not valid YAML: {' '.join(str(error).split())}") from None
            except RecursionError:
                raise UsageError(f"{key}: the value is nested too deeply") from None
        *path, last = key.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{key}: {part} is set already")
        if last in inner:
            before = inner[last]
            value = [*before, value] if isinstance(before, list) else [before, value]
        inner[last] = value
    return found
