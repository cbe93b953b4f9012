"""What a step would do: the dry run's part on the worker. Only reads."""

from __future__ import annotations

import re
from typing import Any

from longshore.orchestration import templates
from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.operations import Undo
from longshore.orchestration.plan import UndoSpec
from longshore.tasks.operation import Context, Prediction, implementation
from longshore.tasks.plans import Loaded, Plans
from longshore.tasks.runner import render_params, validate_params


def probe_step(body: dict[str, Any], index: int, host: str) -> dict[str, Any]:
    """The answer of one step: what it would do, whether that changes something, what its undo would be."""
    loaded = Plans.load(body)
    step = loaded.plan.steps[index]
    templated = step.operation.templated(step.step.with_)
    unknown = sorted(templates.references(templated).steps)
    try:
        prediction = _predict(loaded, index, unknown, host)
    except LongshoreError as error:
        # Before anything has run, what an earlier step will bring is missing; that is no proof.
        certain = not step.needs
        prediction = Prediction(f"cannot be told: {error}", changed=None, impossible=str(error) if certain else None)
    undo = prediction.undo
    if isinstance(step.step.undo, UndoSpec):
        undo = f"run {step.step.undo.op}"
    elif step.step.undo == "none" or step.read_only:
        undo = "nothing to take back"
    elif step.operation.undo is Undo.NONE:
        undo = "none: it would stand"
    return {
        "index": index,
        "host": host,
        "action": prediction.action,
        "changed": prediction.changed,
        "undo": undo if prediction.changed is not False else "nothing to take back",
        "impossible": prediction.impossible,
    }


def _predict(loaded: Loaded, index: int, unknown: list[str], host: str) -> Prediction:
    step = loaded.plan.steps[index]
    raw = step.step.with_
    if unknown:
        shown = re.sub(r"\s+", " ", ", ".join(f"{key}={value}" for key, value in raw.items()))
        return Prediction(
            f"would run {step.operation.name} with {shown}; values are known after step {', '.join(unknown)}",
            changed=None,
        )
    scope = {
        "params": loaded.params,
        "steps": {},
        "run": {"id": "dry-run", "name": loaded.plan.plan.name},
        "host": {"name": host, "labels": {}, "facts": {}},
    }
    templated = step.operation.templated(raw)
    params = validate_params(step.operation.params, raw | render_params(templated, scope))
    context = Context(
        run_id="dry-run",
        step=step.name,
        plan=loaded.plan.plan.name,
        dry_run=True,
        has_upstream=bool(step.needs),
        files=loaded.file,
    )
    return implementation(step.operation.name).predict(context, params)
