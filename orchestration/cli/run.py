"""`longshore run PLAN`, and the watching of runs that other commands start."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import click

from longshore.orchestration.cli.common import (
    current_options,
    exit_with,
    global_options,
    print_line,
    print_lines,
    print_report,
)
from longshore.orchestration.cli.console import PlainConsole
from longshore.orchestration.cli.inputs import client, load_plan, read_params
from longshore.orchestration.cli.names import complete_plan
from longshore.orchestration.cli.next_commands import print_next
from longshore.orchestration.client import live
from longshore.orchestration.client.client import Client
from longshore.orchestration.client.run import Run
from longshore.orchestration.errors import LongshoreError, RunFailed, RunLost
from longshore.orchestration.jobs.jobs import Jobs
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs.report import Report

#: Seconds in which a second Ctrl-C cancels the run.
_CANCEL_WINDOW = 2.0
#: Seconds to read the remaining output of a step after the run has ended.
_OUTPUT_DRAIN_TIMEOUT = 3.0


@click.command()
@click.argument("plan", shell_complete=complete_plan)
@click.option("-p", "--param", "pairs", multiple=True, metavar="NAME=VALUE", help="Parameter of the plan; repeatable.")
@click.option("--params", "file", metavar="FILE", help="File with parameters, YAML or JSON; -p overrides them.")
@click.option(
    "--run-id",
    metavar="ID",
    help="Id of the run. An existing run with this id, the same plan and parameters is watched, not started again.",
)
@click.option("--detach", is_flag=True, help="Print the id of the run and return at once.")
@global_options
def run(plan: str, pairs: tuple[str, ...], file: str | None, run_id: str | None, detach: bool) -> None:
    """Start a run of PLAN and watch the run until it ends.

    PLAN is a file (YAML or JSON), or the name of a plan in a folder of LONGSHORE_PLANS or in an installed package.
    Ctrl-C ends the command after two seconds, and the run continues. A second Ctrl-C in this time cancels the run.

    \b
    Exit codes:
      0  the run has succeeded
      1  the run has not succeeded, no effect is left over or in doubt, and no
         `always` step failed
      1  Redis does not answer (the run may continue)
      3  an effect remains or may remain, an `always` step failed, or the run is
         `partial`
    """
    loaded = load_plan(plan)
    params = read_params(loaded, pairs, file)
    return start_and_watch(loaded, params, run_id, detach=detach)


def start_and_watch(
    plan: Plan, params: dict[str, Any], run_id: str | None, *, detach: bool, show: bool = False
) -> None:
    """Start and watch a run, or print its dry run; ends the command. `show`: print the data of the steps, too."""
    options = current_options()
    if options.dry_run:
        return exit_with(show_dry_run(plan, params))
    return watch_started(client().start(plan, params, run_id=run_id), detach=detach, show=show)


def watch_started(started: Run, *, detach: bool, show: bool = False, follow: str = "") -> None:
    """Watch a run that was just started, or with `detach` print its id; ends the command."""
    options = current_options()
    if started.attached and not options.quiet:
        options.console().print(f"run {started.id} exists already; nothing was started", style="yellow")
    elif not options.quiet and (missing := started.unserved()):
        queues = ",".join(missing)
        print_line(f"run {started.id}: no worker serves {queues}: start longshore worker -Q {queues}", err=True)
    if detach:
        if options.json:
            options.show({"run_id": started.id, "attached": started.attached})
        else:
            print_line(started.id)
        return None
    return exit_with(watch_to_end(started, show=show, follow=follow))


def start_job(connected: Client, plan: Plan, run_id: str | None, *, detach: bool) -> None:
    """Start the plan of a job and watch it with the output of its worker; ends the command."""
    started = connected.start(plan, run_id=run_id)
    try:
        return watch_started(started, detach=detach, follow="work")
    except RunLost as lost:
        print_line(f"{lost.message}; waiting for a worker to find the container of the job", err=True)
        return watch_started(Jobs(connected).recover(started.id), detach=detach, follow="work")


def show_dry_run(plan: Plan, params: dict[str, Any]) -> int:
    """Print the predicted changes of a run. Returns 0, or 1 if a step is certain to fail."""
    options = current_options()
    answers = client().dry_run(plan, params)
    impossible = [answer for answer in answers if answer["impossible"]]
    if options.json:
        options.show({"dry_run": True, "plan": plan.name, "possible": not impossible, "steps": answers})
        return 1 if impossible else 0
    console = options.console()
    console.print(f"dry run of {plan.name}: nothing is changed", style="bold")
    for answer in answers:
        word = {True: "changes", False: "unchanged", None: "not known yet"}[answer["changed"]]
        console.print(
            f"level {answer['level']}  {answer['step']} [{answer['op']}] on {answer['host']}: {word}",
        )
        console.print(f"    {answer['action']}")
        if answer["impossible"]:
            console.print(f"    cannot succeed: {answer['impossible']}", style="red")
        console.print(f"    undo: {answer['undo'] or 'not known yet'}", style="dim")
    return 1 if impossible else 0


def watch_to_end(run: Run, *, show: bool = False, follow: str = "") -> int:
    """Watch a run, print its report and return its exit code. Ctrl-C stops watching; the run continues.

    `follow` names the step whose output is printed as it arrives; `show`: print the data of the steps, too.

    """
    options = current_options()
    output_reader = _follow_output(run, follow, options.console()) if follow and not options.quiet else None
    try:
        report = wait_for_end(run)
        if output_reader is not None:
            output_reader.join(_OUTPUT_DRAIN_TIMEOUT)
    except KeyboardInterrupt:
        return stop_watching(run)
    print_outcome(report, report.exit_code or 0)
    print_next(run, report)
    if show and not options.json:
        for step in report.steps:
            if step.data:
                options.show(step.data)
    return report.exit_code or 0


def wait_for_end(run: Run, after: str = "0-0") -> Report:
    """Wait until a run has ended; with the live view, of the events after a cursor, unless the output is quiet."""
    options = current_options()
    return run.wait() if options.quiet else live.watch(run, options.console(), after)


def print_outcome(report: Report, code: int) -> None:
    """Print a report as JSON, or its closing lines; with --quiet only those of a failure, on stderr.

    `code` is the exit code of the command.
    """
    options = current_options()
    if options.json:
        print_report(report)
    elif not options.quiet:
        options.console().print(live.closing(report))
    elif code:
        console = options.console(error=True)
        console.print(f"error[{RunFailed.code}]: run {report.run_id} of plan {report.plan}")
        console.print(live.closing(report))


def _follow_output(run: Run, step: str, console: PlainConsole) -> threading.Thread:
    """Start a thread that prints the output of a step above the live view."""

    def follow() -> None:
        with contextlib.suppress(LongshoreError):  # the live view reports the error
            for stream, text in run.output(step, follow=True):
                line = text.expandtabs()
                console.print(f"  | {line}" if stream else f"  {line}", style="" if stream else "dim")

    thread = threading.Thread(target=follow, name="longshore-output", daemon=True)
    thread.start()
    return thread


def stop_watching(run: Run) -> int:
    """Handle Ctrl-C: stop watching, or cancel the run at a second Ctrl-C. Returns the exit code."""
    try:
        print_lines(
            f"\nrun {run.id} continues; to watch it: longshore runs watch {run.id}"
            f"\nCtrl-C again within {_CANCEL_WINDOW:g} seconds cancels it",
            err=True,
        )
        time.sleep(_CANCEL_WINDOW)
    except KeyboardInterrupt:
        run.cancel("Ctrl-C twice")
        print_line(f"cancelling run {run.id}; to watch it: longshore runs watch {run.id}", err=True)
    return 130
