"""`longshore doctor`: a diagnosis of a live installation."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import current_options, exit_with, global_options, print_line
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.installation import doctor as checks

_GRADES = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


@click.command()
@global_options
def doctor() -> None:
    """Diagnose the installation.

    The command checks Redis, queues, workers, hosts, stored plans and waiting runs, and prints a remedy for each
    problem. With -q, the command prints only errors.

    \b
    Exit codes:
      0  no errors (warnings are allowed)
      1  at least one error, or Redis does not answer
    """
    options = current_options()
    findings = checks.examine(client().store)
    if options.json:
        options.show([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            if options.quiet and finding.grade != "error":
                continue
            remedy = f": {finding.remedy}" if finding.remedy else ""
            print_line(f"{_GRADES[finding.grade]}  {finding.what}{remedy}")
    exit_with(1 if any(finding.grade == "error" for finding in findings) else 0)
