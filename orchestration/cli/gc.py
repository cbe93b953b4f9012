"""`longshore gc`: deletion of backups that no undo needs any more."""

from __future__ import annotations

import click

from longshore.orchestration.cli.common import (
    current_options,
    exit_with,
    global_options,
    print_line,
    print_report,
)
from longshore.orchestration.cli.inputs import client, read_duration
from longshore.orchestration.cli.run import start_and_watch
from longshore.orchestration.plans.model import single


@click.command()
@click.option(
    "--older-than", metavar="DURATION", help="Only backups at least this old, e.g. 30d. Default: LONGSHORE_RETENTION."
)
@click.option("--host", default="_all", metavar="HOST", help="Only this host. Default: all hosts with a Docker engine.")
@click.option(
    "--every-run",
    is_flag=True,
    help="Also delete backups of runs without receipts on the host. Another installation on the same Docker engine "
    "may own them, and can then no longer undo its runs.",
)
@global_options
def gc(older_than: str | None, host: str, every_run: bool) -> None:
    """Delete backups that no undo needs any more.

    On each host with a Docker engine, the command deletes the backups of runs whose records were deleted: image tags,
    replaced containers, saved configurations of stacks, former contents of files, and receipts. Workers with an engine
    do the same once an hour. On all other hosts, workers delete former contents of files and receipts after four times
    LONGSHORE_RETENTION.

    A run that Redis does not have counts as deleted. After a loss of Redis, restore Redis before you use the command.
    Installations that share a state folder need different values of LONGSHORE_NAMESPACE. Otherwise, one deletes the
    backups of the other.
    """
    params: dict[str, object] = {"every_run": True} if every_run else {}
    if older_than is not None:
        params["older_than"] = read_duration(older_than, "--older-than")
    options, plan = current_options(), single("docker.gc.execute", params, target=host)
    if options.dry_run:
        start_and_watch(plan, {}, None, detach=False, show=True)
        return
    report = client().start(plan).wait()
    if options.json:
        print_report(report)
        exit_with(report.exit_code or 0)
        return
    for part in report.steps[0].hosts or ():
        data = part.data
        if part.error:
            print_line(f"{part.host}: {part.error}", err=True)
            continue
        for kind in ("images", "containers", "files"):
            for name in data.get(kind, ()):
                print_line(f"{part.host}: {name}")
        print_line(f"{part.host}: {data.get('receipts', 0)} receipts, {data.get('bytes', 0)} bytes of files")
    if report.error:
        print_line(f"error: {report.error.message}", err=True)
    exit_with(report.exit_code or 0)
