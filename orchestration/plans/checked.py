"""Validated plans with all that is derived from them, made once for all starts of a plan in a process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from longshore.orchestration.operations import Operation, known
from longshore.orchestration.operations.subplan import RUN
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.loading import validate
from longshore.orchestration.plans.model import Plan, canonical_text
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.settings import Settings

#: Plans that a process keeps, and the characters of the longest one.
_KEPT, _LONGEST = 64, 100_000


@dataclass(frozen=True)
class CheckedPlan:
    """A valid plan: as JSON types, as canonical text, and compiled; shared by all starts, which must not change it."""

    data: Mapping[str, Any]
    canonical: str
    compiled: CompiledPlan
    #: The operations that the plan was validated against, by name.
    operations: Mapping[str, Operation | None]

    def is_current(self) -> bool:
        """Whether the names of operations still mean the same."""
        return all(known(name) is operation for name, operation in self.operations.items())


_checked: dict[str, CheckedPlan] = {}
_changing = Lock()


def checked(plan: Plan, settings: Settings | None = None) -> CheckedPlan:
    """Validate and compile a plan, once for all plans of this text; with `settings`, against their policy too.

    Raises PlanError for an invalid plan and PlanDenied for a forbidden one. A plan with child plans is validated each
    time, because the children may be files.
    """
    data = plan.to_dict()
    text = json.dumps(data, ensure_ascii=False)
    found = _checked.get(text)
    if found is not None and not found.is_current():
        found = None
    if settings is not None and (found is None or settings.clear_secrets not in found.compiled.permitted):
        reject_forbidden(plan, settings)
    if found is None:
        validate(plan)
        found = CheckedPlan(data, canonical_text(data), CompiledPlan(Plan.model_validate(data)), _operations(plan))
        if len(text) <= _LONGEST and RUN.name not in found.operations:
            _keep(text, found)
    if settings is not None:
        found.compiled.permitted.add(settings.clear_secrets)
    return found


def _operations(plan: Plan) -> dict[str, Operation | None]:
    names = {step.op for step in plan.steps.values()}
    names |= {step.undo.op for step in plan.steps.values() if isinstance(step.undo, UndoSpec)}
    return {name: known(name) for name in names}


def _keep(text: str, found: CheckedPlan) -> None:
    with _changing:
        _checked[text] = found
        while len(_checked) > _KEPT:
            del _checked[next(iter(_checked))]
