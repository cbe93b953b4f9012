"""`longshore schedules …`: plans and jobs that beat starts at their times."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from longshore.orchestration.cli.common import command, current_options, print_line, print_result, print_table
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.cli.run import watch_started
from longshore.orchestration.errors import UnknownName, UsageError
from longshore.orchestration.schedules import due_times, schedules


@click.group("schedules")
def schedules_group() -> None:
    """List, trigger, pause and resume schedules.

    A schedule starts a plan or a job at given times, while `longshore beat` runs.
    """


@command(schedules_group, "ls")
def ls() -> None:
    """List all schedules, with plan, times and next start.

    Schedules come from the settings file, from stored plans, from entries of other beats, and from jobs. DONE UNTIL is
    the time up to which all planned starts are handled.
    """
    options, connected = current_options(), client()
    declared, problems = schedules.declared(connected.settings)
    stored = due_times.ScheduleMarks(connected.store)
    marks, paused, now = stored.marks(), stored.paused(), connected.store.now()
    rows = [
        {
            "name": each.name,
            "plan": each.plan,
            "when": each.definition(),
            "next": at.isoformat() if (at := schedules.upcoming(each, now)) else None,
            "done_until": _iso(marks[each.name].until) if each.name in marks else None,
            "overlap": each.when.overlap,
            "missed": each.when.missed,
            "paused_by": paused.get(each.name),
        }
        for each in declared
    ]
    names = {each.name for each in declared}
    rows += [
        {
            "name": name,
            "plan": "job" if "@" in name else "(not declared here)",
            "when": mark.schedule,
            "next": None,
            "done_until": _iso(mark.until),
            "overlap": None,
            "missed": None,
            "paused_by": paused.get(name),
        }
        for name, mark in sorted(marks.items())
        if name not in names
    ]
    for problem in problems:
        print_line(f"error: {problem}", err=True)
    if options.json:
        options.show(rows)
        return
    table: list[tuple[str, ...]] = [("SCHEDULE", "PLAN", "WHEN", "NEXT", "DONE UNTIL", "PAUSED BY")]
    columns = ("name", "plan", "when", "next", "done_until", "paused_by")
    table += [tuple(str(row[key] or "")[:60] for key in columns) for row in rows]
    print_table(table)


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


@command(schedules_group, "trigger")
@click.argument("name")
@click.option("--detach", is_flag=True, help="Return at once; do not wait for the run to end.")
def trigger(name: str, detach: bool) -> None:
    """Start the plan of schedule NAME now, and watch the run.

    The times of the schedule do not change. Exit codes: those of `longshore run`.
    """
    connected = client()
    if current_options().dry_run:
        found = schedules.find(connected.settings, name)
        if why := schedules.problem(found):
            raise UsageError(f"schedule {name} cannot be started: {why}")
        print_result(f"would start plan {found.loaded().name}", schedule=name, plan=found.loaded().name)
        return
    run = schedules.trigger(connected, name)
    watch_started(run, detach=detach)


@command(schedules_group, "pause")
@click.argument("name")
def pause(name: str) -> None:
    """Pause schedule NAME until it is resumed.

    Times that pass during the pause do not count as missed.
    """
    _set_paused(name, paused=True)


@command(schedules_group, "resume")
@click.argument("name")
def resume(name: str) -> None:
    """Resume the paused schedule NAME."""
    _set_paused(name, paused=False)


def _set_paused(name: str, *, paused: bool) -> None:
    connected = client()
    try:
        schedules.find(connected.settings, name)
    except UnknownName as error:
        # A schedule of a job, or of an entry of another beat: only its stored times are known.
        if name not in due_times.ScheduleMarks(connected.store).marks():
            raise error from None
    word = "paused" if paused else "resumed"
    if current_options().dry_run:
        print_result(f"schedule {name} would be {word}", schedule=name)
        return
    changed = schedules.pause(connected.store, name, paused=paused)
    unchanged = f"schedule {name} was {'paused already' if paused else 'not paused'}"
    print_result(f"schedule {name} is {word}" if changed else unchanged, schedule=name, changed=changed)
