"""User hooks, invoked in the order of the run's event stream.

`run.watch(hooks=…)` and `run.wait(hooks=…)` invoke hooks in the watching process, exactly once for each event after the
watcher's cursor. Workers invoke the hooks of the entry-point group `longshore.hooks` (a Hooks, or a function that
returns one) at least once for each event; `hooks.event.id` identifies a repetition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs import report
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import StepReport
from longshore.orchestration.store.run_store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LevelSummary:
    """The names of the steps of one level of a plan."""

    steps: tuple[str, ...]

    @property
    def parallel(self) -> bool:
        """Whether the level has more than one step."""
        return len(self.steps) > 1


@dataclass(frozen=True)
class PlanSummary:
    """The plan of a run, as passed to `before_plan`."""

    run_id: str
    plan: str
    total_steps: int
    levels: tuple[LevelSummary, ...]


def _nothing(*_: Any) -> None:
    """The hook that does nothing."""


@dataclass
class Hooks:
    """Functions of an application that Longshore calls for the events of a run. Each hook is optional.

    * `before_plan(summary)`, with a PlanSummary, and `after_plan(report)`, with a Report
    * `before_level(level, steps, parallel)` – the number of the level, from 0; the names of its steps; and whether
      there are several
    * `after_level(level, results)` – the StepReports of the level, including skipped steps
    * `before_step(name)` – not for a skipped step
    * `after_step(result)` – a StepReport
    * `on_retry(name, attempt, error)` – the failed attempt, from 1; called before the delay
    * `on_skip(name, reason)`
    * `on_undo(result)` – a StepReport whose `undo` has ended; once for each step

    `event` is the event of the present call. An exception of a hook reaches the caller of `watch` or `wait`. A worker
    logs the exception of a hook, and the run continues.
    """

    before_plan: Callable[[PlanSummary], object] = _nothing
    after_plan: Callable[[Report], object] = _nothing
    before_level: Callable[[int, list[str], bool], object] = _nothing
    after_level: Callable[[int, list[StepReport]], object] = _nothing
    before_step: Callable[[str], object] = _nothing
    after_step: Callable[[StepReport], object] = _nothing
    on_retry: Callable[[str, int, str], object] = _nothing
    on_skip: Callable[[str, str], object] = _nothing
    on_undo: Callable[[StepReport], object] = _nothing
    #: The event that the current call is about.
    event: Event | None = field(default=None, compare=False)


@dataclass
class HookDispatcher:
    """Translates the events of one run into calls of hooks.

    The caller passes every event in order from the first one on, to `tell` or to `note`.
    """

    store: Store
    run_id: str
    plan: CompiledPlan
    #: The open level.
    level: int | None = None
    #: Steps for which `before_step` was called.
    started: set[str] = field(default_factory=set)
    #: By step, its parts whose undo has not ended.
    undoing: dict[str, set[str]] = field(default_factory=dict)

    def tell(self, event: Event, hooks: Hooks) -> None:
        """Call the hooks of an event."""
        hooks.event = event
        for name, arguments in self.calls(event):
            getattr(hooks, name)(*arguments())

    def note(self, event: Event) -> None:
        """Update the state for an event whose hooks were called before."""
        for _ in self.calls(event):
            pass

    def calls(self, event: Event) -> Iterator[tuple[str, Callable[[], tuple[Any, ...]]]]:
        """Yield the hooks of an event, each with a function that reads its arguments on demand."""
        step = event.step or ""
        whole = self._whole(step)
        match event.name:
            case "run_started":
                yield "before_plan", lambda: (self._summary(),)
            case "level_started":
                yield from self._end_level()
                level = int(event.fields["level"])
                self.level = level
                names = [self.plan.steps[i].name for i in self.plan.levels[level]]
                yield "before_level", lambda: (level, names, len(names) > 1)
            case "step_started" if whole not in self.started:
                self.started.add(whole)
                yield "before_step", lambda: (whole,)
            case "step_retrying" | "item_retrying":
                attempt, error = int(event.fields["attempt"]), event.fields.get("error", "")
                yield "on_retry", lambda: (step, attempt, error)
            case "step_skipped":
                reason = event.fields["reason"]
                yield "on_skip", lambda: (whole, reason)
                yield "after_step", lambda: (self._step(whole),)
            case "step_ended":
                yield "after_step", lambda: (self._step(whole),)
            case "undo_level_started":
                for part in event.fields["steps"].split():
                    self.undoing.setdefault(self._whole(part), set()).add(part)
            case "undo_ended" | "undo_impossible" | "undo_held_back":
                left = self.undoing.get(whole, set())
                left.discard(step)
                # A step with items is reported once, after the undo of its last item.
                if not left and (event.name == "undo_ended" or whole not in self.undoing):
                    yield "on_undo", lambda: (self._step(whole),)
            case "run_aborting" | "run_undoing" | "run_finishing":
                if event.name != "run_aborting":
                    yield from self._end_level()
            case "run_ended":
                yield from self._end_level()
                yield "after_plan", lambda: (self._report(),)
            case _:
                return

    def _whole(self, part: str) -> str:
        return part if part in self.plan.index else part.partition("[")[0]

    def _end_level(self) -> Iterator[tuple[str, Callable[[], tuple[Any, ...]]]]:
        if self.level is None:
            return
        level, self.level = self.level, None
        yield "after_level", lambda: (level, self._level(level))

    def _summary(self) -> PlanSummary:
        levels = tuple(LevelSummary(tuple(self.plan.steps[i].name for i in level)) for level in self.plan.levels)
        return PlanSummary(self.run_id, self.plan.plan.name, len(self.plan), levels)

    def _step(self, name: str) -> StepReport:
        index = self.plan.index[name]
        return report.read(self.store, self.run_id, self.plan, [index])[index]

    def _level(self, level: int) -> list[StepReport]:
        members = self.plan.levels[level]
        found = report.read(self.store, self.run_id, self.plan, members)
        return [found[i] for i in members]

    def _report(self) -> Report:
        run, steps = self.store.everything(self.run_id)
        return report.build(self.run_id, self.plan, run, steps, self.store.now())


def on_workers() -> list[Hooks]:
    """The hooks of installed packages, from the entry-point group `longshore.hooks`; logs those that fail to load."""
    found = []
    for entry in entry_points(group="longshore.hooks"):
        try:
            offered = entry.load()
            found.append(offered if isinstance(offered, Hooks) else offered())
        except Exception:  # a faulty package must not stop the worker
            log.exception("the hooks %s cannot be loaded; fix or remove the package that provides them", entry.name)
    return found
