"""Child plans, resolved and stored with the parent's request.

The client reads a child's plan when the parent is started. The text is part of the parent's request and digest, so
that later changes of the file do not affect the run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from longshore.orchestration.errors import PlanError, Problem
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans.loading import resolve
from longshore.orchestration.plans.model import Plan


def pinned(plan: Plan, files_of: Any) -> dict[str, str]:
    """The child plans that a run carries: by `key`, base64 of JSON with plan and files."""
    found: dict[str, str] = {}
    for name, step in plan.steps.items():
        if step.op != RUN.name:
            continue
        child = resolve(plan, step.with_["plan"])
        try:
            files = files_of(child, {}) | pinned(child, files_of)
        except PlanError as error:
            raise PlanError([Problem(f"child plan: {error}", step=name, path=("steps", name, "with"))]) from None
        text = json.dumps({"plan": child.to_dict(), "files": files}, ensure_ascii=False, sort_keys=True)
        found[key(name)] = base64.b64encode(text.encode()).decode("ascii")
    return found


def read(contents: Mapping[str, str], step: str) -> tuple[Plan, dict[str, Any]]:
    """The child plan of a step of a request, and its JSON: the plan as written, and its files."""
    kept: dict[str, Any] = json.loads(base64.b64decode(contents[key(step)]))
    return Plan.model_validate(kept["plan"]), kept


def all_of(contents: Mapping[str, str]) -> Iterator[Plan]:
    """All child plans that a request carries, with the children of those."""
    for name in contents:
        if name.startswith(_KEY):
            plan, kept = read(contents, name.removeprefix(_KEY))
            yield plan
            yield from all_of(kept["files"])


#: Never the beginning of a valid path.
_KEY = "plan of step "


def key(step: str) -> str:
    """The key of a child plan among the files of a request; never a valid path."""
    return f"{_KEY}{step}"
