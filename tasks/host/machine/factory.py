"""The machine that an attempt works on, chosen by its step."""

from __future__ import annotations

from longshore.tasks.host.machine.port import Machine
from longshore.tasks.implementation import Context


def machine_of(ctx: Context) -> Machine:
    """The place where this attempt is at work."""
    if ctx.container:
        from longshore.tasks.host.machine.container import ContainerMachine  # noqa: PLC0415 - it needs an engine

        return ContainerMachine(ctx)
    from longshore.tasks.host.machine.host import HostMachine  # noqa: PLC0415 - it implements this

    return HostMachine(ctx)
