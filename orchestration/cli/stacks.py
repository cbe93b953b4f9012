"""`longshore orchestrate`, and its phases as commands: check, rebuild, select, restart."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import click
import yaml

from longshore.orchestration.cli.common import (
    current_options,
    exit_with,
    global_options,
    print_line,
    print_lines,
)
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.cli.run import print_outcome, show_dry_run, stop_watching, wait_for_end
from longshore.orchestration.cli.stack_options import (
    HOST,
    LABEL,
    REGISTRY,
    RETRY,
    image_option,
    rollout_from,
    rollout_options,
)
from longshore.orchestration.cli.stack_output import (
    check_json,
    check_lines,
    finish,
    print_selection,
    selection_json,
    timestamp,
)
from longshore.orchestration.client.run import Run
from longshore.orchestration.errors import LongshoreError, UsageError
from longshore.orchestration.runs.report import Report
from longshore.orchestration.stacks.orchestrate import Orchestrated, Stacks, failures
from longshore.orchestration.stacks.plan import RolloutOptions
from longshore.orchestration.stacks.selection import Selection, choose, named


def _stacks() -> Stacks:
    return Stacks(client())


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@image_option("Also list all services that run this image, stale or not")
@HOST
@REGISTRY
@global_options
def check(as_json: bool, image: str | None, hosts: tuple[str, ...], registry: bool) -> None:
    """Check that the cached inventory matches the hosts.

    The inventory in Redis lists the Compose stacks of each host with their containers, files and images, and the
    answers of registries. The command changes nothing, and stores no answers. `longshore orchestrate` rebuilds an
    invalid inventory. To find services that need a restart, use `longshore select`. With -q, lines about valid
    inventories are left out, and the other lines go to stderr.

    \b
    Exit codes:
      0  the inventory is valid
      1  the inventory needs a rebuild
      2  a host could not be checked, for example a drained one
      2  Redis does not answer, or wrong usage
    """
    as_json = as_json or current_options().json
    found = None
    try:
        stacks = _stacks()
        checked = stacks.check(hosts, registry=registry, state=image is not None)
        if image is not None:
            found = choose(stacks.rules, checked.seen, {}, image=image, running=True)
    except LongshoreError as error:
        if as_json:
            failure = {"valid": False, "reason": None, "code": error.code, "error": str(error)}
            current_options().show(failure | {"timestamp": timestamp(), "exit_code": 2})
        else:
            print_line(f"error[{error.code}]: cache check failed: {error}", err=True)
        return exit_with(2)
    if as_json:
        current_options().show(check_json(checked, found))
    else:
        quiet = current_options().quiet
        for line in check_lines(checked, stale_only=quiet):
            print_line(line, err=quiet)
        if found is not None:
            print_selection(found)
    for host, why in checked.errors.items():
        print_line(f"error: {host}: {why}", err=True)
    return exit_with(checked.exit_code)


# --- rebuild ----------------------------------------------------------------------------------------


@click.command("rebuild")
@click.option("--force", is_flag=True, help="Do not ask for confirmation.")
@HOST
@click.option(
    "--registry",
    is_flag=True,
    help="Ask registries for newer images. Default: forget the newer images that earlier commands have found.",
)
@global_options
def rebuild(force: bool, hosts: tuple[str, ...], registry: bool) -> None:
    """Inspect each host again, and replace the cached inventory.

    Use the command if the cached inventory seems wrong: the inspection uses no cached data. If the inspection fails,
    the earlier inventory of the host remains. Without --force, the command reads a confirmation, y or N, from stdin.

    \b
    Exit codes:
      0  rebuilt
      1  no host was rebuilt, or the answer was not y
      3  some hosts failed
    """
    stacks = _stacks()
    present, missing = stacks.hosts(hosts)
    options = current_options()
    if options.dry_run:
        return exit_with(show_dry_run(stacks.rebuild_plan(present, registry=registry), {}) if present else 1)
    if not force and not _confirmed(f"Replace the cached inventory of {', '.join(present) or 'no host'}?"):
        print_line("Aborted", err=True)
        return exit_with(1)
    report = stacks.rebuild(present, registry=registry) if present else None
    failed = missing | (failures(report) if report else {})
    built = {step.name: step.data for step in report.steps if step.name not in failed} if report else {}
    if options.json:
        options.show({"rebuilt": built, "errors": failed, "run_id": report.run_id if report else None})
    elif not options.quiet:
        for host, data in built.items():
            print_line(f"{host}: generation {data['generation']}: {data['projects']} projects, {data['services']} "
                       f"services, {data['stale']} stale")  # fmt: skip
    for host, why in failed.items():
        print_line(f"error: cache rebuild failed: {host}: {why}", err=True)
    return exit_with(0 if not failed else 3 if built else 1)


def _confirmed(question: str) -> bool:
    """Ask a question. The answer is a line of stdin, also without a terminal."""
    print_line(f"{question} [y/N]: ", err=True, nl=not sys.stdin.isatty())
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


# --- select -----------------------------------------------------------------------------------------


@click.command("select")
@LABEL
@image_option("List all services that run this image, stale or not")
@HOST
@REGISTRY
@RETRY
@partial(global_options, without="--output")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "text", "json", "names", "yaml"]),
    default="table",
    show_default=True,
    help="Output format. names: one name per line, as input of longshore restart.",
)
def select(
    labels: tuple[str, ...], image: str | None, hosts: tuple[str, ...], registry: bool, retry: bool, form: str
) -> None:
    """List stale services, or all services that run an image.

    A service is stale if its containers are missing or unhealthy, or differ from its Compose files, mounted files or
    images. Containers that a person has stopped are left alone, and projects without containers are ignored.

    The command inspects each host, so that the list also shows changes since the inventory was stored. Before this, the
    command rebuilds each cached inventory that is missing, expired or unreadable. With --registry, all inventories are
    rebuilt; with --dry-run, none.

    \b
    Exit codes:
      0  all hosts inspected, whether services are stale or not
      1  Redis does not answer, or no host has a worker with a Docker engine
      2  wrong usage, or no host inspected
      3  some hosts or projects not inspected
    """
    stacks = _stacks()
    found = stacks.select(
        hosts, labels=labels, image=image, registry=registry, retry=retry, read_only=current_options().dry_run
    )
    form = "json" if current_options().json and form == "table" else form
    if form == "names":
        for one in found.chosen:
            print_line(found.name(one))
    elif form in {"json", "yaml"}:
        document = selection_json(found)
        if form == "yaml":
            print_lines(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip())
        else:
            current_options().show(document)
    else:
        print_selection(found)
    for host, why in found.errors.items():
        print_line(f"error: {host}: {why}", err=True)
    for note in found.undetermined:
        print_line(f"error: {note}", err=True)
    return exit_with(0 if not found.incomplete else 3 if found.seen else 2)


# --- restart and orchestrate ------------------------------------------------------------------------


@click.command("restart")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@LABEL
@HOST
@REGISTRY
@rollout_options
@global_options
def restart(
    names: tuple[str, ...],
    labels: tuple[str, ...],
    hosts: tuple[str, ...],
    registry: bool,
    run_id: str | None,
    detach: bool,
    **rollout_options: Any,
) -> None:
    """Restart or redeploy stale services, or named services.

    Without NAME, the command waits for other runs that restart services, and then restarts the services that `longshore
    select` lists. NAME has one of these forms:

    \b
    PROJECT/SERVICE  the service, even if it is not stale
    SERVICE          the same, if only one project has a service of this name
    PROJECT          the running and the stale services of the project
    HOST:NAME        NAME on this host only; without HOST, NAME on all hosts
    -                names from stdin, one per line

    Newer images that --registry has found, also in an earlier command, are pulled first. If a stack does not become
    healthy, its earlier version is restored.

    Ctrl-C ends the command after two seconds, and the run continues. A second Ctrl-C in this time cancels the run.
    With --on-failure keep, a stack that is being restarted when the run is cancelled stays as it is at that moment: use
    `longshore runs resume` or `longshore runs undo`.

    \b
    Exit codes:
      0  nothing to do, or all selected stacks are up to date
      1  no change remains: the run was cancelled, or, with --on-failure undo, a
         stack failed
      1  no host is known, or Redis does not answer (the run may continue)
      2  no inspected host has NAME, also if no host could be inspected
      3  after a cancellation or failure, a change remains or may remain
      3  some hosts or stacks could not be inspected; without NAME, also if none
         could be inspected
      3  with --on-failure keep (the default), a stack failed, even if its earlier
         version was restored
    """
    requested = _read_names(names)
    rollout = rollout_from(rollout_options)
    stacks = _stacks()
    if not names and not current_options().dry_run:
        stacks.wait_for_active_runs(hosts)
    # A stale service that is named needs its own action: labels filter after the names.
    among = () if names else labels
    found = stacks.select(
        hosts, labels=among, registry=registry, retry=rollout["retry"], read_only=current_options().dry_run
    )
    if names:
        found = replace(found, chosen=named(requested, found, labels))
    if not found.chosen:
        return finish(_nothing_to_restart(found))
    if current_options().dry_run:
        return exit_with(show_dry_run(stacks.plan(found, rollout, asked=bool(names)), {}))
    run = stacks.start(found, rollout, asked=bool(names), run_id=run_id)
    return finish(stacks.ended(_watch(run, detach=detach), found))


def _read_names(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        found += [line.strip() for line in sys.stdin] if name == "-" else [name]
    found = [name for name in found if name]
    if names and not found:
        raise UsageError("no services specified", remedy="choose from the list of longshore select -o names")
    return found


def _nothing_to_restart(found: Selection) -> Orchestrated:
    return Orchestrated("select", "no services need a restart", 3 if found.incomplete else 0, found)


@click.command("orchestrate")
@LABEL
@image_option("Only stale services that run this image")
@HOST
@REGISTRY
@rollout_options
@global_options
def orchestrate(
    labels: tuple[str, ...],
    image: str | None,
    hosts: tuple[str, ...],
    registry: bool,
    run_id: str | None,
    detach: bool,
    **rollout_options: Any,
) -> None:
    """Find stale services, and restart or redeploy them.

    The command first waits for other runs that restart services. Then the command does the work of `longshore check`,
    `rebuild` (if needed), `select` and `restart`. `longshore select --help` defines stale.

    Newer images that --registry has found, also in an earlier command, are pulled first. If a stack does not become
    healthy, its earlier version is restored.

    Ctrl-C ends the command after two seconds, and the run continues. A second Ctrl-C in this time cancels the run.
    With --on-failure keep, a stack that is being restarted when the run is cancelled stays as it is at that moment: use
    `longshore runs resume` or `longshore runs undo`.

    \b
    Exit codes:
      0  nothing to do, or all stacks are up to date
      1  no change remains: the run was cancelled, or, with --on-failure undo, a
         stack failed
      1  no host is known, or none could be inspected
      1  Redis does not answer (the run may continue)
      3  after a cancellation or failure, a change remains or may remain
      3  some hosts or stacks could not be inspected, for example a drained host
      3  with --on-failure keep (the default), a stack failed, even if its earlier
         version was restored
    """
    rollout = rollout_from(rollout_options)
    stacks = _stacks()
    if current_options().dry_run:
        return _dry_run_orchestrate(stacks, labels, image, hosts, registry, rollout)
    quiet = current_options().quiet or current_options().json
    return finish(
        stacks.orchestrate(
            hosts,
            labels=labels,
            image=image,
            registry=registry,
            run_id=run_id,
            progress=lambda line: None if quiet else print_line(line),
            watch=lambda run: _watch(run, detach=detach),
            **rollout,
        )
    )


def _dry_run_orchestrate(
    stacks: Stacks,
    labels: Sequence[str],
    image: str | None,
    hosts: Sequence[str],
    registry: bool,
    rollout: RolloutOptions,
) -> None:
    """Print the selection and the plan of an `orchestrate`, from reads only."""
    checked = stacks.check(hosts, registry=registry, state=True)
    found = choose(stacks.rules, checked.seen, checked.errors, labels=labels, image=image, retry=rollout["retry"])
    options = current_options()
    code = 3 if found.incomplete else 0
    plan = stacks.plan(found, rollout) if found.chosen else None
    if options.json:
        steps = client().dry_run(plan) if plan is not None else []
        possible = not any(step["impossible"] for step in steps)
        options.show({"dry_run": True, "plan": "orchestrate", "possible": possible, "steps": steps,
                      "check": check_json(checked, None), "select": selection_json(found)})  # fmt: skip
        return exit_with(code if possible else 1)
    for line in check_lines(checked):
        print_line(line.replace("needs rebuild", "would be rebuilt"))
    print_selection(found)
    if plan is not None:
        code = show_dry_run(plan, {}) or code
    for host, why in found.errors.items():
        print_line(f"error: {host}: {why}", err=True)
    for note in found.undetermined:
        print_line(f"error: {note}", err=True)
    return exit_with(code)


def _watch(run: Run, *, detach: bool) -> Report:
    options = current_options()
    if detach:
        options.show({"run_id": run.id, "attached": run.attached}) if options.json else print_line(run.id)
        exit_with(0)
    try:
        report = wait_for_end(run)
    except KeyboardInterrupt:
        exit_with(stop_watching(run))
        raise
    if not options.json:
        print_outcome(report, report.exit_code or 0)
    return report
