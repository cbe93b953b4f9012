"""`docker.exec`: a program inside a container that runs."""

from __future__ import annotations

from longshore.orchestration.operations.docker.programs import EXEC, DockerExecParams
from longshore.tasks.command import Command
from longshore.tasks.machine import Machine
from longshore.tasks.machine.container import ContainerMachine
from longshore.tasks.operation import Context, implements


@implements(EXEC)
class Exec(Command):
    """A command, like any other."""

    def machine(self, ctx: Context, params: DockerExecParams) -> Machine:
        return ContainerMachine(ctx, params.container)
