"""Policy checks of plans: plaintext secrets, unsafe templates and paths with `..`.

The client checks a plan before it is stored, and each worker when it reads the plan from Redis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from longshore.orchestration.errors import PlanDenied, Problem, UnknownName
from longshore.orchestration.language import templates
from longshore.orchestration.language.template_engine import LONGEST_CODE_OF_PLAN, code_size
from longshore.orchestration.operations import find
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.settings import Settings

#: Names of secret values; names such as `…_FILE` are locations.
_SECRET = re.compile(
    r"(passw(or)?d|passphrase|secret|token|(api|access|private|secret)_?key|credential|authorization|(^|_)pass$)", re.I
)
_NO_SECRET = re.compile(r"(_file|_path|_name|_id|_url|_ttl|_length|_type|_expiry)$", re.I)


def reject_forbidden(plan: Plan, settings: Settings) -> None:
    """Raise PlanDenied with all violations of the policy."""
    if costly := excessive_code(plan):
        raise PlanDenied([costly])
    found = [*_inside(plan), *_upwards(plan), *(plaintext_secrets(plan) if settings.clear_secrets == "refuse" else ())]
    if found:
        raise PlanDenied(found)


def excessive_code(plan: Plan) -> Problem | None:
    """The problem of too much template code, which every reader of the plan would have to parse."""
    size = sum(code_size(text) for text, _ in _texts(plan.model_dump(), ()) if templates.is_template(text))
    if size <= LONGEST_CODE_OF_PLAN:
        return None
    return Problem(
        f"the templates have {size} characters inside their tags; at most {LONGEST_CODE_OF_PLAN} are allowed"
    )


def _done(plan: Plan) -> Iterator[tuple[str, str, dict[str, Any], tuple[str | int, ...]]]:
    """Each operation of the plan: step, operation, parameters and their path."""
    for name, step in plan.steps.items():
        yield name, step.op, step.with_, ("steps", name, "with")
        if isinstance(step.undo, UndoSpec):
            yield name, step.undo.op, step.undo.with_, ("steps", name, "undo", "with")


def plaintext_secrets(plan: Plan) -> Iterator[Problem]:
    for name, op, params, at in _done(plan):
        try:
            fields = find(op).secrets
        except UnknownName:
            continue
        for field in sorted(fields & params.keys()):
            for key, path in _named(params[field], (*at, field)):
                yield Problem(
                    f"{field}: {key} is a plaintext secret and would be stored: use "
                    "{{ secret('env:LONGSHORE_SECRET_NAME') }} or secret('file:/run/secrets/NAME'), or set "
                    "LONGSHORE_CLEAR_SECRETS=allow if the value is not secret",
                    step=name, path=path,
                )  # fmt: skip


def _named(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and names_secret(str(key)) and _in_sight(item):
                yield str(key), (*path, str(key))
            else:
                yield from _named(item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            name, sign, text = item.partition("=") if isinstance(item, str) else ("", "", "")
            if sign and names_secret(name) and _in_sight(text):
                yield name, (*path, number)
            else:
                yield from _named(item, (*path, number))


def names_secret(name: str) -> bool:
    """Whether a field of this name contains a secret: a password, a token or a key."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


def _in_sight(value: str) -> bool:
    """Whether the value is stored in plaintext, in the plan or in its parameters."""
    if not templates.is_template(value):
        return bool(value)
    try:
        found = templates.references(value)
    except templates.TemplateProblem:
        return False  # reported by validation
    return bool(found.params) and not found.secrets


def _upwards(plan: Plan) -> Iterator[Problem]:
    """Problems of file paths with `..`."""
    for name, op, params, at in _done(plan):
        path = params.get("path") if op.startswith("file.") else None
        if isinstance(path, str) and ".." in path.split("/"):
            yield Problem(f"path: {path!r} has a .. in it: write the resolved path", step=name, path=(*at, "path"))


def _inside(plan: Plan) -> Iterator[Problem]:
    written = plan.to_dict()
    for text, path in _texts(written, ()):
        if word := templates.reaches_inside(text):
            step = str(path[1]) if len(path) > 1 and path[0] == "steps" else None
            yield Problem(f"a template accesses the forbidden name {word!r}: remove it", step=step, path=path)


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    if isinstance(value, str):
        yield value, path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*path, number))
