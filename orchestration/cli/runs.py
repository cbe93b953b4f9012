"""`longshore runs …`: what ran, what runs, and what is to be done about it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import click

from longshore.orchestration.cli.common import (
    client,
    command,
    current,
    leave,
    say,
    say_json,
    say_lines,
    say_report,
    tell,
)
from longshore.orchestration.cli.run import attend, watch_to_end
from longshore.orchestration.errors import UsageError
from longshore.orchestration.language import printable
from longshore.orchestration.language.durations import parse_duration
from longshore.orchestration.states import TERMINAL

if TYPE_CHECKING:
    from longshore.orchestration.client.replay import Replay
    from longshore.orchestration.client.run import Resolution, Run
    from longshore.orchestration.runs.report import Report


@click.group("runs")
def runs_group() -> None:
    """List, show and watch runs; cancel, resume, undo, approve and resolve."""


@command(runs_group, "ls")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--plan", default="", metavar="NAME", help="Only runs of this plan.")
@click.option("--state", default="", metavar="STATE", help="Only runs in this state.")
@click.option("--label", default="", metavar="KEY[=VALUE]", help="Only runs of plans with this label.")
@click.option("--since", default="", metavar="TIME", help="Only those since: 2h, or a date.")
@click.option("--text", default="", help="A part of the id, the plan, who started it, or the error.")
def ls(limit: int, plan: str, state: str, label: str, since: str, text: str) -> None:
    """The latest runs, newest first."""
    from longshore.orchestration.runs.search import Filter, search  # noqa: PLC0415 - see cli.common

    options, wanted = current(), Filter.read(text, plan, state, label, since)
    asked = client()
    runs = (
        asked.runs(limit)
        if wanted == Filter()
        else [asked.get(row.run_id) for row in search(asked.store, wanted, limit)]
    )
    reports = [report for run in runs if (report := _readable(run)) is not None]
    if options.json:
        options.show([r.model_dump(mode="json", exclude={"steps"}) for r in reports])
        return
    reports = printable.values(reports)
    from rich.table import Table  # noqa: PLC0415 - slow to import

    console = options.console()
    if not console.is_terminal:
        console.width = 200  # for grep, not for a screen
    table = Table("run", "plan", "state", "started", "took", "summary", box=None, header_style="bold", pad_edge=False)
    for report in reports:
        took = f"{report.duration_s:.1f} s" if report.duration_s is not None else ""
        table.add_row(report.run_id, report.plan, report.state, (report.started_at or "")[:19], took, report.summary)
    for column in table.columns[:3]:
        column.no_wrap = True
    console.print(table if reports else "no runs")


def _readable(run: Run) -> Report | None:
    """One run that cannot be read must not keep the others from being listed."""
    try:
        return run.report()
    except ValueError as error:
        say(f"error: run {run.id} cannot be read: {' '.join(str(error).split())[:200]}", err=True)
        return None


@command(runs_group, "show")
@click.argument("run")
def show(run: str) -> None:
    """A run's report; ends with the run's exit code."""
    from longshore.orchestration.client import live  # noqa: PLC0415 - rich is slow to import

    options = current()
    report = client().get(run).report()
    if options.json:
        say_report(report)
    else:
        console = options.console()
        if not console.is_terminal:
            console.width = 1000  # for a pipe, not for a screen
        console.print(live.tree(report), soft_wrap=False)
        options.console().print(live.closing(report))
    leave(report.exit_code or 0)


@command(runs_group, "watch")
@click.argument("run")
def watch(run: str) -> None:
    """Watch a run to its end; ends with the run's exit code."""
    leave(watch_to_end(client().get(run)))


@command(runs_group, "events")
@click.argument("run")
def events(run: str) -> None:
    """Everything that happened in a run, in order."""
    options = current()
    found = client().get(run).events()
    if options.json:
        options.show([{"id": e.id, "event": e.name, "at": e.at, **e.fields} for e in found])
        return
    begin = found[0].at if found else 0
    for event in found:
        facts = " ".join(f"{key}={value}" for key, value in event.fields.items() if value and key != "ver")
        say(f"{(event.at - begin) / 1000:9.3f}  {event.name:20} {facts}")


@command(runs_group, "logs")
@click.argument("run")
@click.argument("step")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come, until the run rests.")
def logs(run: str, step: str, follow: bool) -> None:
    """What a step printed: its last thousand lines; what went to stderr goes there."""
    for stream, line in client().get(run).output(step, follow=follow):
        if current().json:
            say_json(json.dumps({"stream": stream, "line": line}, ensure_ascii=False))
        else:
            say_lines(line, err=stream == "stderr")


@command(runs_group, "cancel")
@click.argument("run")
@click.option("--reason", default="", help="Kept in the run's events.")
@click.option("--keep", is_flag=True, help="Leave what was done as it is; nothing is undone.")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
def cancel(run: str, reason: str, keep: bool, detach: bool) -> None:
    """End a run: nothing new begins, and what was done is taken back."""
    found = client().get(run)
    if current().dry_run:
        undone = "what was done stays" if keep else "what was done is undone"
        _would(found, {"pending", "running", "suspended"}, f"cancel run {run}; {undone}")
        return
    leave(_carried_out(found.id, found.cancel(reason, keep=keep), detach=detach))


@command(runs_group, "undo")
@click.argument("run")
@click.option("--reason", default="", help="Kept in the run's events.")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
def undo(run: str, reason: str, detach: bool) -> None:
    """Take back a run that has ended, or try a failed undo again."""
    found = client().get(run)
    if current().dry_run:
        report = found.report()
        names = [s.name for s in report.steps if s.changed and (s.undo is None or s.undo.status == "undo_failed")]
        states = {"succeeded", "partial", "failed", "undo_failed"}
        _would(found, states, f"undo, in reverse: {', '.join(reversed(names)) or 'nothing'}")
        return
    leave(_carried_out(found.id, found.undo(reason), detach=detach))


@command(runs_group, "resume")
@click.argument("run")
@click.option("--reason", default="", help="Kept in the run's events.")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
def resume(run: str, reason: str, detach: bool) -> None:
    """Have a run go on: where it is suspended, from the first step that is not done, or with a failed undo."""
    from longshore.orchestration.client import live  # noqa: PLC0415 - rich is slow to import

    found, options = client().get(run), current()
    if options.dry_run:
        _would(found, {"failed", "partial", "undo_failed", "suspended"}, f"resume run {run}{_what_is_next(found)}")
        return
    if not _asked(found, found.resume(reason)):
        leave(1)
    if detach:
        tell(f"run {run} is {found.state()}", run_id=run, state=found.state())
        return
    report = found.wait() if options.quiet else live.watch(found, options.console())
    if options.json:
        say_report(report)
    else:
        options.console().print(live.closing(report))
    leave(report.exit_code or 0)


def _would(run: Run, states: set[str], what: str) -> None:
    """What a command would do to a run that is in one of these states; 1 where it would be refused."""
    state = run.state()
    if state not in states:
        say(f"would be refused: run {run.id} is {state}", err=True)
        leave(1)
        return
    tell(f"would {what} (it is {state})", run_id=run.id, state=state)


def _what_is_next(run: Run) -> str:
    """What a resume would do anew."""
    from longshore.orchestration import saga  # noqa: PLC0415 - only here

    if run.state() not in {"failed", "partial"}:
        return ""
    records = run.store.step_records(run.id, range(len(run.plan)))
    again = saga.resumed(run.plan, records)
    return f", and do {', '.join(run.plan.name_of(i) for i in again.steps) or 'nothing'}"


@command(runs_group, "resolve")
@click.argument("run")
@click.argument("step")
@click.option("--done", is_flag=True, help="It happened.")
@click.option("--skip", is_flag=True, help="Go on as if it were not needed.")
@click.option("--undone", is_flag=True, help="It was taken back by hand, or never happened.")
@click.option("--abandon", is_flag=True, help="Leave it as it is; it is named as left over.")
@click.option("--note", default="", help="Kept in the run's events, with who and when.")
def resolve(run: str, step: str, note: str, **words: bool) -> None:
    """Say what became of a step, as one who knows better."""
    said = [name for name, given in words.items() if given]
    if len(said) != 1:
        raise click.UsageError("say one thing of what became of it: --done, --skip, --undone or --abandon")
    word = cast("Resolution", said[0])
    found, options = client().get(run), current()
    if options.dry_run:
        tell(f"would resolve step {step} of run {run}, which is {found.state()}: {word}", run_id=run, step=step)
        return
    if not _asked(found, found.resolve(step, word, note)):
        leave(1)
    tell(f"{word}: step {step} of run {run}, which is {found.state()}", run_id=run, step=step, state=found.state())


def _asked(run: Run, command_id: str) -> bool:
    """Whether a command was carried out; why it was not goes to stderr."""
    answer = run.answer(command_id)
    if answer != "done":
        say(f"error: nothing was done: {answer}", err=True)
    return answer == "done"


@command(runs_group, "replay")
@click.option("--host", default="", help="The host that has lost its data.")
@click.option("--service", default="", help="The service that has lost its data.")
@click.option("--since", metavar="TIME", help="Only what runs did since: 2d, or 2026-01-31T12:00.")
@click.option("--run-id", metavar="ID", help="The id of the run that does it.")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
def replay(host: str, service: str, since: str | None, run_id: str | None, detach: bool) -> None:
    """Do again what runs had done on a host, or at a service: with the recorded parameters, in their order."""
    options, asked = current(), client()
    if options.dry_run:
        would = asked.find_effects(host=host, service=service, since=_moment(since))
        again = [{"source": would.sources[name], "op": step.op} for name, step in would.plan.steps.items()]
        if options.json:
            options.show({"dry_run": True, "again": again, "left_out": [str(one) for one in would.left_out]})
        else:
            for each in again:
                say(f"would do again: {each['source']}: {each['op']}")
        if not would.plan.steps:
            say("there is nothing to do again", err=True)
        _name_what_is_left_out(would)
        would.close()
        return
    run, made = asked.replay(host=host, service=service, since=_moment(since), run_id=run_id)
    _name_what_is_left_out(made)
    if run is None:
        say("there is nothing to do again", err=True)
        leave(3 if made.left_out else 0)
        return
    if detach:
        attend(run, detach=True)
        return
    code = watch_to_end(run)
    leave(code or (3 if made.left_out else 0))


def _name_what_is_left_out(made: Replay) -> None:
    for one in made.left_out:
        say(f"cannot be done again: {one}", err=True)


def _span(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _moment(text: str | None) -> datetime | None:
    """A time, or so long ago."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return datetime.now(UTC) - timedelta(seconds=_span(text))


@command(runs_group, "prune")
@click.argument("runs", nargs=-1, metavar="[RUN]…")
@click.option("--older-than", metavar="TIME", help="Those that have rested for so long, as 7d or 12h.")
@click.option("--plan", "plan_name", help="Only runs of this plan.")
def prune(runs: tuple[str, ...], older_than: str | None, plan_name: str | None) -> None:
    """Forget runs that rest: those named, or those older than the retention time. They cannot be undone then."""
    options, asked = current(), client()
    seconds = _span(older_than) if older_than is not None else asked.settings.retention
    old = asked.store.ended_since(seconds) if older_than is not None or not runs else []
    # Both conditions hold where both are given.
    names = [run_id for run_id in runs or old if older_than is None or run_id in old]
    forgotten, refused = [], []
    for run_id in names:
        found = asked.get(run_id)
        if plan_name is not None and found.plan.plan.name != plan_name:
            continue
        state = found.state()
        if options.dry_run:
            answer, why = "done" if state in TERMINAL else "", f"would be refused: run {run_id} is {state}"
            line = f"would forget run {run_id}, which is {state}"
        else:
            answer = found.prune()
            why, line = f"error: run {run_id}: nothing was done: {answer}", f"forgotten: run {run_id}"
        if answer != "done":
            refused.append(run_id)
            say(why, err=True)
            continue
        forgotten.append(run_id)
        if not options.json and (options.dry_run or not options.quiet):
            say(line)
    if options.json:
        options.show({"dry_run": options.dry_run, "forgotten": forgotten, "refused": refused})
    if refused:
        leave(1)


@command(runs_group, "approve")
@click.argument("run")
@click.argument("step")
@click.option("--reject", is_flag=True, help="Refuse it: the step fails.")
@click.option("--note", default="", help="Kept in the run's events, with who and when.")
def approve(run: str, step: str, reject: bool, note: str) -> None:
    """Decide on a step that waits for a person."""
    found = client().get(run)
    if current().dry_run:
        tell(f"would {'reject' if reject else 'approve'} step {step} of run {run}", run_id=run, step=step)
        return
    answer = found.answer(found.reject(step, note) if reject else found.approve(step, note))
    if answer != "done":
        say(f"error: nothing was done: {answer}", err=True)
        leave(1)
    tell(f"{'rejected' if reject else 'approved'}: step {step} of run {run}", run_id=run, step=step)


def _carried_out(run_id: str, command_id: str, *, detach: bool) -> int:
    """0 if it was done as asked, 1 if it could not be, 3 if something is left over."""
    from longshore.orchestration.client import live  # noqa: PLC0415 - rich is slow to import

    options = current()
    run = client().get(run_id)
    answer = run.answer(command_id)
    if answer != "done":
        say(f"error: nothing was done: {answer}", err=True)
        return 1
    if detach:
        tell(f"run {run_id} is {run.state()}", run_id=run_id, state=run.state())
        return 0
    report = run.wait() if options.quiet else live.watch(run, options.console())
    if options.json:
        say_report(report)
    else:
        options.console().print(live.closing(report))
    return 3 if report.exit_code == 3 else 0
