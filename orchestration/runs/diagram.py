"""Diagrams of a plan as text, Mermaid, DOT or SVG, coloured by the states in a report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape as escape_html

from longshore.orchestration.language import printable
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.styles import STYLES
from longshore.orchestration.states import STEP_BAD, UNDO_OPEN, StepState, UndoState

#: Fill and stroke by state, for a light background.
COLOURS = {state: (style.light.fill, style.light.border) for state, style in STYLES.items()}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 46, 28, 44, 20


def escape(text: str) -> str:
    """Text escaped for XML, with control characters made visible."""
    return escape_html(printable.line(text))


def states_of(report: Report | None) -> dict[str, str]:
    """The state to colour each step by, that of its undo included."""
    if report is None:
        return {}
    shown = {}
    for step in report.steps:
        undo = step.undo.status if step.undo else None
        # A failed step keeps its own colour after its undo, so that the cause of the failure stays visible.
        undo_counts = undo in UNDO_OPEN or (undo is UndoState.UNDONE and step.status not in STEP_BAD)
        shown[step.name] = str(undo if undo_counts else step.status)
    return shown


def text(plan: CompiledPlan, states: Mapping[str, str] | None = None) -> str:
    """The plan as text: its levels, each step with its dependencies."""
    states = states or {}
    lines = [f"{plan.plan.name}: {len(plan)} steps, {len(plan.levels)} levels"]
    for level, members in enumerate(plan.levels):
        lines += ["", f"Level {level}{' (parallel)' if len(members) > 1 else ''}:"]
        for step in (plan.steps[i] for i in members):
            after = f" <- {', '.join(plan.steps[i].name for i in step.needs)}" if step.needs else ""
            state = f"  {states[step.name]}" if step.name in states else ""
            lines.append(f"  {step.name} [{step.operation.name}]{after}{_flags(step)}{state}")
    return "\n".join(lines)


def _flags(step: CompiledStep) -> str:
    flags = [f"only-if-{condition}".replace("_", "-") for condition in step.step.only_if]
    flags += ["when"] * bool(step.step.when) + ["for each"] * (step.step.foreach is not None)
    flags += [f"on {step.target}"] * (step.target != "_any") + ["irreversible"] * step.step.irreversible
    flags += ["always"] if step.always else []
    return f" ({', '.join(flags)})" if flags else ""


def mermaid(plan: CompiledPlan, states: Mapping[str, str] | None = None) -> str:
    """The plan as a Mermaid flowchart, for GitHub, GitLab and most documentation tools."""
    states = states or {}
    lines = ["flowchart TD"]
    for step in plan.steps:
        lines.append(f'  s{step.index}["{escape(step.name)}<br/><small>{escape(step.operation.name)}</small>"]')
        lines += [f"  s{dependency} --> s{step.index}" for dependency in step.needs]
    for state in dict.fromkeys(states.values()):
        fill, stroke = COLOURS.get(state, COLOURS["pending"])
        lines.append(f"  classDef {state} fill:{fill},stroke:{stroke}")
        members = ",".join(f"s{step.index}" for step in plan.steps if states.get(step.name) == state)
        lines.append(f"  class {members} {state}")
    return "\n".join(lines)


def dot(plan: CompiledPlan, states: Mapping[str, str] | None = None) -> str:
    """The plan as a DOT graph, for Graphviz."""
    states = states or {}
    lines = [f'digraph "{plan.plan.name}" {{', '  rankdir=TB; node [shape=box, style="rounded,filled"];']
    for step in plan.steps:
        fill, stroke = COLOURS.get(states.get(step.name, "pending"), COLOURS["pending"])
        label = f"{step.name}\\n{step.operation.name}"
        lines.append(f'  "{step.name}" [label="{label}", fillcolor="{fill}", color="{stroke}"];')
        lines += [f'  "{plan.steps[d].name}" -> "{step.name}";' for d in step.needs]
    return "\n".join([*lines, "}"])


def svg(plan: CompiledPlan, states: Mapping[str, str] | None = None, *, link: str = "") -> str:
    """The plan as a self-contained SVG, with the levels from top to bottom.

    With `link`, each step links to `link` followed by its name: `#step-row-` leads to a row of the same page.
    """
    states = states or {}
    widest = max(len(members) for members in plan.levels)
    width = 2 * _MARGIN + widest * _WIDTH + (widest - 1) * _GAP_X
    height = 2 * _MARGIN + len(plan.levels) * _HEIGHT + (len(plan.levels) - 1) * _GAP_Y
    place = _places(plan, width)
    edges, boxes = [], []
    for step in plan.steps:
        x, y = place[step.index]
        for dependency in step.needs:
            from_x, from_y = place[dependency]
            begin, end, middle = from_y + _HEIGHT, y, (from_y + _HEIGHT + y) / 2
            edges.append(
                f'<path d="M{from_x + _WIDTH / 2:g},{begin:g} C{from_x + _WIDTH / 2:g},{middle:g} '
                f'{x + _WIDTH / 2:g},{middle:g} {x + _WIDTH / 2:g},{end:g}" marker-end="url(#arrow)"/>'
            )
        box = _box(step, x, y, states.get(step.name, ""))
        boxes.append(f'<a href="{escape(link + step.name)}">{box}</a>' if link else box)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="system-ui, sans-serif" role="img">',
            f"<title>{escape(plan.plan.name)}</title>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#6b7280"/></marker></defs>',
            f'<g fill="none" stroke="#6b7280" stroke-width="1.3">{"".join(edges)}</g>',
            *boxes,
            "</svg>",
        ]
    )


def _places(plan: CompiledPlan, width: int) -> dict[int, tuple[float, float]]:
    """The position of each step: levels are centred, and steps ordered by the mean position of their dependencies."""
    place: dict[int, tuple[float, float]] = {}
    for level, members in enumerate(plan.levels):

        def pull(i: int) -> float:
            needs = plan.steps[i].needs
            return sum(place[d][0] for d in needs) / len(needs) if needs else 0.0

        row = len(members) * _WIDTH + (len(members) - 1) * _GAP_X
        x = (width - row) / 2
        for i in sorted(members, key=pull):
            place[i] = (x, _MARGIN + level * (_HEIGHT + _GAP_Y))
            x += _WIDTH + _GAP_X
    return place


def _box(step: CompiledStep, x: float, y: float, state: str) -> str:
    fill, stroke = COLOURS.get(state, COLOURS["pending"])
    dashes = ' stroke-dasharray="5 3"' if step.always or state in {StepState.SKIPPED, StepState.NOT_RUN} else ""
    name = step.name if len(step.name) <= 24 else f"{step.name[:23]}…"
    below = step.operation.name + (f" · {state}" if state else "")
    tip = escape(f"{step.name}: {step.step.description or step.operation.summary}")
    return (
        f'<g id="step-{escape(step.name)}" class="{escape(state)}"><title>{tip}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="7" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.5"{dashes}/>'
        f'<text x="{x + _WIDTH / 2:g}" y="{y + 20:g}" text-anchor="middle" font-size="13" '
        f'font-weight="600" fill="#111827">{escape(name)}</text>'
        f'<text x="{x + _WIDTH / 2:g}" y="{y + 36:g}" text-anchor="middle" font-size="10.5" '
        f'fill="#374151">{escape(below)}</text></g>'
    )


FORMATS = {"text": text, "mermaid": mermaid, "dot": dot, "svg": svg}
