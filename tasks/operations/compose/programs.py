"""`compose.exec` and `compose.run`: programs in a service's container, and in a one-off container."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from longshore.orchestration.errors import Preflight, Transient
from longshore.orchestration.operations.compose import EXEC, RUN
from longshore.orchestration.operations.compose_params import ServiceExecParams, ServiceRunParams
from longshore.tasks.host.backups import write_private
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.host.machine.container import ContainerMachine
from longshore.tasks.host.machine.port import Machine
from longshore.tasks.implementation import Context, Prediction, implements
from longshore.tasks.operations.command import Command
from longshore.tasks.operations.compose import command_lines, revisions
from longshore.tasks.operations.compose.cli import Compose, Source
from longshore.tasks.operations.compose.project import project_lock, source_for
from longshore.tasks.operations.compose.state import members
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.docker.run import RunsOnce


@implements(EXEC)
class Exec(Command):
    """Runs a command in a service's container, found by Compose's labels."""

    def machine(self, ctx: Context, params: ServiceExecParams) -> Machine:
        for member in members(engine(), params.project):
            if (member.service, member.number) == (params.service, params.number):
                return ContainerMachine(ctx, member.id)
        what = f"project {params.project} has no container {params.number} of service {params.service!r}"
        raise Preflight(what, remedy="run compose.up.execute first")


@implements(RUN)
class Run(RunsOnce[ServiceRunParams]):
    """Runs a one-off container, created by Compose with the service's volumes and networks, found again by label."""

    def before(self, ctx: Context, params: ServiceRunParams) -> dict[str, Any]:
        docker = engine()
        target = Compose(ctx, docker).resolve(source_for(docker, params), [params.service])
        image = target.image(params.service)
        return {"image_id": spec.need(docker, image).id, "project": target.project}

    def begin(self, ctx: Context, docker: Engine, params: ServiceRunParams, before: dict[str, Any]) -> Container:
        name = f"{before['project']}-{params.service}-{spec.safe(ctx.op_id)}"
        dumped = json.dumps(params.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(ctx.redact(dumped).encode()).hexdigest()
        found = spec.find(docker, ctx, name, digest)
        if found is None:
            labels = {spec.OP: ctx.op_id, spec.RUN: ctx.run_id, spec.STEP: ctx.step, spec.KIND: "run"}
            labels |= {spec.SPEC: digest, spec.ATTEMPT: str(ctx.attempt)}
            labels |= {spec.KEEP_FAILED: "true"} if params.keep_failed else {}
            command = command_lines.run(
                params.service,
                params.command or [],
                name=name,
                labels=labels,
                user=params.user,
                workdir=params.workdir,
            )
            with project_lock(ctx, docker, before["project"]):
                self._create(ctx, docker, params, command)
            found = docker.inspect(name)
        if found is None:
            raise Transient(f"container {name} was removed right after its creation")
        if found.started_at is None:
            docker.start(found.id)
        return found

    @staticmethod
    def _create(ctx: Context, docker: Engine, params: ServiceRunParams, command: list[str]) -> None:
        """Create the container from a private file: as an argument, the values of `env` would be visible in the
        process list, and in Compose's environment they would change the project's files.
        """
        compose = Compose(ctx, docker)
        target = compose.resolve(source_for(docker, params), [params.service])
        config = json.loads(target.text)
        service = config["services"][params.service]
        given = {name: value.replace("$", "$$") for name, value in params.env.items()}
        service["environment"] = (service.get("environment") or {}) | given
        path = revisions.folder(target.project) / f"{spec.safe(ctx.op_id)}.run.json"
        write_private(path, json.dumps(config).encode())
        source = Source(target.project, target.source.directory, (str(path),), (), ("*",))
        try:
            compose.execute(source, command)
        finally:
            path.unlink(missing_ok=True)

    def intent(self, ctx: Context, params: ServiceRunParams, before: dict[str, Any]) -> Prediction:
        command = " ".join(params.command or ["its own command"])
        undo = "remove its container; the effects of its program stay"
        return Prediction(f"would run {params.service}: {command}", undo=undo)
