"""The timeline of a run: each attempt at a step or at its undo as a bar, read from the run's events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.grouping import groups, urgency
from longshore.orchestration.states import STEP_BAD, RunState

#: The highest number of rows, of parts, and about that of bars in a folded row; a run may have thousands.
LONGEST = 1000
#: Bars on top of each other in the row of a fan-out or of folded steps.
_LANES = 5
#: The state that a run has after an event, and for `run_ended` none.
_PHASES = {
    "run_started": RunState.RUNNING, "run_resumed": RunState.RUNNING, "run_suspended": RunState.SUSPENDED,
    "run_aborting": RunState.ABORTING, "run_undoing": RunState.UNDOING, "run_finishing": RunState.FINISHING,
}  # fmt: skip


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
        elif verb == "waiting" and where in open_:
            done[open_[where]] = replace(done[open_[where]], how="waiting")
        elif event.name == "lease_lost":
            _close(done, open_, where, event.at, "lost", "its worker was lost")
    return done


def _close(
    done: list[Bar], open_: dict[tuple[str, bool], int], where: tuple[str, bool], at: int, how: str, error: str = ""
) -> None:
    number = open_.pop(where, None)
    if number is not None:
        done[number] = replace(done[number], end=at, how=how, error=error)


@dataclass(frozen=True)
class Drawn:
    """A bar with its place in percent of the timeline, and its lane from above."""

    left: float
    width: float
    state: str
    undo: bool
    tip: str
    lane: int = 0
    text: str = ""


@dataclass(frozen=True)
class Row:
    """The bars of a step, of a unit of a step, or of folded steps; `parts` are the rows folded into the row."""

    key: str
    name: str
    bars: tuple[Drawn, ...]
    parts: tuple[Row, ...] = ()
    #: The step that the row leads to.
    step: str = ""
    lanes: int = 1


@dataclass(frozen=True)
class Timeline:
    """The rows of a run, and the phases of the run itself. Times are in ms of Redis's clock."""

    begin: int
    end: int
    phases: tuple[Drawn, ...]
    rows: tuple[Row, ...]
    #: When the compensations began, in percent, or None.
    undone_from: float | None = None
    #: Rows that are left out.
    more: int = 0

    @property
    def span(self) -> int:
        """The length of the timeline in ms."""
        return self.end - self.begin


@dataclass
class _Scale:
    begin: int
    end: int
    now: int
    #: Rows of parts so far.
    drawn: int = field(default=0)

    def at(self, ms: int) -> float:
        return round((ms - self.begin) * 100 / (self.end - self.begin), 3)

    def draw(self, bar: Bar, lane: int = 0) -> Drawn:
        end = self.now if bar.end is None else bar.end
        how = bar.how or ("undoing" if bar.undo else "running")
        words = f"{'undo of ' if bar.undo else ''}{bar.part}, attempt {bar.attempt}: {how.replace('_', ' ')}"
        tip = f"{words}, {duration((end - bar.begin) / 1000)}"
        tip += (f" on {bar.node}" if bar.node else "") + (f": {bar.error}" if bar.error else "")
        return Drawn(self.at(bar.begin), self.at(end) - self.at(bar.begin), how, bar.undo, tip, lane)


def timeline(plan: CompiledPlan, events: Sequence[Event], now: int) -> Timeline | None:
    """The timeline of a run; None where no attempt has begun. The undo of a step is in the row of the step."""
    found = bars(events)
    if not found:
        return None
    begin = next((event.at for event in events if event.name == "run_started"), events[0].at)
    ended = events[-1].at if any(event.name == "run_ended" for event in events) else now
    end = max([bar.end if bar.end is not None else now for bar in found] + [begin + 1, ended])
    scale = _Scale(begin, end, now)
    by_part: dict[str, list[Bar]] = {}
    for bar in found:
        by_part.setdefault(bar.part, []).append(bar)
    units: dict[str, list[str]] = {}
    for part in by_part:
        name = part.partition("[")[0]
        if part != name:
            units.setdefault(name, []).append(part)
    rows, more = [], 0
    for group in groups(plan):
        names = [plan.steps[i].name for i in group.members]
        parts = [_step(scale, by_part, units, name) for name in names if name in by_part or name in units]
        if not group.folded or len(parts) < 2:
            rows += parts
            continue
        every = [bar for name in names for bar in by_part.get(name, [])]
        more += max(0, scale.drawn + len(parts) - LONGEST)
        shown = tuple(parts[: max(0, LONGEST - scale.drawn)])
        scale.drawn += len(parts)
        rows.append(_folded(scale, group.key, f"{group.name} ({len(parts)})", every, shown))
    undone = next((event.at for event in events if event.name == "run_undoing"), None)
    from_ = scale.at(undone) if undone is not None else None
    more += max(0, len(rows) - LONGEST)
    return Timeline(begin, end, _phases(scale, events), tuple(rows[:LONGEST]), from_, more)


def _step(scale: _Scale, by_part: dict[str, list[Bar]], units: dict[str, list[str]], name: str) -> Row:
    own, parts = by_part.get(name, []), sorted(units.get(name, []), key=_number)
    if not parts:
        return Row(name, name, tuple(map(scale.draw, own)), step=name)
    every = [bar for part in parts for bar in by_part[part]]
    shown = parts[: max(0, LONGEST - scale.drawn)]
    scale.drawn += len(parts)
    rows = tuple(Row(part, part, tuple(map(scale.draw, by_part[part])), step=name) for part in shown)
    return replace(_folded(scale, name, f"{name} ({len(parts)})", every, rows), step=name)


def _number(part: str) -> int:
    return int(part.rpartition("[")[2].rstrip("]") or 0)


def _folded(scale: _Scale, key: str, name: str, every: list[Bar], parts: tuple[Row, ...]) -> Row:
    """A row for several parts, whose bars share a few lanes."""
    free = [0] * _LANES
    drawn = []
    for bar in sorted(every, key=lambda bar: bar.begin):
        lane = next((lane for lane, until in enumerate(free) if until <= bar.begin), free.index(min(free)))
        free[lane] = max(free[lane], scale.now if bar.end is None else bar.end)
        drawn.append(scale.draw(bar, lane))
    if len(drawn) > LONGEST:
        every_nth = -(-len(drawn) // LONGEST)
        drawn = [bar for number, bar in enumerate(drawn) if number % every_nth == 0 or bar.state in STEP_BAD]
    # Later elements cover earlier ones: failures stay visible.
    drawn.sort(key=lambda bar: -urgency(bar.state))
    step = parts[0].step if parts else ""
    return Row(key, name, tuple(drawn), parts, step, 1 + max((bar.lane for bar in drawn), default=0))


def _phases(scale: _Scale, events: Sequence[Event]) -> tuple[Drawn, ...]:
    """The states that the run went through, from its start."""
    found: list[Drawn] = []
    state, since, before = "", scale.begin, ""
    for event in events:
        after = "" if event.name == "run_ended" else _PHASES.get(event.name)
        if after is None:
            continue
        if event.name == "run_resumed" and state == RunState.SUSPENDED and before:
            after = before
        if state and event.at > since:
            found.append(_phase(scale, str(state), since, event.at))
        before, state, since = state, str(after), event.at
    if state:
        found.append(_phase(scale, state, since, scale.end))
    return tuple(found)


def _phase(scale: _Scale, state: str, begin: int, end: int) -> Drawn:
    left, took = scale.at(begin), duration((end - begin) / 1000)
    undo = state == RunState.UNDOING
    return Drawn(left, round(scale.at(end) - left, 3), state, undo, f"{state} for {took}", text=state)


def duration(seconds: float) -> str:
    """A duration for people: `0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, part, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
