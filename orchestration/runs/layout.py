"""The layout of a plan's diagram: levels from left to right, in bands as wide as the page.

A chain uses the width of the page and continues in the next band. An edge that crosses levels has a lane of its own
between their boxes. Edges that follow from other edges are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs.grouping import Group

#: Dimensions in pixels.
HEIGHT = 54
_GAP, _LANE, _MARGIN, _BAND, _TURN = 14, 12, 16, 34, 8
_WIDEST, _ROOM, _NARROW_ROOM = 330, 40, 26
#: A node by its number, or the lane of a node's edges through a level: (node, level).
_Item = int | tuple[int, int]


@dataclass
class Layout:
    """Positions of the boxes by node, and the edges as paths of SVG."""

    width: int
    height: int = 0
    box: int = 0
    places: dict[int, tuple[float, float]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)


def layout(plan: CompiledPlan, nodes: Sequence[Group], width: int, columns: int) -> Layout:
    """Place each group of steps as one box."""
    level = {number: plan.steps[node.members[0]].level for number, node in enumerate(nodes)}
    edges = _edges(plan, nodes)
    if len(plan.levels) == 1:
        # Independent steps form a grid.
        level = {number: number for number in level}
    levels = max(level.values()) + 1
    rows: list[list[_Item]] = [[] for _ in range(levels)]
    for number, at in level.items():
        rows[at].append(number)
    for begin, end in edges:
        for at in range(level[begin] + 1, level[end]):
            if (begin, at) not in rows[at]:
                rows[at].append((begin, at))
    columns = min(columns, levels)
    made = Layout(width)
    room = _ROOM if width / columns > 200 else _NARROW_ROOM
    pitch = (width - 2 * _MARGIN + room) / columns
    made.box = round(min(_WIDEST, pitch - room))
    pitch = (width - 2 * _MARGIN - made.box) / (columns - 1) if columns > 1 else pitch
    middle = _place(made, rows, _before(edges, level), columns, pitch)
    bottoms = _bottoms(rows, columns)
    for begin, end in edges:
        items: list[_Item] = [begin, *((begin, at) for at in range(level[begin] + 1, level[end])), end]
        stops = [(level[begin] + n, middle[item]) for n, item in enumerate(items)]
        made.paths.append(_path(made, stops, columns, pitch, bottoms))
    return made


def _edges(plan: CompiledPlan, nodes: Sequence[Group]) -> list[tuple[int, int]]:
    """The edges between nodes, without those that follow from others."""
    node_of = {i: number for number, node in enumerate(nodes) for i in node.members}
    needs: dict[int, set[int]] = {number: set() for number in range(len(nodes))}
    for step in plan.steps:
        needs[node_of[step.index]] |= {node_of[i] for i in step.needs}
    above = dict.fromkeys(needs, 0)
    for number in sorted(needs, key=lambda number: plan.steps[nodes[number].members[0]].level):
        for other in needs[number]:
            above[number] |= above[other] | 1 << other
    return [
        (begin, end)
        for end, before in needs.items()
        for begin in sorted(before)
        if not any(above[other] >> begin & 1 for other in before)
    ]


def _before(edges: list[tuple[int, int]], level: dict[int, int]) -> dict[_Item, list[_Item]]:
    """The items of the previous level that each item is joined to."""
    found: dict[_Item, list[_Item]] = {}
    for begin, end in edges:
        items: list[_Item] = [begin, *((begin, at) for at in range(level[begin] + 1, level[end])), end]
        for one, other in pairwise(items):
            found.setdefault(other, []).append(one)
    return found


def _place(
    made: Layout, rows: list[list[_Item]], before: dict[_Item, list[_Item]], columns: int, pitch: float
) -> dict[_Item, float]:
    """Place the boxes band by band, each item near the items before it; return the middle of each item."""
    middle: dict[_Item, float] = {}
    top = float(_MARGIN)
    for first in range(0, len(rows), columns):
        band = rows[first : first + columns]
        height = max(_height(row) for row in band)
        for column, row in enumerate(band):
            y = top + (height - _height(row)) / 2

            def pull(item: _Item) -> float:
                joined = [middle[one] for one in before.get(item, [])]
                return sum(joined) / len(joined) if joined else 0.0

            for item in sorted(row, key=pull):
                tall = HEIGHT if isinstance(item, int) else _LANE
                middle[item] = y + tall / 2
                if isinstance(item, int):
                    made.places[item] = (_MARGIN + column * pitch, y)
                y += tall + _GAP
        top += height + _BAND
    made.height = round(top - _BAND + _MARGIN)
    return middle


def _height(row: list[_Item]) -> int:
    return sum(HEIGHT if isinstance(item, int) else _LANE for item in row) + _GAP * (len(row) - 1)


def _bottoms(rows: list[list[_Item]], columns: int) -> list[float]:
    """The lower edge of each band."""
    found, top = [], float(_MARGIN)
    for first in range(0, len(rows), columns):
        top += max(_height(row) for row in rows[first : first + columns])
        found.append(top)
        top += _BAND
    return found


def _path(made: Layout, stops: list[tuple[int, float]], columns: int, pitch: float, bottoms: list[float]) -> str:
    """One edge through the levels that it crosses. An edge into the next band runs below its own."""
    level, y = stops[0]
    x = _MARGIN + level % columns * pitch + made.box
    path = [f"M{x:g},{y:g}"]
    for number, (at, to_y) in enumerate(stops[1:], 1):
        to_x = _MARGIN + at % columns * pitch
        if at % columns:
            half = (to_x - x) / 2
            path.append(f"C{x + half:g},{y:g} {x + half:g},{to_y:g} {to_x:g},{to_y:g}")
        else:
            turn, down, left = _TURN, bottoms[at // columns - 1] + _BAND / 2, 4
            path.append(
                f"h2 q{turn},0 {turn},{turn} V{down - turn:g} q0,{turn} -{turn},{turn} H{left + turn} "
                f"q-{turn},0 -{turn},{turn} V{to_y - turn:g} q0,{turn} {turn},{turn} H{to_x:g}"
            )
        x, y = to_x, to_y
        if number < len(stops) - 1:
            x += made.box
            path.append(f"H{x:g}")
    return " ".join(path)
