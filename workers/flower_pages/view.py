"""The data of the pages as templates need them: badges, facts, rows of steps, styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs import diagram
from longshore.orchestration.runs.grouping import counted, groups, urgency
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import ItemReport, StepReport
from longshore.orchestration.runs.styles import ON_BORDER_DARK, ON_BORDER_LIGHT, STYLES, Shade, style_of, symbol_of
from longshore.orchestration.runs.timeline import Bar
from longshore.orchestration.states import STEP_BAD, UNDO_OPEN

__all__ = ["StepGroup", "ago", "badge", "clock", "counted", "shown_units", "step_groups", "stylesheet"]

#: Units of a step that its row lists, the failed ones first.
_UNITS = 200


def badge(state: str, count: int | None = None, id_: str = "") -> str:
    """A state as a coloured badge of HTML, with its word and its symbol."""
    label = style_of(state).label
    shown = label if count is None else f"{count} {label}"
    named = f' id="{escape(id_)}"' if id_ else ""
    symbol = f'<span class="symbol" aria-hidden="true">{escape(symbol_of(state))}</span>'
    return (
        f'<span class="badge-state" data-state="{escape(state)}" role="img" aria-label="{escape("state: " + shown)}">'
        f"{symbol}<span{named}>{escape(shown)}</span></span>"
    )


def stylesheet() -> str:
    """The colours of all states as a style sheet, for light and dark pages."""
    rules = []
    for state, style in STYLES.items():
        place = f'.longshore [data-state="{state}"]'
        rules.append(f"{place} {{ {_variables(style.light, ON_BORDER_LIGHT)} }}")
        rules.append(f'[data-bs-theme="dark"] {place} {{ {_variables(style.dark, ON_BORDER_DARK)} }}')
    return "\n".join(rules)


def _variables(shade: Shade, on_border: str) -> str:
    return f"--fill: {shade.fill}; --edge: {shade.border}; --ink: {shade.text}; --on-edge: {on_border};"


@dataclass(frozen=True)
class StepRow:
    """One row of the table of steps."""

    step: StepReport
    index: int
    hosts: list[str]
    #: The state to colour the row by.
    state: str
    #: Units with their display names, the failed ones first.
    units: list[tuple[str, ItemReport]] = field(default_factory=list)
    counts: list[tuple[str, int]] = field(default_factory=list)
    #: The display names of the step and its units that have output.
    logs: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The rank of the row where urgent states come first."""
        return urgency(self.state)

    @property
    def urgent(self) -> bool:
        """Whether the row stays visible while its group is folded."""
        undo = self.step.undo
        moves = self.state in {"running", "retrying", "waiting", "undoing"}
        return moves or self.step.status in STEP_BAD or (undo is not None and undo.status in UNDO_OPEN)

    @property
    def words(self) -> str:
        """The text that a filter searches."""
        step = self.step
        parts = [step.name, step.op, self.state, str(step.status), *self.hosts, step.error or "", step.reason or ""]
        return " ".join(parts).lower()


@dataclass(frozen=True)
class StepGroup:
    """Rows of similar steps, folded under one row with the number of steps in each state; or one row."""

    key: str
    name: str
    rows: list[StepRow]
    counts: list[tuple[str, int]]

    @property
    def folded(self) -> bool:
        """Whether the group has a row of its own."""
        return len(self.rows) > 1


def step_groups(
    plan: CompiledPlan, report: Report, bars: Mapping[str, Sequence[Bar]], logs: Mapping[str, list[str]]
) -> list[StepGroup]:
    """The rows of all steps, in the order of the plan, in groups."""
    found = []
    for group in groups(plan):
        rows = [_row(report.steps[i], i, bars, logs) for i in group.members]
        found.append(StepGroup(group.key, group.name, rows, counted(row.state for row in rows)))
    return found


def _row(step: StepReport, index: int, bars: Mapping[str, Sequence[Bar]], logs: Mapping[str, list[str]]) -> StepRow:
    nodes = [bar.node.partition("@")[2] for bar in bars.get(step.name, []) if bar.node]
    hosts = dict.fromkeys([host.host for host in step.hosts if host.host] + nodes)
    units = [(f"{step.name}[{number}]", unit) for number, unit in shown_units(step)]
    counts = counted(str(unit.status) for unit in step.items)
    return StepRow(step, index, list(hosts), diagram.state_of(step), units, counts, logs.get(step.name, []))


def shown_units(step: StepReport) -> list[tuple[int, ItemReport]]:
    """The units that the row of a step lists, by their numbers, the failed ones first."""
    return sorted(enumerate(step.items), key=lambda entry: urgency(str(entry[1].status)))[:_UNITS]


def ago(at: datetime) -> str:
    """The age of a time, in its largest unit."""
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def clock(at: datetime | str) -> str:
    """A time to the second, in UTC."""
    when = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
