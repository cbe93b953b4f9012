"""The timeline of a run: each attempt as a bar, drawn from the run's events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs.diagram import COLOURS, escape
from longshore.orchestration.runs.events import Event

#: Dimensions in pixels.
_WIDTH, _LEFT, _ROW, _TOP = 900, 190, 22, 26
_SHORTEST_BAR = 3
#: The highest number of rows drawn; a run may have thousands.
LONGEST = 400


@dataclass(frozen=True)
class Bar:
    """One attempt. Times are in ms of Redis's clock; `end` is None while the attempt runs.

    `how` is the final state, `retrying` for an attempt that is retried, or `lost` for one whose lease expired.
    """

    part: str
    undo: bool
    attempt: int
    begin: int
    end: int | None = None
    how: str = ""
    node: str = ""
    error: str = ""

    @property
    def step(self) -> str:
        """The name of the step, without the number of the item."""
        return self.part.partition("[")[0]


def bars(events: Iterable[Event]) -> list[Bar]:
    """The attempts of a run, in the order in which they began."""
    done: list[Bar] = []
    open_: dict[tuple[str, bool], int] = {}
    for event in events:
        kind, _, verb = event.name.partition("_")
        undo = kind == "undo" or (event.name == "lease_lost" and bool(event.fields.get("undo")))
        part = event.step or ""
        where = (part, undo)
        if verb == "started" and kind in {"step", "item", "undo"}:
            # A fanned-out step has a bar for each item, and one around them.
            _close(done, open_, where, event.at, "lost")
            owner = event.fields.get("owner", "").partition("@")[2].rpartition("/")[0]
            open_[where] = len(done)
            done.append(Bar(part, undo, int(event.fields.get("attempt") or 1), event.at, node=owner))
        elif verb in {"ended", "retrying"} and kind in {"step", "item", "undo"}:
            how = event.fields.get("status", verb)
            _close(done, open_, where, event.at, how, event.fields.get("error", ""))
        elif event.name == "lease_lost":
            _close(done, open_, where, event.at, "lost", "its worker was lost")
    return done


def _close(
    done: list[Bar], open_: dict[tuple[str, bool], int], where: tuple[str, bool], at: int, how: str, error: str = ""
) -> None:
    number = open_.pop(where, None)
    if number is not None:
        done[number] = replace(done[number], end=at, how=how, error=error)


def gantt(plan: CompiledPlan, events: list[Event], now: int) -> str:
    """The timeline as an SVG, with a row for each step and rows for undos below; '' where no attempt has begun."""
    found = bars(events)
    if not found:
        return ""
    begin = events[0].at
    end = max([bar.end if bar.end is not None else now for bar in found] + [begin + 1])
    rows: dict[tuple[str, bool], list[Bar]] = {}
    for bar in sorted(found, key=lambda bar: (bar.undo, plan.index.get(bar.step, 0), bar.part)):
        rows.setdefault((bar.part, bar.undo), []).append(bar)
    shown = list(rows.items())[:LONGEST]
    height = _TOP + _ROW * len(shown) + 8
    scale = (_WIDTH - _LEFT - 10) / (end - begin)
    drawn = [*_axis(begin, end, scale, height)]
    for number, ((part, undo), those) in enumerate(shown):
        y = _TOP + number * _ROW
        name = f"↩ {part}" if undo else part
        drawn.append(
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end" font-size="12" fill="currentColor">'
            f"{escape(name if len(name) <= 26 else name[:25] + '…')}</text>"
        )
        drawn += [_bar(bar, y, begin, now, scale) for bar in those]
    more = "" if len(rows) <= LONGEST else f"<p>… and {len(rows) - LONGEST} more</p>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img"><title>when each step ran</title>{"".join(drawn)}</svg>{more}'
    )


def _axis(begin: int, end: int, scale: float, height: int) -> Iterable[str]:
    for part in range(5):
        at = (end - begin) * part / 4
        x = _LEFT + at * scale
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 6}" stroke="currentColor" opacity="0.2"/>'
            f'<text x="{x:.1f}" y="12" text-anchor="middle" font-size="11" fill="currentColor">{at / 1000:.1f} s</text>'
        )


def _bar(bar: Bar, y: int, begin: int, now: int, scale: float) -> str:
    end = bar.end if bar.end is not None else now
    how = bar.how or "running"
    fill, stroke = COLOURS.get(how, COLOURS["pending"])
    took = f"{(end - bar.begin) / 1000:.2f} s"
    what = f"{'undo of ' if bar.undo else ''}{bar.part}, attempt {bar.attempt}: {how}, {took}"
    tip = escape(what + (f" on {bar.node}" if bar.node else "") + (f": {bar.error}" if bar.error else ""))
    return (
        f'<rect class="{escape(how)}" x="{_LEFT + (bar.begin - begin) * scale:.1f}" y="{y + 3}" rx="3" '
        f'width="{max((end - bar.begin) * scale, _SHORTEST_BAR):.1f}" height="{_ROW - 7}" fill="{fill}" '
        f'stroke="{stroke}"><title>{tip}</title></rect>'
    )
