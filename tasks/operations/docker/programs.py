"""`docker.exec`: a program inside a container that runs."""

from __future__ import annotations

from longshore.orchestration.operations.docker.programs import EXEC, DockerExecParams
from longshore.tasks.host.machine.container import ContainerMachine
from longshore.tasks.host.machine.port import Machine
from longshore.tasks.implementation import Context, implements
from longshore.tasks.operations.command import Command


@implements(EXEC)
class Exec(Command):
    """A command, like any other."""

    def machine(self, ctx: Context, params: DockerExecParams) -> Machine:
        return ContainerMachine(ctx, params.container)
