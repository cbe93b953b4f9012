"""`docker.exec`: a program inside a running container."""

from __future__ import annotations

from longshore.orchestration.operations.docker.programs import EXEC, DockerExecParams
from longshore.tasks.host.machine.container import ContainerMachine
from longshore.tasks.host.machine.port import Machine
from longshore.tasks.implementation import Context, implements
from longshore.tasks.operations.command import Command


@implements(EXEC)
class Exec(Command):
    """Runs a command with the container as its machine."""

    def machine(self, ctx: Context, params: DockerExecParams) -> Machine:
        return ContainerMachine(ctx, params.container)
