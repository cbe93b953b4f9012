"""The reference page of the operations, generated from their schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.operations import About, Kind, Operation, all_operations
from longshore.orchestration.operations.base import BACKOFF, READ_ONLY, Params, Result, Retry

_KINDS = {
    Kind.READ_ONLY: "read_only: the operation changes nothing",
    Kind.CONVERGES: "converges: a second execution returns unchanged",
    Kind.ACTS: "acts: each execution has its effect",
}
#: The receipt on the worker's host fences a lost attempt.
_HERE = "on the host, fenced"
_ELSEWHERE = "in another system: a request of a lost attempt may still arrive later, even after the undo"
_EFFECTS = {
    "celery.task.execute": "in the application; without `fenced`, a task of a lost attempt may still run later, even "
    "after the undo",
    "docker.push.execute": "at the registry, fenced on the host",
    "file.upload": "in Redis, fenced on the host",
    "plan.run.execute": "that of the steps of the child run",
}


def describe(operation: Operation) -> dict[str, Any]:
    """Describe an operation as JSON data, for `ops show` and the reference page."""
    about = operation.about or (READ_ONLY if operation.kind is Kind.READ_ONLY else _DEFAULT_ABOUT)
    return {
        "name": operation.name,
        "summary": operation.summary,
        "queue": operation.queue,
        "kind": str(operation.kind),
        "undo": str(operation.undo),
        "inside": operation.inside,
        "secrets": sorted(operation.secrets),
        "service": operation.service,
        "about": {
            "kind": _KINDS[operation.kind],
            "changed": about.changed,
            "undo": about.undo,
            "fails": about.fails,
            "second attempt": about.duplicate,
            "dry run": about.dry_run,
            "attempts": _attempts(operation, about.retried),
            "effect": _effect(operation),
        },
        "parameters": list(_rows(operation.params)),
        "result": list(_rows(operation.result)),
        "notes": _notes(operation.params),
        "result_notes": _notes(operation.result),
    }


#: Texts of functions as operations.
_DEFAULT_ABOUT = About(
    changed="as the function returns; by default always",
    undo="calls the undo function, if the operation has one",
    duplicate="after a lost attempt, calls the function again only with `idempotent` or `done`",
    fails="if the function raises an exception",
    dry_run="calls the predict function, if the operation has one",
    retried="temporary errors; with `retry`, after other exceptions, too",
)


def _attempts(operation: Operation, retried: str) -> str:
    """The number of attempts, their longest delay, and the errors after which they follow."""
    if operation.retry.attempts > 1:
        return _numbers(operation.retry, retried)
    # The page on retries lists the errors that `retry` adds for most operations.
    return "1" if retried == About.retried else f"1; with `retry`, more after {retried}"


def _numbers(retry: Retry, retried: str) -> str:
    longest = format_duration(max(retry.delay(number, 1.0) for number in range(1, retry.attempts)))
    return f"up to {retry.attempts}, at most {longest} apart, after {retried}"


def _effect(operation: Operation) -> str:
    if operation.kind is Kind.READ_ONLY or not operation.effect:
        return "none"
    if operation.name in _EFFECTS:
        return _EFFECTS[operation.name]
    if operation.queue == "cache":
        return "in Redis, atomically"
    return _ELSEWHERE if operation.elsewhere else _HERE


def _notes(model: type[BaseModel]) -> str:
    """The docstring of a model as one line; empty for a base, and for a model without a docstring of its own."""
    return "" if model in {Params, Result} else " ".join((vars(model).get("__doc__") or "").split())


def _rows(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Per field: name, type, default (`required` without one), description."""
    schema = model.model_json_schema()
    needed = set(schema.get("required", []))
    for name, said in schema.get("properties", {}).items():
        kind = _type(said, schema.get("$defs", {}))
        yield {
            "name": name,
            "type": kind,
            "default": "required" if name in needed else _shown(said.get("default"), kind),
            "description": said.get("description", ""),
        }


def _shown(value: Any, kind: str) -> str:
    """A default as text; empty for null, empty lists and maps."""
    match value:
        case float() if kind == "duration":
            return format_duration(value)
        case dict():
            return ""
        case None | [] | {}:
            return ""
        case bool():
            return "true" if value else "false"
    return str(value)


def _type(said: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The type of a JSON schema, in a few words."""
    if "$ref" in said:
        inner = known.get(str(said["$ref"]).rpartition("/")[2], {})
        return f"{{{', '.join(inner.get('properties', {}))}}}" if inner.get("properties") else _type(inner, known)
    if "const" in said:
        return str(said["const"])
    if "enum" in said:
        return " | ".join(map(str, said["enum"]))
    if "anyOf" in said:
        return " | ".join(dict.fromkeys(_type(one, known) for one in said["anyOf"] if one.get("type") != "null"))
    kind = said.get("type", "any")
    if "30s" in said.get("examples", ()):
        return "duration"
    if isinstance(kind, list):
        return " | ".join(_WORDS.get(str(one), str(one)) for one in kind)
    if kind == "array":
        return f"list of {_type(said.get('items', {}), known)}"
    if kind == "object" and isinstance(said.get("additionalProperties"), Mapping):
        return f"map of {_type(said['additionalProperties'], known)}"
    return _WORDS.get(str(kind), str(kind))


_WORDS = {"string": "text", "integer": "number", "boolean": "true | false", "object": "map"}


def page() -> str:
    """The reference page, Markdown."""
    lines = [
        *_introduction(),
        "",
        "| operation | does | kind | undo | queue |",
        "|---|---|---|---|---|",
    ]
    found = [describe(operation) for operation in all_operations().values() if operation.function is None]
    for one in found:
        anchor = one["name"].replace(".", "")
        lines.append(
            f"| [{one['name']}](#{anchor}) | {one['summary']} | {one['kind']} | {one['undo']} | {one['queue']} |"
        )
    for one in found:
        lines += ["", f"## {one['name']}", "", f"{one['summary']}. {one['notes']}", ""]
        facts = one["about"] | {"kind": one["kind"]}
        lines += [f"- **{what}:** {_linked(text)}" for what, text in facts.items() if not _is_default(one, what, text)]
        if one["inside"]:
            lines.append("- **inside a container:** possible")
        if one["secrets"]:
            lines.append(f"- **`secret()`:** {', '.join(one['secrets'])}")
        base, shared = _shared(one, found)
        if rows := [row for row in one["parameters"] if row not in shared]:
            lines += ["", "| parameter | type | default | meaning |", "|---|---|---|---|"]
            lines += [_row(row, "type", "default", "description") for row in rows]
        if shared:
            listed = ", ".join(f"`{row['name']}`" for row in shared)
            lines += [
                "",
                f"{'Further p' if rows else 'P'}arameters, as in [{base}](#{base.replace('.', '')}): {listed}",
            ]
        fields = ", ".join(f"`{row['name']}` ({row['type']})" for row in one["result"])
        lines += ["", f"**Result:** {f'{fields}. ' * bool(fields)}{one['result_notes']}"]
    return "\n".join(lines) + "\n"


#: Exceptions that another page describes.
_EXCEPTIONS = "Permanent, Preflight, InDoubt and StepCancelled"


def _linked(text: str) -> str:
    return text.replace(_EXCEPTIONS, f"[{_EXCEPTIONS}](../how-to/own-operation.md#exceptions)")


#: Operations whose parameters several others have; the page describes these once.
_BASES = ("command.exec.execute", "compose.config.get", "docker.create.execute")


def _shared(entry: Mapping[str, Any], entries: list[dict[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    """The operation that describes some parameters of an entry, and these parameters; none if there are few."""
    optional = [row for row in entry["parameters"] if row["default"] != "required"]
    for base in (each for each in entries if each["name"] in _BASES and each["name"] != entry["name"]):
        if len(same := [row for row in optional if row in base["parameters"]]) > 3:
            return base["name"], same
    return "", []


def _introduction() -> list[str]:
    """The head of the page: the meaning of the lines of an entry, and their defaults."""
    return [
        "# Operations",
        "",
        "This page lists the built-in operations. `longshore ops show OP` prints the entry of an operation, built-in or"
        " your own. The [glossary](../concepts/glossary.md) defines the terms.",
        "",
        "Most parameters may contain [templates](../concepts/plan-language.md#values). A *duration* is a number of"
        " seconds, or a text such as `500ms`, `30s`, `10m` or `1h`. A *map* assigns values to names; `{a, b}` is a map"
        " with the names `a` and `b`. *Result* lists the data of the step. Data without a value are null or absent.",
        "",
        "| line | meaning | default, if an entry has no such line |",
        "|---|---|---|",
        "| kind | `read_only`: changes nothing. `converges`: a second step with the same parameters is `unchanged`."
        " `acts`: each step acts again | |",
        "| changed | when the step is `changed`; otherwise, the step is `unchanged` | `read_only`: never |",
        "| undo | the [compensation](../concepts/compensation.md) of the step. After a *partial* undo, a part of the"
        " effect remains | `read_only`: none |",
        "| fails | why the step fails. Each step can also fail because of invalid parameters, an"
        " [allow list](../concepts/security.md#measures) of the worker, its time limit, or a temporary error at the"
        " last attempt | no further reasons |",
        "| second attempt | the effect of another attempt at the step, after an error, a [lost"
        " attempt](../concepts/leases.md#lease) or `longshore runs resume` | `read_only`: reads again |",
        f"| dry run | the answer of `--dry-run` | `read_only`: {READ_ONLY.dry_run}. Others: {About.dry_run} |",
        "| attempts | the number of attempts, and the errors after which another attempt follows. A *temporary* error"
        " is, for example, an unreachable Docker engine or registry, a rate limit, or a full disk."
        " [`retry`](../concepts/plan-language.md#retries) sets other numbers, and adds errors"
        f" | {_numbers(BACKOFF, About.retried)} |",
        "| effect | the place of the effect. *Fenced*: a [receipt](../concepts/leases.md#receipt) on the host keeps a"
        f" lost attempt from acting after a later attempt | `read_only`: none. Others: {_HERE} |",
        "| inside a container | with `in: {container: NAME}`, the step runs [in this"
        " container](../concepts/plan-language.md#inside-a-container) | not possible |",
        "| `secret()` | the parameters that may contain a [secret](../how-to/secrets.md) | none |",
        "",
        "In the next table, the last column names the [queue](../how-to/scaling.md) whose workers run the operation."
        " Longshore writes the steps `job.*` and `stacks.*` into the plans of [jobs](../how-to/jobs.md) and"
        " [stacks](../how-to/stacks.md). Plans of your own rarely need these operations.",
    ]


def _is_default(entry: dict[str, Any], what: str, text: str) -> bool:
    """Whether the page leaves out a line, because the introduction has its text as a default."""
    defaults = {"fails": About.fails, "attempts": _numbers(BACKOFF, About.retried)}
    if entry["kind"] == str(Kind.READ_ONLY):
        defaults |= {"changed": READ_ONLY.changed, "undo": READ_ONLY.undo, "second attempt": READ_ONLY.duplicate}
        defaults |= {"dry run": READ_ONLY.dry_run, "effect": "none"}
    else:
        defaults |= {"dry run": About.dry_run, "effect": _HERE}
    return defaults.get(what) == text


def _row(row: dict[str, str], *keys: str) -> str:
    cells = (f"`{row['name']}`", *(_cell(row[key]) for key in keys))
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    from pathlib import Path

    Path("docs/reference/operations.md").write_text(page())
