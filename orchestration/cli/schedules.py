"""`longshore schedules …`: what starts by itself."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from longshore.orchestration.cli.common import client, command, current, say, show_table, tell
from longshore.orchestration.cli.run import attend
from longshore.orchestration.errors import UnknownName, UsageError


@click.group("schedules")
def schedules_group() -> None:
    """List what starts by itself; start it now, pause and resume it."""


@command(schedules_group, "ls")
def ls() -> None:
    """All schedules: of the configuration, of stored plans, of other beats' entries, and of jobs."""
    from longshore.orchestration.schedules import due_times, schedules  # noqa: PLC0415 - see cli.common

    options, asked = current(), client()
    known, wrong = schedules.declared(asked.settings)
    kept = due_times.ScheduleMarks(asked.store)
    marks, paused, now = kept.marks(), kept.paused(), asked.store.now()
    rows = [
        {
            "name": each.name,
            "plan": each.plan,
            "when": each.definition(),
            "next": at.isoformat() if (at := schedules.upcoming(each, now)) else None,
            "done_until": _time(marks[each.name].until) if each.name in marks else None,
            "overlap": each.when.overlap,
            "missed": each.when.missed,
            "paused_by": paused.get(each.name),
        }
        for each in known
    ]
    names = {each.name for each in known}
    rows += [
        {
            "name": name,
            "plan": "job" if "@" in name else "(not declared here)",
            "when": mark.schedule,
            "next": None,
            "done_until": _time(mark.until),
            "overlap": None,
            "missed": None,
            "paused_by": paused.get(name),
        }
        for name, mark in sorted(marks.items())
        if name not in names
    ]
    for why in wrong:
        say(f"error: {why}", err=True)
    if options.json:
        options.show(rows)
        return
    table: list[tuple[str, ...]] = [("SCHEDULE", "PLAN", "WHEN", "NEXT", "DEALT WITH UNTIL", "PAUSED BY")]
    columns = ("name", "plan", "when", "next", "done_until", "paused_by")
    table += [tuple(str(row[key] or "")[:60] for key in columns) for row in rows]
    show_table(table)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


@command(schedules_group, "trigger")
@click.argument("name")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
def trigger(name: str, detach: bool) -> None:
    """Start it now, whatever its times are; they stay as they are."""
    from longshore.orchestration.schedules import schedules  # noqa: PLC0415 - see cli.common

    asked = client()
    if current().dry_run:
        found = schedules.find(asked.settings, name)
        if why := schedules.problem(found):
            raise UsageError(f"schedule {name} cannot start its plan: {why}")
        tell(f"would start plan {found.loaded().name}", schedule=name, plan=found.loaded().name)
        return
    run = schedules.trigger(asked, name)
    attend(run, detach=detach)


@command(schedules_group, "pause")
@click.argument("name")
def pause(name: str) -> None:
    """Start it no more by itself, until it is resumed; its times pass, and none of them counts as missed."""
    _pause(name, paused=True)


@command(schedules_group, "resume")
@click.argument("name")
def resume(name: str) -> None:
    """Have it start by itself again."""
    _pause(name, paused=False)


def _pause(name: str, *, paused: bool) -> None:
    from longshore.orchestration.schedules import due_times, schedules  # noqa: PLC0415 - see cli.common

    asked = client()
    try:
        schedules.find(asked.settings, name)
    except UnknownName as error:
        # Of a job, or of an entry in somebody's beat: known by what was done for it.
        if name not in due_times.ScheduleMarks(asked.store).marks():
            raise error from None
    word = "paused" if paused else "resumed"
    if current().dry_run:
        tell(f"schedule {name} would be {word}", schedule=name)
        return
    changed = schedules.pause(asked.store, name, paused=paused)
    as_before = f"schedule {name} was {'paused already' if paused else 'not paused'}"
    tell(f"schedule {name} is {word}" if changed else as_before, schedule=name, changed=changed)
