"""The reference page of the operations, generated from their schemas."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from longshore.orchestration.language.durations import format_duration
from longshore.orchestration.operations import About, Kind, Operation, all_operations
from longshore.orchestration.operations.base import READ_ONLY

_KINDS = {
    Kind.READ_ONLY: "read-only: the operation changes nothing",
    Kind.CONVERGES: "converges: a second call returns unchanged",
    Kind.ACTS: "acts: each call has its effect",
}
#: The receipt on the worker's host fences a superseded attempt.
_HERE = "on this host; a superseded attempt is fenced before the next one acts"
_ELSEWHERE = "at least once: a request to another system may arrive after its undo, if the worker was paused meanwhile"


def describe(operation: Operation) -> dict[str, Any]:
    """Describe an operation as JSON data, for `ops show` and the reference page."""
    about = operation.about or (READ_ONLY if operation.kind is Kind.READ_ONLY else _DEFAULT_ABOUT)
    retry = operation.retry
    tries = "once" if retry.attempts == 1 else f"up to {retry.attempts} times"
    if retry.attempts > 1:
        tries += f", {format_duration(retry.initial)} to {format_duration(retry.maximum)} apart"
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
            "second delivery": about.duplicate,
            "dry run": about.dry_run,
            "tried": f"{tries}: {about.retried}",
            "effect": _effect(operation),
        },
        "parameters": list(_rows(operation.params)),
        "result": list(_rows(operation.result)),
        "notes": _notes(operation.params),
        "result_notes": _notes(operation.result),
    }


_DEFAULT_ABOUT = About(
    changed="the function returns it",
    undo="the function given as undo",
    duplicate="the function may use its idempotency key",
)


def _effect(operation: Operation) -> str:
    if operation.kind is Kind.READ_ONLY or not operation.effect:
        return "none"
    if operation.queue == "cache":
        return "in Redis, atomically"
    return _ELSEWHERE if operation.elsewhere else _HERE


def _notes(model: type[BaseModel]) -> str:
    """The docstring of a model as one line."""
    return " ".join((inspect.getdoc(model) or "").split())


def _rows(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Per field: name, type, default (`required` without one), description."""
    schema = model.model_json_schema()
    needed = set(schema.get("required", []))
    for name, said in schema.get("properties", {}).items():
        yield {
            "name": name,
            "type": _type(said, schema.get("$defs", {})),
            "default": "required" if name in needed else _shown(said.get("default")),
            "description": said.get("description", ""),
        }


def _shown(value: Any) -> str:
    """A default as text; empty for null, empty lists and maps."""
    match value:
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
        "# Operations",
        "",
        "All operations with their parameters, results, compensations and retries, generated from the schemas;"
        " `longshore ops show OP` prints the same. Every parameter may contain templates.",
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
        lines += [f"- **{what}:** {text}" for what, text in one["about"].items() if text]
        if one["inside"]:
            lines.append("- **inside a container:** with `in: {container: NAME}`")
        if one["secrets"]:
            lines.append(f"- **`secret()` is allowed in:** {', '.join(one['secrets'])}")
        for title, rows in (("parameter", one["parameters"]), ("result", one["result"])):
            if rows:
                lines += ["", f"| {title} | type | default | |", "|---|---|---|---|"]
                lines += [_row(row) for row in rows]
        if one["result_notes"]:
            lines += ["", f"Result: {one['result_notes']}"]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, str]) -> str:
    cells = (f"`{row['name']}`", *(_cell(row[key]) for key in ("type", "default", "description")))
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    from pathlib import Path

    Path("docs/reference/operations.md").write_text(page())
