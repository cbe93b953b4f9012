"""The values that templates can read, from the record: only the steps that they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longshore.orchestration.language import templates
from longshore.orchestration.runs import report
from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.store.run_store import Store
from longshore.tasks.host.facts import facts, labels
from longshore.tasks.loaded_runs import Loaded


def scope(store: Store, loaded: Loaded, run_id: str, raw: Any, host: str) -> dict[str, Any]:
    """The scope of the templates inside a value."""
    names = sorted(templates.references(raw).steps)
    indices = [loaded.plan.index[name] for name in names if name in loaded.plan.index]
    found = report.read(store, run_id, loaded.plan, indices)
    return of_steps(loaded, run_id, found, host)


def of_steps(loaded: Loaded, run_id: str, found: Mapping[int, StepReport], host: str) -> dict[str, Any]:
    return {
        "params": loaded.params,
        "steps": {step.name: seen(step) for step in found.values()},
        "run": {"id": run_id, "name": loaded.plan.plan.name},
        "host": {"name": host, "labels": labels(), "facts": facts()},
    }


def seen(step: StepReport) -> dict[str, Any]:
    """The fields of a step that templates can read."""
    return {
        "status": str(step.status),
        "changed": step.changed,
        "data": step.data,
        "error": step.error,
        "reason": step.reason,
        "hosts": [host.model_dump(mode="json") for host in step.hosts],
        "items": [item.model_dump(mode="json", exclude={"undo", "task_ids"}) for item in step.items],
    }
