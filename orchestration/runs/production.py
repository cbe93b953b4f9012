"""The version of each project that runs after a run has failed: the last statement of its steps and their undos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.orchestration.runs.step_report import HostReport, ItemReport, StepReport


def standings(steps: Iterable[StepReport]) -> list[str]:
    """One sentence for each project and host; those that are not healthy come first."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for step in steps:
        for host, one in _of_step(step):
            key = host, str(one.get("project"))
            if one.get("at", 0) >= latest.get(key, {}).get("at", 0):
                latest[key] = one
    several = len({host for host, _ in latest if host}) > 1
    ordered = sorted(latest.items(), key=lambda entry: (bool(entry[1].get("healthy")), entry[0]))
    return [f"{host}: {one['text']}" if several else str(one["text"]) for (host, _), one in ordered if one.get("text")]


def _of_step(step: StepReport) -> Iterator[tuple[str, dict[str, Any]]]:
    parts: list[StepReport | ItemReport | HostReport] = [step, *step.hosts, *step.items]
    host = step.hosts[0].host if len(step.hosts) == 1 else ""
    for part in parts:
        undo = getattr(part, "undo", None)
        own = getattr(part, "host", None) or host
        for one in [*part.data.get("standing", []), *(undo.standing if undo else [])]:
            if isinstance(one, dict):
                yield own, one
