"""`longshore runs`, and its commands that print reports: ls, show, watch, events, logs."""

from __future__ import annotations

import json

import click
from rich.table import Table

from longshore.orchestration.cli.common import (
    command,
    current_options,
    exit_with,
    print_json,
    print_line,
    print_lines,
    print_report,
)
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.cli.names import complete_run, complete_step
from longshore.orchestration.cli.next_commands import print_next
from longshore.orchestration.cli.run import watch_to_end
from longshore.orchestration.client import live
from longshore.orchestration.client.run import Run
from longshore.orchestration.language import printable
from longshore.orchestration.plans.shown_params import one_line
from longshore.orchestration.runs.report import Report
from longshore.orchestration.runs.search import Filter, search
from longshore.orchestration.states import RunState

SINCE = "Only runs created since TIME: an age such as 2h, or a date or time (UTC) such as 2026-11-20."


@click.group("runs")
def runs_group() -> None:
    """List, watch, cancel, resume and undo runs.

    A run is one execution of a plan. RUN is the id of a run, as `longshore runs ls` prints it.

    """


@command(runs_group, "ls")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Maximum number of runs."
)
@click.option("--plan", default="", metavar="NAME", help="Only runs of this plan.")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in RunState]),
    help="Only runs in this state. cancelled means: cancelled before the run began.",
)
@click.option("--label", default="", metavar="KEY[=VALUE]", help="Only runs of plans with this label.")
@click.option("--since", default="", metavar="TIME", help=SINCE)
@click.option("--text", default="", help="Only runs with this text in id, plan, parameters, actor or error.")
def ls(limit: int, plan: str, state: str | None, label: str, since: str, text: str) -> None:
    """List the latest runs, newest first."""
    options, run_filter = current_options(), Filter.read(text, plan, state or "", label, since)
    connected = client()
    runs = (
        connected.runs(limit)
        if run_filter == Filter()
        else [connected.get(row.run_id) for row in search(connected.store, run_filter, limit)]
    )
    reports = [report for run in runs if (report := _report_or_none(run)) is not None]
    if options.json:
        options.show([r.model_dump(mode="json", exclude={"steps"}) for r in reports])
        return
    reports = printable.values(reports)
    console = options.console()
    if not console.is_terminal:
        console.width = 200  # for grep, not for a screen
    columns = ("run", "plan", "state", "started", "took", "params", "summary")
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for report in reports:
        took = f"{report.duration_s:.1f} s" if report.duration_s is not None else ""
        started, params = (report.started_at or "")[:19], one_line(report.params)
        table.add_row(report.run_id, report.plan, live.state_text(report.state), started, took, params, report.summary)
    for column in table.columns[:3]:
        column.no_wrap = True
    console.print(table if reports else "no runs")


def _report_or_none(run: Run) -> Report | None:
    """The report of a run; None if the report cannot be read, so that the other runs are still listed."""
    try:
        return run.report()
    except ValueError as error:
        print_line(f"error: run {run.id} cannot be read: {' '.join(str(error).split())[:200]}", err=True)
        return None


@command(runs_group, "show")
@click.argument("run", shell_complete=complete_run)
def show(run: str) -> None:
    """Print the report of RUN, with the outcome of each step.

    Exit codes: the same as `longshore run`, and 0 if the run has not ended.
    """
    options = current_options()
    found = client().get(run)
    report = found.report()
    if options.json:
        print_report(report)
    else:
        console = options.console()
        if not console.is_terminal:
            console.width = 1000  # for a pipe, not for a screen
        console.print(live.tree(report), soft_wrap=False)
        console.print(live.closing(report))
    print_next(found, report, shown=True)
    exit_with(report.exit_code or 0)


@command(runs_group, "watch")
@click.argument("run", shell_complete=complete_run)
def watch(run: str) -> None:
    """Watch RUN until it ends, and print its report.

    Ctrl-C ends the command after two seconds, and the run continues. A second Ctrl-C in this time cancels the run.

    Exit codes: the same as `longshore run`.
    """
    exit_with(watch_to_end(client().get(run)))


@command(runs_group, "events")
@click.argument("run", shell_complete=complete_run)
def events(run: str) -> None:
    """Print all events of RUN, with the seconds since the first event."""
    options = current_options()
    found = client().get(run).events()
    if options.json:
        options.show([{"id": e.id, "event": e.name, "at": e.at, **e.fields} for e in found])
        return
    first_at = found[0].at if found else 0
    for event in found:
        facts = " ".join(f"{key}={value}" for key, value in event.fields.items() if value)
        print_line(f"{(event.at - first_at) / 1000:9.3f}  {event.name:20} {facts}")


@command(runs_group, "logs")
@click.argument("run", shell_complete=complete_run)
@click.argument("step", shell_complete=complete_step)
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they arrive, until the run ends.")
def logs(run: str, step: str, follow: bool) -> None:
    """Print the output of STEP, about the last 1000 lines.

    Lines from the stderr of the step go to stderr.

    """
    for stream, line in client().get(run).output(step, follow=follow):
        if current_options().json:
            print_json(json.dumps({"stream": stream, "line": line}, ensure_ascii=False))
        else:
            print_lines(line, err=stream == "stderr")
