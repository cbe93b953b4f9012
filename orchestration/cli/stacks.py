"""`longshore orchestrate`, and its phases one by one: check, rebuild, select, restart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import yaml

from longshore.orchestration.cli.common import client, current, global_options, leave, say, say_lines, show_table
from longshore.orchestration.cli.run import left_alone, show_dry_run
from longshore.orchestration.errors import LongshoreError, UsageError
from longshore.orchestration.language.durations import parse_duration

if TYPE_CHECKING:
    from longshore.orchestration.client.run import Run
    from longshore.orchestration.runs.report import Report
    from longshore.orchestration.stacks.orchestrate import Checked, Orchestrated, RolloutOptions, Selection, Stacks

_HOST = click.option("--host", "hosts", multiple=True, metavar="HOST", help="Only this host; may be given again.")
_REGISTRY = click.option("--registry", is_flag=True, help="Ask registries whether tags have moved; nothing is pulled.")
_IMAGE = click.option("--image", metavar="IMAGE", help="What runs this image: a name, with or without tag, or an id.")
_LABEL = click.option(
    "--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Only containers with this label."
)


def _rollout_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--max-parallel", type=click.IntRange(1), help="So many stacks at once."),
        click.option("--canary", type=click.IntRange(1), help="So many stacks first; if one fails, the rest is left."),
        click.option(
            "--on-failure",
            type=click.Choice(["keep", "undo"]),
            default="keep",
            show_default=True,
            help="keep: each stack that fails goes back by itself; undo: all go back.",
        ),
        click.option("--healthy-deadline", metavar="TIME", default="60s", show_default=True, help="To get well."),
        click.option(
            "--min-healthy-time", metavar="TIME", default="5s", show_default=True, help="Without a health check."
        ),
        click.option("--run-id", metavar="ID", help="Of the run that restarts."),
        click.option("--detach", is_flag=True, help="Print that run's id and leave it running."),
    ):
        function = option(function)
    return function


def _rollout(said: dict[str, Any]) -> RolloutOptions:
    from longshore.orchestration.stacks.plan import RolloutOptions  # noqa: PLC0415 - see cli.common

    for name in ("healthy_deadline", "min_healthy_time"):
        try:
            said[name] = parse_duration(said[name])
        except ValueError as error:
            raise UsageError(f"--{name.replace('_', '-')}: {error}") from None
    return RolloutOptions(**said)


# --- check ------------------------------------------------------------------------------------------


def _stacks() -> Stacks:
    from longshore.orchestration.stacks.orchestrate import Stacks  # noqa: PLC0415 - see cli.common

    return Stacks(client())


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@_IMAGE
@_HOST
@_REGISTRY
@global_options
def check(as_json: bool, image: str | None, hosts: tuple[str, ...], registry: bool) -> None:
    """Whether the cache of what is deployed says what is there. Changes nothing.

    Exit codes: 0 valid, 1 needs a rebuild, 2 it cannot be told.
    """
    as_json = as_json or current().json
    found = None
    try:
        stacks = _stacks()
        checked = stacks.check(hosts, registry=registry, state=image is not None)
        if image is not None:
            from longshore.orchestration.stacks.selection import choose  # noqa: PLC0415 - see cli.common

            found = choose(stacks.rules, checked.seen, {}, image=image, running=True)
    except LongshoreError as error:
        if as_json:
            current().show({"valid": False, "reason": None, "error": str(error), "timestamp": _now(), "exit_code": 2})
        else:
            say(f"error: cache check failed: {error}", err=True)
        return leave(2)
    if as_json:
        current().show(_check_json(checked, found))
    elif not current().quiet:
        for line in _check_lines(checked):
            say(line)
        if found is not None:
            _table(found)
    for host, why in checked.errors.items():
        say(f"error: {host}: {why}", err=True)
    return leave(checked.exit_code)


def _check_lines(checked: Checked) -> Iterable[str]:
    for one in checked.hosts:
        if one.valid:
            yield f"{one.host}: cache valid (generation {one.generation}, {one.age_s or 0:.0f} s old)"
        elif not one.error:
            yield f"{one.host}: cache needs rebuild: {one.reason}"


def _check_json(checked: Checked, found: Selection | None) -> dict[str, Any]:
    said: dict[str, Any] = {"valid": checked.valid, "reason": checked.reason or None, "timestamp": _now()}
    said |= {"hosts": [one.as_json() for one in checked.hosts], "exit_code": checked.exit_code}
    return said | ({"deployments": _deployments(found)} if found is not None else {})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- rebuild ----------------------------------------------------------------------------------------


@click.command("rebuild")
@click.option("--force", is_flag=True, help="Do not ask.")
@_HOST
@_REGISTRY
@global_options
def rebuild(force: bool, hosts: tuple[str, ...], registry: bool) -> None:
    """Build the cache of what is deployed from nothing, and trust nothing of what was cached.

    Asks first; without a terminal it reads the answer from its input. Exit codes: 0 built, 1 not (or no answer), 2
    usage, 3 not of every host.
    """
    from longshore.orchestration.stacks.orchestrate import failures  # noqa: PLC0415 - see cli.common

    stacks = _stacks()
    there, away = stacks.hosts(hosts)
    options = current()
    if options.dry_run:
        return leave(show_dry_run(stacks.rebuild_plan(there, registry=registry), {}) if there else 1)
    if not force and not _confirmed(f"What is cached of {', '.join(there) or 'no host'} is thrown away. Continue?"):
        say("Aborted", err=True)
        return leave(1)
    report = stacks.rebuild(there, registry=registry) if there else None
    failed = away | (failures(report) if report else {})
    built = {step.name: step.data for step in report.steps if step.name not in failed} if report else {}
    if options.json:
        options.show({"rebuilt": built, "errors": failed, "run_id": report.run_id if report else None})
    elif not options.quiet:
        for host, data in built.items():
            say(f"{host}: generation {data['generation']}: {data['projects']} projects, {data['services']} "
                       f"services, {data['stale']} stale")  # fmt: skip
    for host, why in failed.items():
        say(f"error: cache rebuild failed: {host}: {why}", err=True)
    return leave(0 if not failed else 3 if built else 1)


def _confirmed(question: str) -> bool:
    """On a terminal it is asked; otherwise the answer is the first line of the input."""
    say(f"{question} [y/N]: ", err=True, nl=not sys.stdin.isatty())
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


# --- select -----------------------------------------------------------------------------------------


@click.command("select")
@_LABEL
@_IMAGE
@_HOST
@_REGISTRY
@partial(global_options, without="--output")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "text", "json", "names", "yaml"]),
    default="table",
    show_default=True,
    help="Form of the output.",
)
def select(labels: tuple[str, ...], image: str | None, hosts: tuple[str, ...], registry: bool, form: str) -> None:
    """What does not run as its files and images say, and why. Restarts nothing."""
    stacks = _stacks()
    found = stacks.select(hosts, labels=labels, image=image, registry=registry, read_only=current().dry_run)
    form = "json" if current().json and form == "table" else form
    if form == "names":
        for one in found.chosen:
            say(found.name(one))
    elif form in {"json", "yaml"}:
        said = _selection_json(found)
        if form == "yaml":
            say_lines(yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip())
        else:
            current().show(said)
    else:
        _table(found)
    for host, why in found.errors.items():
        say(f"error: {host}: {why}", err=True)
    for note in found.undetermined:
        say(f"error: {note}", err=True)
    return leave(0 if not found.incomplete else 3 if found.seen else 2)


def _deployments(found: Selection) -> list[dict[str, Any]]:
    return [one.as_json() | {"name": found.name(one)} for one in found.chosen]


def _selection_json(found: Selection) -> dict[str, Any]:
    notes = [
        {"host": one.host, "project": one.project, "service": one.service or None, "text": one.text}
        for one in found.notes
    ]
    wrong = {f"{one.host}:{one.project}": one.text for one in found.undetermined}
    said = {"deployments": _deployments(found), "count": len(found.chosen), "left_alone": notes}
    return said | {"errors": found.errors | wrong}


def _table(found: Selection) -> None:
    if not found.chosen:
        say("no deployments selected")
    else:
        rows = [("HOST", "PROJECT", "SERVICE", "ACTION", "REASON")]
        rows += [(o.host, o.project, o.service, o.action, ", ".join(map(str, o.reasons))) for o in found.chosen]
        show_table(rows)
    for note in found.notes:
        say(f"left alone: {note}")


# --- restart, and all of it -------------------------------------------------------------------------


@click.command("restart")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_LABEL
@_HOST
@_REGISTRY
@_rollout_options
@global_options
def restart(
    names: tuple[str, ...],
    labels: tuple[str, ...],
    hosts: tuple[str, ...],
    registry: bool,
    run_id: str | None,
    detach: bool,
    **said: Any,
) -> None:
    """Bring right what `select` selects; or restart the deployments NAME: project/service, a project, or a service.

    With - for NAME they are read from the input, one in a line; an empty input is an error. Exit codes: 0 all are
    right, 1 it was cancelled, or all was taken back, 2 usage or a name that does not exist, 3 some stack is not right.
    """
    asked = _names(names)
    rollout = _rollout(said)
    stacks = _stacks()
    if not names:
        stacks.wait_for_active_runs(hosts)
    found = stacks.select(hosts, labels=labels, registry=registry, read_only=current().dry_run)
    if names:
        from longshore.orchestration.stacks.selection import named  # noqa: PLC0415 - see cli.common

        found = replace(found, chosen=named(asked, found))
    if not found.chosen:
        return _end(_nothing(found))
    if current().dry_run:
        return leave(show_dry_run(stacks.plan(found, rollout, asked=bool(names)), {}))
    run = stacks.start(found, rollout, asked=bool(names), run_id=run_id)
    return _end(stacks.ended(_watched(run, detach=detach), found))


def _names(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        found += [line.strip() for line in sys.stdin] if name == "-" else [name]
    found = [name for name in found if name]
    if names and not found:
        raise UsageError("no deployments specified", remedy="longshore select -o names lists them")
    return found


def _nothing(found: Selection) -> Orchestrated:
    from longshore.orchestration.stacks.orchestrate import Orchestrated  # noqa: PLC0415 - see cli.common

    return Orchestrated("select", "no deployments need restart", 3 if found.incomplete else 0, found)


@click.command("orchestrate")
@_LABEL
@_IMAGE
@_HOST
@_REGISTRY
@_rollout_options
@global_options
def orchestrate(
    labels: tuple[str, ...],
    image: str | None,
    hosts: tuple[str, ...],
    registry: bool,
    run_id: str | None,
    detach: bool,
    **said: Any,
) -> None:
    """Check the cache, rebuild it where needed, select what is stale, and bring it right.

    Exit codes: 0 nothing to do, or all is right now; 1 a phase failed before anything was touched, or all was taken
    back; 2 usage; 3 some stack is not right, or could not be looked at.
    """
    rollout = _rollout(said)
    stacks = _stacks()
    if current().dry_run:
        return _show_dry_run_of_all(stacks, labels, image, hosts, registry, rollout)
    quiet = current().quiet or current().json
    return _end(
        stacks.orchestrate(
            hosts,
            labels=labels,
            image=image,
            registry=registry,
            run_id=run_id,
            progress=lambda line: None if quiet else say(line),
            watch=lambda run: _watched(run, detach=detach),
            **asdict(rollout),
        )
    )


def _show_dry_run_of_all(
    stacks: Stacks,
    labels: Sequence[str],
    image: str | None,
    hosts: Sequence[str],
    registry: bool,
    rollout: RolloutOptions,
) -> None:
    """What a run would find and do, from looks alone."""
    from longshore.orchestration.stacks.selection import choose  # noqa: PLC0415 - see cli.common

    checked = stacks.check(hosts, registry=registry, state=True)
    found = choose(stacks.rules, checked.seen, checked.errors, labels=labels, image=image)
    options = current()
    code = 3 if found.incomplete else 0
    plan = stacks.plan(found, rollout) if found.chosen else None
    if options.json:
        steps = client().dry_run(plan) if plan is not None else []
        possible = not any(step["impossible"] for step in steps)
        options.show({"dry_run": True, "plan": "orchestrate", "possible": possible, "steps": steps,
                      "check": _check_json(checked, None), "select": _selection_json(found)})  # fmt: skip
        return leave(code if possible else 1)
    for line in _check_lines(checked):
        say(line.replace("needs rebuild", "would be rebuilt"))
    _table(found)
    if plan is not None:
        code = show_dry_run(plan, {}) or code
    for host, why in found.errors.items():
        say(f"error: {host}: {why}", err=True)
    for note in found.undetermined:
        say(f"error: {note}", err=True)
    return leave(code)


def _watched(run: Run, *, detach: bool) -> Report:
    from longshore.orchestration.client import live  # noqa: PLC0415 - rich is slow to import

    options = current()
    if detach:
        options.show({"run_id": run.id, "attached": run.attached}) if options.json else say(run.id)
        leave(0)
    try:
        report = run.wait() if options.quiet else live.watch(run, options.console())
    except KeyboardInterrupt:
        leave(left_alone(run))
        raise
    if not options.json:
        options.console().print(live.closing(report))
    return report


def _end(done: Orchestrated) -> None:
    """Say how it ended, and end the command."""
    options = current()
    if options.json:
        report = done.report.model_dump(mode="json") if done.report is not None else None
        stacks = {"right": list(done.stacks.right), "wrong": done.stacks.wrong}
        options.show({"phase": done.phase, "message": done.message, "exit_code": done.exit_code,
                      "rebuilt": list(done.rebuilt), "stacks": stacks, "select": _selection_json(done.selection),
                      "report": report})  # fmt: skip
    else:
        for note in [] if options.quiet else done.selection.notes:
            say(f"left alone: {note}")
        say(done.message, err=done.exit_code != 0)
    return leave(done.exit_code)


__all__ = ["check", "orchestrate", "rebuild", "restart", "select"]
