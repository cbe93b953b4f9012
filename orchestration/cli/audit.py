"""`longshore audit`: who did what, from where, and what was refused."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import client, current, global_options, show_table


@click.command()
@click.option("-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--run", default="", metavar="RUN", help="Only what is about this run.")
@click.option("--refused", is_flag=True, help="Only what was refused.")
@global_options
def audit(limit: int, run: str, refused: bool) -> None:
    """The audit trail, the latest last."""
    from longshore.orchestration.store.audit import lines  # noqa: PLC0415 - see cli.common

    found = list(lines(client().store, limit=limit, run=run, refused=refused))[::-1]
    if current().json:
        current().show([dataclasses.asdict(line) | {"at": line.at.isoformat()} for line in found])
        return
    rows = [("WHEN", "WHAT", "WHO", "FROM", "RUN", "STEP", "WHY")]
    for line in found:
        about = line.run or line.plan
        what = f"{line.what} (as a client says)" if line.by_client else line.what
        rows.append((f"{line.at:%Y-%m-%d %H:%M:%S}", what, line.actor, line.origin, about, line.step, line.why))
    show_table(rows)
