"""`longshore doctor`: diagnose a live installation."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import client, current, global_options, leave, say

_MARKS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


@click.command()
@global_options
def doctor() -> None:
    """Look at Redis, the workers, and what waits for somebody; 1 where something is wrong."""
    from longshore.orchestration.installation.doctor import examine  # noqa: PLC0415 - see cli.common

    options = current()
    found = examine(client().store)
    if options.json:
        options.show([dataclasses.asdict(finding) for finding in found])
    else:
        for finding in found:
            if options.quiet and finding.grade == "ok":
                continue
            say(f"{_MARKS[finding.grade]}  {finding.what}" + (f": {finding.remedy}" if finding.remedy else ""))
    leave(1 if any(finding.grade == "error" for finding in found) else 0)
