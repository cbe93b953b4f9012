"""`longshore schedules …`: plans and jobs that beat starts at their times."""

from __future__ import annotations

import click

from longshore.orchestration.cli.common import command, current_options, print_line, print_result, print_table
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.cli.run import watch_started
from longshore.orchestration.errors import UsageError
from longshore.orchestration.schedules.declarations import find, problem
from longshore.orchestration.schedules.schedules import Schedules, ScheduleStatus


@click.group("schedules")
def schedules_group() -> None:
    """List, trigger, pause and resume schedules.

    A schedule starts a plan or a job at given times. For this, `longshore beat` and a worker must run, with the same
    settings (LONGSHORE_CONFIG, LONGSHORE_PLANS, LONGSHORE_JOBS) as this command.
    """


@command(schedules_group, "ls")
def ls() -> None:
    """List all schedules, with plan, times and next start.

    Schedules come from the settings file, from plans in the folders of LONGSHORE_PLANS, and from jobs. The list also
    has schedules that only the workers know, such as entries in the beat of an application. For these schedules and for
    jobs, NEXT is empty; `longshore job ls` prints the next start of a job.

    All planned starts up to DONE UNTIL were started or skipped. If DONE UNTIL stays empty, no worker knows the
    schedule.
    """
    options, listing = current_options(), Schedules(client()).list()
    rows = [_row(each) for each in listing.schedules]
    for error in listing.errors:
        print_line(f"error: {error}", err=True)
    if options.json:
        options.show(rows)
        return
    table: list[tuple[str, ...]] = [("SCHEDULE", "PLAN", "WHEN", "NEXT", "DONE UNTIL", "PAUSED BY")]
    columns = ("name", "plan", "when", "next", "done_until", "paused_by")
    table += [tuple(str(row[key] or "")[:60] for key in columns) for row in rows]
    print_table(table)


def _row(found: ScheduleStatus) -> dict[str, str | None]:
    declared = found.schedule
    return {
        "name": found.name,
        "plan": declared.plan if declared else "job" if "@" in found.name else "(not declared here)",
        "when": found.when,
        "next": found.next.isoformat() if found.next else None,
        "done_until": found.done_until.isoformat(timespec="seconds") if found.done_until else None,
        "overlap": declared.when.overlap if declared else None,
        "missed": declared.when.missed if declared else None,
        "paused_by": found.paused_by,
    }


@command(schedules_group, "trigger")
@click.argument("name")
@click.option("--detach", is_flag=True, help="Print the id of the run and return at once.")
def trigger(name: str, detach: bool) -> None:
    """Start the plan of schedule NAME now, and watch the run.

    NAME is a schedule of the settings file or of a plan; for a job, use `longshore job run`. The planned times of the
    schedule do not change. A paused schedule can be triggered, too.

    If an earlier run of the schedule is active, `overlap` of the schedule decides: the new run waits, is cancelled, or
    cancels the earlier run.

    Exit codes: the same as `longshore run`.
    """
    connected = client()
    if current_options().dry_run:
        found = find(connected.settings, name)
        if why := problem(found):
            raise UsageError(f"schedule {name} cannot be started: {why}")
        print_result(f"would start plan {found.loaded().name}", schedule=name, plan=found.loaded().name)
        return
    watch_started(Schedules(connected).trigger(name), detach=detach)


@command(schedules_group, "pause")
@click.argument("name")
def pause(name: str) -> None:
    """Pause schedule NAME until it is resumed.

    NAME is a name that `longshore schedules ls` prints, also that of a job. Starts that are planned during the pause
    are skipped. Active runs continue.
    """
    _set_paused(name, paused=True)


@command(schedules_group, "resume")
@click.argument("name")
def resume(name: str) -> None:
    """Resume the paused schedule NAME."""
    _set_paused(name, paused=False)


def _set_paused(name: str, *, paused: bool) -> None:
    schedules, word = Schedules(client()), "paused" if paused else "resumed"
    if current_options().dry_run:
        print_result(f"schedule {schedules.status(name).name} would be {word}", schedule=name)
        return
    changed = schedules.pause(name) if paused else schedules.resume(name)
    unchanged = f"schedule {name} was {'paused already' if paused else 'not paused'}"
    print_result(f"schedule {name} is {word}" if changed else unchanged, schedule=name, changed=changed)
