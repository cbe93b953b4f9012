"""Plans inside plans: found, checked, and kept with the run that will need them.

A child's plan is read when the parent is started. Its text goes into the parent's request beside the files
that the plan names, and so into its digest: whatever becomes of the file, the run does what was started.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from longshore.orchestration.errors import PlanError, Problem
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans.loading import resolve
from longshore.orchestration.plans.model import Plan


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
