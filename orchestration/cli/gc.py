"""`longshore gc`: what was kept for undo, and is of no use any more."""

from __future__ import annotations

import click

from longshore.orchestration.cli.common import client, current, global_options, leave, say, say_report
from longshore.orchestration.errors import UsageError
from longshore.orchestration.language.durations import parse_duration


@click.command()
@click.option("--older-than", metavar="DURATION", help="How long ago it was kept; the retention if left out.")
@click.option("--host", default="_all", metavar="HOST", help="One host; all that have an engine if left out.")
@click.option("--every-run", is_flag=True, help="Also what no receipt tells to be of this installation.")
@global_options
def gc(older_than: str | None, host: str, every_run: bool) -> None:
    """Take away, on each host, what was kept for the undo of runs that are forgotten: images' names, containers that
    were put aside, revisions of stacks, receipts. What a run that is known may need stays.
    """
    from longshore.orchestration.cli.run import begin  # noqa: PLC0415 - see cli.common
    from longshore.orchestration.plans.model import single  # noqa: PLC0415

    params: dict[str, object] = {"every_run": True} if every_run else {}
    if older_than is not None:
        try:
            params["older_than"] = parse_duration(older_than)
        except ValueError as error:
            raise UsageError(f"--older-than: {error}") from None
    options, plan = current(), single("docker.gc.execute", params, target=host)
    if options.dry_run:
        begin(plan, {}, None, detach=False, show=True)
        return
    report = client().start(plan).wait()
    if options.json:
        say_report(report)
        leave(report.exit_code or 0)
        return
    for part in report.steps[0].hosts or ():
        data = part.data
        if part.error:
            say(f"{part.host}: {part.error}", err=True)
            continue
        for what in ("images", "containers", "files"):
            for name in data.get(what, ()):
                say(f"{part.host}: {name}")
        say(f"{part.host}: {data.get('receipts', 0)} receipts, {data.get('bytes', 0)} bytes of files")
    if report.error:
        say(f"error: {report.error.message}", err=True)
    leave(report.exit_code or 0)
