"""`longshore locks …`: locks that several hosts share, with their holders."""

from __future__ import annotations

import dataclasses

import click

from longshore.orchestration.cli.common import command, current_options, print_line
from longshore.orchestration.cli.inputs import client
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.locks import Locks


@click.group("locks")
def locks_group() -> None:
    """List the locks that runs and steps hold."""


@command(locks_group, "ls")
def ls() -> None:
    """List the locks that are held, with holder, reason and lease.

    A run or step that needs a held lock waits. A run whose plan names a stack and its host holds the lock
    `project HOST/NAME` until the run ends. A step holds a lock, such as `project NAME`, while the step acts. This lock
    expires if the worker of the step does not renew its lease.
    """
    options, store = current_options(), client().store
    holders, runs = Locks(store).held(), Admission(store).held()
    if options.json:
        of_runs = [{"name": name, "what": f"project {name}", "run": run, "since": since} for name, run, since in runs]
        options.show([dataclasses.asdict(holder) for holder in holders] + of_runs)
        return
    now = store.now()
    for name, run, since in runs:
        print_line(f"project {name}  held for {(now - since) / 1000:.0f} s by run {run}, until the run ends")
    for holder in holders:
        print_line(
            f"{holder.what}  held for {(now - holder.since) / 1000:.0f} s by run {holder.run} step {holder.step} on "
            f"{holder.host} ({holder.why}), lease expires in {holder.left:.0f} s"
        )
