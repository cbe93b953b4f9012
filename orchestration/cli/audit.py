"""`longshore audit`: the audit trail of commands and refused requests."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import current_options, global_options, print_table
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.store import audit as audit_trail


@click.command()
@click.option(
    "-n",
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Maximum number of entries; the latest ones are printed.",
)
@click.option("--run", default="", metavar="RUN", help="Only entries about this run.")
@click.option("--refused", is_flag=True, help="Only refused requests.")
@global_options
def audit(limit: int, run: str, refused: bool) -> None:
    """Print the audit trail, oldest entry first.

    Entries are starts of runs, commands to runs such as cancel or approve, pauses and resumes of schedules, and refused
    requests. Drains of hosts and resets of breakers have no entry. No worker has checked the entries that are marked
    "(as a client says)".
    """
    entries = list(audit_trail.lines(client().store, limit=limit, run=run, refused=refused))[::-1]
    options = current_options()
    if options.json:
        options.show([dataclasses.asdict(entry) | {"at": entry.at.isoformat()} for entry in entries])
        return
    rows = [("WHEN", "ACTION", "ACTOR", "FROM", "RUN", "STEP", "REASON")]
    for entry in entries:
        run_or_plan = entry.run or entry.plan
        action = f"{entry.what} (as a client says)" if entry.by_client else entry.what
        rows.append(
            (f"{entry.at:%Y-%m-%d %H:%M:%S}", action, entry.actor, entry.origin, run_or_plan, entry.step, entry.why)
        )
    print_table(rows)
