"""`longshore run PLAN`: start, watch, report."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from longshore.orchestration.cli.common import (
    client,
    current,
    global_options,
    leave,
    load_plan,
    read_params,
    say,
    say_lines,
    say_report,
)
from longshore.orchestration.errors import RunLost

if TYPE_CHECKING:
    from rich.console import Console

    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run
    from longshore.orchestration.plans.model import Plan

#: A second Ctrl-C within so many seconds cancels the run.
_SECOND_THOUGHT = 2.0
#: Seconds for the last of a step's output to be read.
_LAST_WORDS = 3.0


@click.command()
@click.argument("plan")
@click.option("-p", "--param", "pairs", multiple=True, metavar="NAME=VALUE", help="A parameter of the plan.")
@click.option("--params", "file", metavar="FILE", help="Parameters from a YAML or JSON file.")
@click.option("--run-id", metavar="ID", help="The same id with the same plan attaches to the run that is there.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@global_options
def run(plan: str, pairs: tuple[str, ...], file: str | None, run_id: str | None, detach: bool) -> None:
    """Start PLAN (a file, or the name of a stored plan) and watch it to its end."""
    loaded = load_plan(plan)
    params = read_params(loaded, pairs, file)
    return begin(loaded, params, run_id, detach=detach)


def begin(plan: Plan, params: dict[str, Any], run_id: str | None, *, detach: bool, show: bool = False) -> None:
    """Start and watch, or rehearse, as the options say; ends the command. `show`: what the steps have found, too."""
    options = current()
    if options.dry_run:
        return leave(show_dry_run(plan, params))
    return attend(client().start(plan, params, run_id=run_id), detach=detach, show=show)


def attend(started: Run, *, detach: bool, show: bool = False, follow: str = "") -> None:
    """Watch a run that was just started, or only say its id; ends the command."""
    options = current()
    console = options.console()
    if started.attached:
        console.print(f"run {started.id} is there already; nothing was started", style="yellow")
    elif not options.quiet and (missing := started.unserved()):
        queues = ",".join(missing)
        say(f"run {started.id}: no worker takes from {queues} now: longshore worker -Q {queues}", err=True)
    if detach:
        if options.json:
            options.show({"run_id": started.id, "attached": started.attached})
        else:
            say(started.id)
        return None
    return leave(watch_to_end(started, show=show, follow=follow))


def begin_job(made: Client, plan: Plan, run_id: str | None, *, detach: bool) -> None:
    """Start the plan of a job and watch it, with what its worker says; ends the command."""
    started = made.start(plan, run_id=run_id)
    try:
        return attend(started, detach=detach, follow="work")
    except RunLost as lost:
        from longshore.orchestration.jobs.jobs import Jobs  # noqa: PLC0415 - see cli.common

        say(f"{lost.message}; waiting for a worker that finds its container", err=True)
        return attend(Jobs(made).recover(started.id), detach=detach, follow="work")


def show_dry_run(plan: Any, params: dict[str, Any]) -> int:
    """Show what a run would do; 1 if it is certain to fail."""
    options = current()
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
    """Watch, print the report, and give the run's exit code. Ctrl-C leaves the run going.

    `follow`: the step whose output is shown as it comes.
    """
    from longshore.orchestration.client import live  # noqa: PLC0415 - rich is slow to import

    options = current()
    console = options.console()
    told = _followed(run, follow, console) if follow and not options.quiet else None
    try:
        report = run.wait() if options.quiet else live.watch(run, console)
        if told is not None:
            told.join(_LAST_WORDS)
    except KeyboardInterrupt:
        return left_alone(run)
    if options.json:
        say_report(report)
    else:
        console.print(live.closing(report))
        for step in report.steps if show else []:
            if step.data and not options.quiet:
                options.show(step.data)
    return report.exit_code or 0


def _followed(run: Run, step: str, console: Console) -> threading.Thread:
    """What a step prints is shown above what is drawn, from a thread of its own."""

    def follow() -> None:
        from longshore.orchestration.errors import LongshoreError  # noqa: PLC0415 - beside its only use

        with contextlib.suppress(LongshoreError):  # the watch itself tells of it
            for stream, text in run.output(step, follow=True):
                line = text.expandtabs()
                console.print(f"  | {line}" if stream else f"  {line}", style="" if stream else "dim")

    thread = threading.Thread(target=follow, name="longshore-output", daemon=True)
    thread.start()
    return thread


def left_alone(run: Run) -> int:
    """The watcher leaves; asked twice, the run is cancelled."""
    say_lines(
        f"\nrun {run.id} goes on; watch it again: longshore runs watch {run.id}"
        f"\nCtrl-C again within {_SECOND_THOUGHT:g} seconds cancels it",
        err=True,
    )
    try:
        time.sleep(_SECOND_THOUGHT)
    except KeyboardInterrupt:
        run.cancel("Ctrl-C twice")
        say(f"cancelling; watch it: longshore runs watch {run.id}", err=True)
    return 130
