"""`longshore locks …`: who holds what several hosts share."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import client, command, current, say


@click.group("locks")
def locks_group() -> None:
    """Look at the locks of projects."""


@command(locks_group, "ls")
def ls() -> None:
    """The locks that are held; nothing where none is."""
    from longshore.orchestration.store.admission import Admission  # noqa: PLC0415
    from longshore.orchestration.store.locks import Locks  # noqa: PLC0415 - see cli.common

    options, store = current(), client().store
    found, runs = Locks(store).held(), Admission(store).held()
    if options.json:
        of_runs = [{"name": name, "what": f"project {name}", "run": run, "since": since} for name, run, since in runs]
        options.show([dataclasses.asdict(holder) for holder in found] + of_runs)
        return
    now = store.now()
    for name, run, since in runs:
        say(f"project {name}  held for {(now - since) / 1000:.0f} s by run {run}, to its end")
    for holder in found:
        say(
            f"{holder.what}  held for {(now - holder.since) / 1000:.0f} s by run {holder.run} step {holder.step} on "
            f"{holder.host} ({holder.why}), its lease for {holder.left:.0f} s more"
        )
