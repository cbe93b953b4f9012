"""The live view of a run on a terminal: a tree of levels and steps, updated with each event."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from longshore.orchestration.client.run import Run
from longshore.orchestration.errors import StoreUnavailable
from longshore.orchestration.language import printable
from longshore.orchestration.language.guards import FAILED
from longshore.orchestration.plans.shown_params import one_line
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.step_report import ItemReport, StepReport
from longshore.orchestration.runs.styles import PALETTE, style_of
from longshore.orchestration.states import StepState

#: Steps of one level, and items of one step, that are shown; the others are counted.
_SHOWN = 24
#: Seconds without an answer from Redis after which a watch fails.
_PATIENCE = 60.0

T = TypeVar("T")


def watch(run: Run, console: Console, after: str = "0-0") -> Report:
    """Show the run until it has ended, and return its report. Interrupting the view does not affect the run.

    Output that is not a terminal has the events after the cursor `after`.
    """
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=False) as live:
            for report in _reports(run):
                live.update(tree(report))
            return report
    return _lines(run, console, after)


def _reports(run: Run) -> Iterator[Report]:
    """A new report after each event, at most ten a second."""
    yield (report := _patiently(run.report))
    while not report.ended:
        _patiently(lambda: run.store.read_events(run.id, "$", block_ms=500, count=1))
        time.sleep(0.1)
        yield (report := _patiently(run.report))


def _lines(run: Run, console: Console, after: str) -> Report:
    """Print a line for each notable event, for output that is not a terminal."""

    def show() -> None:
        nonlocal after
        for event in run.watch(after):
            after = event.id
            if line := _line(event):
                console.print(line)

    _patiently(show)
    return _patiently(run.report)


def _patiently(read: Callable[[], T]) -> T:
    """The result of a read that is retried for up to 60 s while Redis does not answer."""
    until = None
    while True:
        try:
            return read()
        except StoreUnavailable:
            until = until or time.monotonic() + _PATIENCE
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _line(event: Event) -> Text | None:
    event = printable.values(event)
    fields = event.fields
    error = f": {fields['error']}" if fields.get("error") else ""
    name = fields.get("step", "")
    if fields.get("host") and "[" in name:
        name = f"{name} on {fields['host']}"
    match event.name:
        case "level_started":
            return Text(f"level {fields['level']}: {fields['steps'].replace(' ', ', ') or 'nothing to run'}")
        case "undo_level_started":
            return Text(f"undo of level {fields['level']}: {fields['steps'].replace(' ', ', ') or 'nothing to run'}")
        case "step_waiting":
            return Text(f"  {fields['step']} waits for {fields['for']}", style_of("waiting").terminal)
        case "item_ended" if fields["status"] in {"failed", "unknown"}:
            return Text.assemble("  ", f"{name} ", state_text(fields["status"]), error)
        case "step_ended":
            return Text.assemble("  ", f"{name} ", state_text(fields["status"]), error)
        case "undo_ended":
            return Text.assemble(f"  ↩ {name} ", state_text(fields["status"]), error)
        case "step_retrying" | "item_retrying" | "undo_retrying":
            delay = int(fields["delay_ms"]) / 1000
            what = "did not act" if fields.get("in_vain") else f"attempt {fields['attempt']} failed"
            return Text(f"  {fields['step']} {what}, retry in {delay:.1f} s{error}", style_of("retrying").terminal)
        case "step_skipped" | "item_skipped":
            return Text(f"  {name} skipped: {fields['reason']}")
        case "undo_impossible" | "undo_held_back":
            what = "cannot be undone" if event.name == "undo_impossible" else "is not undone"
            return Text(f"  {name} {what}: {fields['reason']}")
        case "lease_lost":
            return Text(f"  {name}: its worker was lost", style_of("lost").terminal)
        case "run_held" | "run_suspended":
            word = "waits" if event.name == "run_held" else "suspended"
            return Text(f"{word}{error}", style_of("suspended").terminal)
        case "run_resumed":
            return Text("resumed", "bold")
        case "run_aborting":
            where = f" in {fields['step']}" if fields.get("step") else ""
            return Text(f"ending the run: {fields['cause']}{where}", "bold")
        case "run_undoing":
            return Text("undoing the completed steps", "bold")
        case "run_finishing":
            return Text("running the always steps", "bold")
        case _:
            return None


def state_text(state: str) -> Text:
    """The label of a state in its colour."""
    style = style_of(state)
    return Text(style.label, style=style.terminal)


def tree(report: Report) -> Tree:
    """The run as a tree of its levels and steps."""
    report = printable.values(report)
    took = f"  {report.duration_s:.1f} s" if report.duration_s is not None else ""
    root = Tree(
        Text.assemble((f"{report.plan} ", "bold"), (report.run_id, "dim"), "  ", state_text(report.state), took)
    )
    if report.params:
        root.add(Text(f"params: {one_line(report.params)}", style="dim"))
    levels: dict[int, list[StepReport]] = {}
    for step in report.steps:
        levels.setdefault(step.level, []).append(step)
    for level, steps in levels.items():
        branch = root.add(Text(f"level {level}", style="dim"))
        for step in steps[:_SHOWN]:
            node = branch.add(_step(step))
            for item in step.failures()[:_SHOWN]:
                node.add(Text.assemble(f"{_what(item)}  ", state_text(item.status), f"  {item.error or ''}"))
            for host in step.hosts if not step.items and len(step.hosts) > 1 else ():
                if host.status in FAILED:
                    node.add(Text.assemble(f"{host.host}  ", state_text(host.status), f"  {host.error or ''}"))
            notable = [item for item in step.items if item.status not in FAILED and item.reason]
            for item in notable[:_SHOWN]:
                node.add(Text.assemble(f"{_what(item)}  ", state_text(item.status), (f"  {item.reason}", "dim")))
        if len(steps) > _SHOWN:
            rest = steps[_SHOWN:]
            ended = sum(step.duration_s is not None for step in rest)
            branch.add(Text(f"… and {len(rest)} more, {ended} of them ended", style="dim"))
    return root


def _what(item: ItemReport) -> str:
    """The label of an item: its value, its host, or both."""
    parts = [json.dumps(item.item, ensure_ascii=False)] if item.item is not None else []
    return " on ".join([*parts, *([item.host] if item.host else [])])


def _step(step: StepReport) -> Text:
    line = Text.assemble((step.name, "bold" if step.status is StepState.RUNNING else ""), " ", (step.op, "dim"), "  ")
    line.append_text(state_text(step.status))
    if len(step.items) > 1:
        ended = sum(item.duration_s is not None for item in step.items)
        line.append(f"  {ended} of {len(step.items)}", "dim")
    if step.attempts > 1:
        line.append(f"  attempt {step.attempts}", style_of("retrying").terminal)
    if step.duration_s is not None:
        line.append(f"  {step.duration_s:.2f} s", "dim")
    if step.reason:
        line.append(f"  {step.reason}", "dim")
    if step.error:
        line.append(f"  {step.error}", PALETTE["red"].terminal)
    if step.undo:
        line.append("  ↩ ")
        line.append_text(state_text(step.undo.status))
        if step.undo.error:
            line.append(f"  {step.undo.error}", PALETTE["red"].terminal)
        if step.undo.reason:
            line.append(f"  {step.undo.reason}", "dim")
    return line


def _named(report: Report, step: StepReport) -> bool:
    return report.error is not None and report.error.step == step.name


def closing(report: Report) -> Group:
    """The closing lines: the outcome, and the effects that are left over or in doubt."""
    report = printable.values(report)
    lines = [Text(line, style="bold") for line in report.production]
    lines += [Text.assemble(state_text(report.state), f": {report.summary}")]
    if report.error:
        where = f"step {report.error.step}: " if report.error.step else ""
        lines.append(Text(f"{where}{report.error.message}"))
    if report.exit_code == 3:
        others = [step for step in report.steps if step.error and step.status in FAILED and not _named(report, step)]
        lines += [Text(f"step {step.name}: {step.error}") for step in others]
    if report.job and report.exit_code is None:
        lines.append(Text(report.job.summary))
    if report.left_over:
        lines.append(Text(f"left over: {', '.join(report.left_over)}", style=style_of("left_over").terminal))
    lines += [Text(f"in doubt: {doubt}", style=style_of("unknown").terminal) for doubt in report.in_doubt]
    return Group(*lines)
