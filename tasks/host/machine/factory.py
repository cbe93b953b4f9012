"""The machine of an attempt, chosen by its step."""

from __future__ import annotations

from longshore.tasks.host.machine.container import ContainerMachine
from longshore.tasks.host.machine.host import HostMachine
from longshore.tasks.host.machine.port import Machine
from longshore.tasks.implementation import Context


def machine_of(ctx: Context) -> Machine:
    """The machine of this attempt: the step's container, else the worker's host."""
    if ctx.container:
        return ContainerMachine(ctx)
    return HostMachine(ctx)
