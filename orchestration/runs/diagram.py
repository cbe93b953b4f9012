"""Diagrams of a plan as text, Mermaid, DOT or SVG, coloured by the states in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape as escape_html

from longshore.orchestration.language import printable
from longshore.orchestration.language.quantities import quantity
from longshore.orchestration.plans.compiled import CompiledPlan, CompiledStep
from longshore.orchestration.runs.grouping import Group, counted, groups, urgency
from longshore.orchestration.runs.layout import HEIGHT, layout
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.runs.styles import STYLES, Style, style_of, symbol_of
from longshore.orchestration.states import STEP_BAD, UNDO_FINAL, StepState, UndoState

#: Fill and stroke by state, for a light background.
COLOURS = {state: (style.light.fill, style.light.border) for state, style in STYLES.items()}


#: The width in pixels below which a box has no room for the operation beside the state.
_NARROW = 180


def escape(text: str) -> str:
    """Text escaped for XML, with control characters made visible."""
    return escape_html(printable.line(text))


def state_of(step: StepReport) -> str:
    """The state to colour a step by: that of its undo, except for a failed step whose undo has ended.

    The cause of the failure stays visible.
    """
    undo = step.undo.status if step.undo else None
    if undo is None or (undo is UndoState.UNDONE and step.status in STEP_BAD):
        return str(step.status)
    return str(undo if undo in UNDO_FINAL else UndoState.UNDOING)


def states_of(report: Report | None) -> dict[str, str]:
    """The state to colour each step by, that of its undo included."""
    return {step.name: state_of(step) for step in report.steps} if report is not None else {}


def text(plan: CompiledPlan, states: Mapping[str, str] | None = None) -> str:
    """The plan as text: its levels, each step with its dependencies."""
    states = states or {}
    lines = [f"{plan.plan.name}: {quantity(len(plan), 'step')}, {quantity(len(plan.levels), 'level')}"]
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


def svg(
    plan: CompiledPlan,
    states: Mapping[str, str] | None = None,
    *,
    link: str = "",
    width: int = 1200,
    columns: int = 5,
    fold: bool = False,
    ids: str = "step-",
) -> str:
    """The plan as a self-contained SVG, with the levels from left to right in bands of so many columns.

    With `link`, each step links to `link` followed by its name: `#step-row-` leads to a row of the same page. With
    `fold`, similar steps of a level are one box. `ids` begins the id of each box.
    """
    states = states or {}
    nodes = groups(plan) if fold else groups(plan, len(plan) + 1)
    made = layout(plan, nodes, width, columns)
    boxes = []
    for number, node in enumerate(nodes):
        x, y = made.places[number]
        first = plan.steps[node.members[0]]
        shown = [states.get(plan.steps[i].name, "") for i in node.members]
        urgent = min(node.members, key=lambda i: urgency(states.get(plan.steps[i].name, "")))
        inner = _stack(node, shown, made.box) if node.folded else _box(first, shown[0], made.box)
        name = node.key if node.folded else first.name
        state = escape(_most_urgent(shown))
        box = f'<g id="{ids}{escape(name)}" data-state="{state}" transform="translate({x:g} {y:g})">'
        box += f"{inner}</g>"
        boxes.append(f'<a href="{escape(link + plan.steps[urgent].name)}">{box}</a>' if link else box)
    edges = "".join(f'<path d="{path}" marker-end="url(#{ids}arrow)"/>' for path in made.paths)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {made.height}" width="{width}" '
            f'height="{made.height}" font-family="system-ui, sans-serif" role="img">',
            f"<title>{escape(plan.plan.name)}</title>",
            f'<defs><marker id="{ids}arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#6b7280"/></marker></defs>',
            f'<g fill="none" stroke="#6b7280" stroke-width="1.3">{edges}</g>',
            *boxes,
            "</svg>",
        ]
    )


def _most_urgent(states: Sequence[str]) -> str:
    return min(states, key=urgency)


def _box(step: CompiledStep, state: str, width: int) -> str:
    style = style_of(state or "pending")
    quiet = step.always or state in {"", StepState.PENDING, StepState.SKIPPED, StepState.NOT_RUN}
    below = step.operation.name + (f" · {style.label}" if state else "")
    below = style.label if state and width < _NARROW else below
    tip = escape(f"{step.name}: {step.step.description or step.operation.summary}")
    return f"<title>{tip}</title>" + _frame(width, style, quiet) + _words(step.name, below, state, width)


def _stack(group: Group, states: Sequence[str], width: int) -> str:
    """A box for several steps, with a bar of their states."""
    style = style_of(_most_urgent(states) or "pending")
    counts = counted(state or "pending" for state in states)
    below = ", ".join(f"{count} {style_of(state).label}" for state, count in counts)
    bars, x = [], 14.0
    for state, count in counts:
        part = max(5.0, count / len(states) * (width - 24 - 5 * len(counts)))
        shade = style_of(state).light
        bars.append(
            f'<rect data-state="{escape(state)}" class="part" x="{x:.1f}" y="{HEIGHT - 8}" width="{part:.1f}" '
            f'height="4" fill="{shade.border}"/>'
        )
        x += part
    name = f"{group.name} × {len(states)}"
    behind = (
        f'<rect class="behind" x="4" y="4" width="{width}" height="{HEIGHT}" rx="7" fill="{style.light.fill}" '
        f'stroke="{style.light.border}"/>'
    )
    tip = f"<title>{escape(f'{group.name}: {below}')}</title>"
    return tip + behind + _frame(width, style, False) + _words(name, below, "", width, raised=3) + "".join(bars)


def _frame(width: int, style: Style, dashed: bool) -> str:
    dashes = ' stroke-dasharray="5 3"' if dashed else ""
    shade = style.light
    return (
        f'<rect class="box" width="{width}" height="{HEIGHT}" rx="7" fill="{shade.fill}" stroke="{shade.border}" '
        f'stroke-width="1.5"{dashes}/>'
        f'<rect class="edge" x="1" y="7" width="4" height="{HEIGHT - 14}" rx="2" fill="{shade.border}"/>'
    )


def _words(name: str, below: str, state: str, width: int, raised: int = 0) -> str:
    """The two lines of a box, clipped at its side, and the symbol of its state."""
    narrow = width < _NARROW
    size, letter, room = (12, 7.6, width - 20) if narrow else (13, 8.0, width - (38 if state else 26))
    symbol = (
        f'<text class="symbol" x="{width - 16}" y="{42 if narrow else 33}" text-anchor="middle" font-size="15" '
        f'font-weight="700" fill="{style_of(state).light.text}">{symbol_of(state)}</text>'
        if state
        else ""
    )
    return (
        f'<svg width="{width - (8 if narrow or not state else 28)}" height="{HEIGHT}">'
        f'<text class="name" x="14" y="{23 - raised}" font-size="{size}" font-weight="600" fill="#111827">'
        f"{escape(_short(name, room / letter))}</text>"
        f'<text class="below" x="14" y="{41 - raised - raised // 2}" font-size="11" fill="#374151">'
        f"{escape(_short(below, room / 5.9))}</text></svg>{symbol}"
    )


def _short(text: str, room: float) -> str:
    return text if len(text) <= room else f"{text[: int(room) - 1]}…"


FORMATS = {"text": text, "mermaid": mermaid, "dot": dot, "svg": svg}
