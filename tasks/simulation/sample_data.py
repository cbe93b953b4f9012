"""Sample data for pretended steps, in the shape that a plan's templates reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longshore.orchestration.language import templates
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.steps import UndoSpec


def sample_data(plan: Plan) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return sample data and sample journals by step, in the shape that templates reference."""
    data: dict[str, dict[str, Any]] = {}
    before: dict[str, dict[str, Any]] = {}
    for own, step in plan.steps.items():
        lists = templates.paths(step.foreach) if step.foreach is not None else []
        texts = [step.with_, [templates.braced(guard.if_) for guard in step.when]]
        if isinstance(step.undo, UndoSpec):
            texts.append(step.undo.with_)
        for path in [*lists, *templates.paths(texts)]:
            match path:
                case ("steps", name, "data", *rest) if rest:
                    _fill(data.setdefault(name, {}), rest, f"{name}-{rest[-1]}", is_list=path in lists)
                case ("data", *rest) if rest:
                    _fill(data.setdefault(own, {}), rest, f"{own}-{rest[-1]}", is_list=False)
                case ("before", *rest) if rest:
                    _fill(before.setdefault(own, {}), rest, f"{own}-{rest[-1]}", is_list=False)
                case _:
                    pass
    return data, before


def _fill(data: dict[str, Any], path: Sequence[str], text: str, *, is_list: bool) -> None:
    for part in path[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            return
        data = inner
    data.setdefault(path[-1], [f"{text}-1", f"{text}-2"] if is_list else text)


def placeholder(reference: str) -> str:
    """The value of a secret in a simulated run."""
    return f"placeholder of {reference}"
