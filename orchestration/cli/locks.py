"""`longshore locks …`: who holds what several hosts share."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import client, command, current


@click.group("locks")
def locks_group() -> None:
    """Look at the locks of projects."""


@command(locks_group, "ls")
def ls() -> None:
    """The locks that are held; nothing where none is."""
    from longshore.orchestration.locks import Locks  # noqa: PLC0415 - see cli.common

    options, store = current(), client().store
    found = Locks(store).held()
    if options.json:
        options.show([dataclasses.asdict(holder) for holder in found])
        return
    now = store.now()
    for holder in found:
        click.echo(
            f"{holder.what}  held for {(now - holder.since) / 1000:.0f} s by run {holder.run} step {holder.step} on "
            f"{holder.host} ({holder.why}), its lease for {holder.left:.0f} s more"
        )
