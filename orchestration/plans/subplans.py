"""Plans inside plans: found, checked, and kept with the run that will need them.

A child's plan is read when the parent is started. Its text goes into the parent's request beside the files
that the plan names, and so into its digest: whatever becomes of the file, the run does what was started.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longshore.orchestration.errors import PlanError, Problem, UsageError
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans.loading import load
from longshore.orchestration.plans.model import Plan

#: Plans in plans in plans.
_DEEPEST = 8


def resolve(parent: Plan, given: Any, *, seen: tuple[str, ...] = ()) -> Plan:
    """The plan that a step names, or writes out, checked. Raises PlanError, UnknownName, UsageError."""
    if len(seen) >= _DEEPEST:
        raise UsageError(f"plans lie in each other more than {_DEEPEST} deep: {' → '.join(seen)}")
    if isinstance(given, Mapping):
        try:
            child = Plan.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise PlanError(f"{where}: {first['msg']}") from None
        child._base_dir = parent._base_dir
    else:
        beside = Path(parent._base_dir) / str(given)
        child = load(str(beside) if beside.is_file() else str(given), check=False)
    for step in child.steps.values():
        if step.op == RUN.name and "plan" in step.with_:
            resolve(child, step.with_["plan"], seen=(*seen, child.name))
    child.check()
    return child


def pinned(plan: Plan, files_of: Any) -> dict[str, str]:
    """What the run of a plan has to carry for its children: by `key`, base64 of JSON with plan and files."""
    found: dict[str, str] = {}
    for name, step in plan.steps.items():
        if step.op != RUN.name:
            continue
        child = resolve(plan, step.with_["plan"])
        try:
            files = files_of(child, {}) | pinned(child, files_of)
        except PlanError as error:
            raise PlanError([Problem(f"its plan: {error}", step=name, path=("steps", name, "with"))]) from None
        text = json.dumps({"plan": child.to_dict(), "files": files}, ensure_ascii=False, sort_keys=True)
        found[key(name)] = base64.b64encode(text.encode()).decode("ascii")
    return found


def key(step: str) -> str:
    """Where the plan of a step's child lies among the files; no path looks like it."""
    return f"plan of step {step}"
