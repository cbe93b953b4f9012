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
from longshore.orchestration.states import STEP_IN_FLIGHT, TERMINAL, RunState, StepState, UndoState

_STYLES = {
    StepState.PENDING: "dim",
    StepState.READY: "cyan",
    StepState.RUNNING: "bold cyan",
    StepState.RETRYING: "yellow",
    StepState.WAITING: "yellow",
    StepState.CHANGED: "green",
    StepState.UNCHANGED: "dim green",
    StepState.FAILED: "bold red",
    StepState.UNKNOWN: "bold magenta",
    StepState.SKIPPED: "dim",
    StepState.CANCELLED: "dim yellow",
    StepState.NOT_RUN: "dim",
}
_UNDO_STYLES = {
    UndoState.UNDONE: "blue",
    UndoState.UNDO_FAILED: "bold red",
    UndoState.NOT_UNDOABLE: "magenta",
    UndoState.HELD_BACK: "bold magenta",
}
#: Steps of one level, and items of one step, that are shown; the others are counted.
_SHOWN = 24
#: Seconds without an answer from Redis after which a watch fails.
_PATIENCE = 60.0

T = TypeVar("T")


def watch(run: Run, console: Console) -> Report:
    """Show the run until it has ended, and return its report. Interrupting the view does not affect the run."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=False) as live:
            for report in _reports(run):
                live.update(tree(report))
            return report
    return _lines(run, console)


def _reports(run: Run) -> Iterator[Report]:
    """A new report after each event, at most ten a second."""
    yield (report := _patiently(run.report))
    while not report.ended:
        _patiently(lambda: run.store.read_events(run.id, "$", block_ms=500, count=1))
        time.sleep(0.1)
        yield (report := _patiently(run.report))


def _lines(run: Run, console: Console) -> Report:
    """Print a line for each notable event, for output that is not a terminal."""
    after = "0-0"

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
            return Text(f"  {fields['step']} waits for {fields['for']}", "yellow")
        case "item_ended" if fields["status"] in {"failed", "unknown"}:
            return Text(f"  {name} {fields['status']}{error}", "red")
        case "step_ended":
            return Text.assemble("  ", f"{name} ", (fields["status"], _STYLES[StepState(fields["status"])]), error)
        case "undo_ended":
            return Text(f"  ↩ {name} {fields['status']}{error}")
        case "step_retrying" | "item_retrying" | "undo_retrying":
            delay = int(fields["delay_ms"]) / 1000
            what = "did not act" if fields.get("in_vain") else f"attempt {fields['attempt']} failed"
            return Text(f"  {fields['step']} {what}, retry in {delay:.1f} s{error}", "yellow")
        case "step_skipped" | "item_skipped":
            return Text(f"  {name} skipped: {fields['reason']}")
        case "undo_impossible" | "undo_held_back":
            what = "cannot be undone" if event.name == "undo_impossible" else "is not undone"
            return Text(f"  {name} {what}: {fields['reason']}")
        case "lease_lost":
            return Text(f"  {name}: its worker was lost", "yellow")
        case "run_held" | "run_suspended":
            word = "waits" if event.name == "run_held" else "suspended"
            return Text(f"{word}{error}", "yellow")
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


def tree(report: Report) -> Tree:
    """The run as a tree of its levels and steps."""
    report = printable.values(report)
    style = "red" if report.state not in {RunState.SUCCEEDED, RunState.RUNNING, RunState.PENDING} else "bold"
    took = f"  {report.duration_s:.1f} s" if report.duration_s is not None else ""
    root = Tree(Text.assemble((f"{report.plan} ", "bold"), (report.run_id, "dim"), "  ", (report.state, style), took))
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
                node.add(Text(f"{_what(item)}  {item.status}  {item.error or ''}", style="red"))
            for host in step.hosts if not step.items and len(step.hosts) > 1 else ():
                if host.status in FAILED:
                    node.add(Text(f"{host.host}  {host.status}  {host.error or ''}", style="red"))
            notable = [item for item in step.items if item.status not in FAILED and item.reason]
            for item in notable[:_SHOWN]:
                style = "yellow" if item.status in STEP_IN_FLIGHT else "dim"
                node.add(Text(f"{_what(item)}  {item.status}  {item.reason}", style=style))
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
    line.append(step.status, _STYLES[step.status])
    if len(step.items) > 1:
        ended = sum(item.duration_s is not None for item in step.items)
        line.append(f"  {ended} of {len(step.items)}", "dim")
    if step.attempts > 1:
        line.append(f"  attempt {step.attempts}", "yellow")
    if step.duration_s is not None:
        line.append(f"  {step.duration_s:.2f} s", "dim")
    if step.reason:
        line.append(f"  {step.reason}", "dim")
    if step.error:
        line.append(f"  {step.error}", "red")
    if step.undo:
        line.append(f"  ↩ {step.undo.status}", _UNDO_STYLES.get(step.undo.status, "cyan"))
        if step.undo.error:
            line.append(f"  {step.undo.error}", "red")
        if step.undo.reason:
            line.append(f"  {step.undo.reason}", "dim")
    return line


def _named(report: Report, step: StepReport) -> bool:
    return report.error is not None and report.error.step == step.name


def closing(report: Report) -> Group:
    """The closing lines: the outcome, what is left over or in doubt, and the next command."""
    report = printable.values(report)
    lines = [Text(line, style="bold") for line in report.production]
    lines += [Text(f"{report.state}: {report.summary}", style="green" if report.exit_code == 0 else "bold red")]
    if report.error:
        where = f"step {report.error.step}: " if report.error.step else ""
        lines.append(Text(f"{where}{report.error.message}"))
    if report.exit_code == 3:
        others = [step for step in report.steps if step.error and step.status in FAILED and not _named(report, step)]
        lines += [Text(f"step {step.name}: {step.error}") for step in others]
    if report.job and report.exit_code is None:
        lines.append(Text(report.job.summary))
    if report.left_over:
        lines.append(Text(f"left over: {', '.join(report.left_over)}", style="bold magenta"))
    lines += [Text(f"in doubt: {doubt}", style="bold magenta") for doubt in report.in_doubt]
    if report.state in TERMINAL and report.exit_code:
        lines.append(Text(f"for details: longshore runs show {report.run_id}", style="dim"))
    return Group(*lines)
