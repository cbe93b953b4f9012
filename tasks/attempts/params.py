"""Parameters of a step: rendered from templates with marks for secrets, then revealed and validated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from longshore.orchestration.errors import NotAllowed, Preflight, plain
from longshore.orchestration.language import secrets, templates
from longshore.orchestration.operations import Operation, Params
from longshore.orchestration.operations.file import UPWARDS
from longshore.orchestration.plans.steps import INSIDE
from longshore.tasks.host import secret_sources


def render_step(raw: dict[str, Any], templated: dict[str, Any], inside: str, known: dict[str, Any]) -> dict[str, Any]:
    """The rendered parameters as they are journalled: marks in place of secrets, and the container of the step."""
    marks = secrets.SecretMarks()
    rendered = raw | _render(templated, known | {templates.SECRET: marks})
    if marks.used:
        rendered[secrets.WORD] = marks.word
    if inside:
        rendered[INSIDE] = _render({INSIDE: inside}, known)[INSIDE]
    return rendered


def reveal_params(
    operation: Operation,
    rendered: dict[str, Any],
    inside: str,
    redaction: secrets.Redaction,
    read: Callable[[str], str] = secret_sources.read,
) -> tuple[Params, str]:
    """The validated parameters with their secrets, and the container of the step. Adds the secrets to `redaction`.

    `read` returns the value of a reference.

    Raises Preflight, NotAllowed.
    """
    values = dict(rendered)
    inside = values.pop(INSIDE, inside)
    if word := values.pop(secrets.WORD, ""):
        values = secrets.reveal(values, word, redaction.values, read)
    return _validate(operation.params, _upgraded(operation, values)), inside


def _upgraded(operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    try:
        return operation.upgraded(values)
    except Exception as error:
        why = f"the upgrade of its stored parameters failed: {type(error).__name__}: {error}"
        raise Preflight(f"{operation.name}: {why}") from error


def _render(raw: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    try:
        rendered = templates.render(raw, scope)
    except templates.TemplateProblem as error:
        raise Preflight(str(error)) from None
    return rendered  # type: ignore[no-any-return]


def _validate(model: type[Params], values: dict[str, Any]) -> Params:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = plain(first["msg"])
        # No plan may contain a path with `..`: a template has made it.
        kind = NotAllowed if first["type"] == UPWARDS else Preflight
        raise kind(f"parameter {where}: {message}" if where else message) from None
