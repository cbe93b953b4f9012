"""The figures of a run, their targets, and the tables of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

HEADINGS = ("figure", "Longshore", "beside", "share", "target", "result")


@dataclass(frozen=True)
class Target:
    """A limit of a figure or, with `of`, a limit of the figure divided by the figure of this peer."""

    limit: float
    at_most: bool
    of: str = ""

    def holds(self, judged: float) -> bool:
        return judged <= self.limit if self.at_most else judged >= self.limit

    def text(self, unit: str) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {number(self.limit)} × {self.of}" if self.of else f"{sign} {with_unit(self.limit, unit)}"


def at_least(limit: float, of: str = "") -> Target:
    return Target(limit, at_most=False, of=of)


def at_most(limit: float, of: str = "") -> Target:
    return Target(limit, at_most=True, of=of)


@dataclass(frozen=True)
class Figure:
    """One figure of Longshore, with the figures of its peers in the same unit.

    A text instead of a value is the reason for the missing value. A figure without a value counts as missed, and also a
    figure whose target names a peer without a value.
    """

    name: str
    value: float | str
    unit: str = ""
    peers: Mapping[str, float | str] = field(default_factory=dict)
    target: Target | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """The value divided by that of the target's peer, or of the first peer; None if one of them is missing."""
        peer = self.peers.get(self.target.of if self.target and self.target.of else next(iter(self.peers), ""))
        if isinstance(self.value, str) or isinstance(peer, str) or not peer:
            return None
        return self.value / peer

    @property
    def met(self) -> bool | None:
        """Whether the figure meets its target; None for a figure with a value and without a target."""
        if self.target is None:
            return False if isinstance(self.value, str) else None
        judged = self.share if self.target.of else self.value
        return judged is not None and not isinstance(judged, str) and self.target.holds(judged)

    def cells(self) -> tuple[str, ...]:
        """The row of the table, a cell for each of `HEADINGS`."""
        beside = "; ".join(f"{peer} {with_unit(value, self.unit)}" for peer, value in self.peers.items())
        share = "" if self.share is None else f"{self.share:.2f}"
        result = {None: "", True: "met", False: "MISSED"}[self.met]
        value = with_unit(self.value, self.unit) + (f" ({self.note})" if self.note else "")
        return self.name, value, beside, share, self.target.text(self.unit) if self.target else "", result


@dataclass(frozen=True)
class Section:
    """Figures of one measure under the same conditions."""

    title: str
    figures: Sequence[Figure]


def number(value: float) -> str:
    """A number with three significant digits, and with all digits of the integer part."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_unit(value: float | str, unit: str) -> str:
    if isinstance(value, str):
        return f"not measured: {value}"
    return f"{number(value)}{'' if unit in {'', '%'} else ' '}{unit}"


def missed(sections: Iterable[Section]) -> list[Figure]:
    """The figures that miss their targets."""
    return [figure for section in sections for figure in section.figures if figure.met is False]


def as_text(section: Section) -> str:
    """The section for a terminal, in columns."""
    rows = [HEADINGS, *(figure.cells() for figure in section.figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([section.title, *lines])


def as_markdown(section: Section) -> str:
    """The section as a chapter of a page."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(figure.cells() for figure in section.figures)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {section.title}", "", *lines])
