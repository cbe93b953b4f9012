"""`docker.create`, `start`, `stop` and `remove` for a single container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.docker.containers import (
    CREATE,
    REMOVE,
    START,
    STOP,
    CreateParams,
    RemoveParams,
    StartParams,
    StopParams,
)
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Conflict, Container, Engine
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    Outcome,
    Prediction,
    absent,
    implements,
    obstacle,
    unchanged,
)
from longshore.tasks.operations.docker import spec

COMPOSE_HASH = "com.docker.compose.config-hash"


@dataclass(frozen=True)
class ContainerSnapshot:
    """A container before the step."""

    id: str
    name: str
    image_id: str
    hash: str
    running: bool
    paused: bool
    started_at: str | None
    restart: dict[str, Any]

    @classmethod
    def of(cls, container: Container) -> dict[str, Any]:
        return {
            "id": container.id,
            "name": container.name,
            "image_id": container.image_id,
            "hash": container.labels.get(COMPOSE_HASH, ""),
            "running": container.running,
            "paused": container.paused,
            "started_at": container.started_at,
            "restart": container.restart_policy,
        }

    def now(self, docker: Engine) -> Container | None:
        """The same container, or a replacement that Compose has created under its name from the same configuration."""
        container = docker.inspect(self.id)
        if container is None and self.hash:
            replacement = docker.inspect(self.name)
            if (
                replacement
                and replacement.image_id == self.image_id
                and replacement.labels.get(COMPOSE_HASH) == self.hash
            ):
                return replacement
        return container


def there(docker: Engine, name: str, verb: str) -> Container:
    """The container that the step would `verb`. Raises Preflight."""
    container = docker.inspect(name)
    if container is None:
        raise absent(
            f"container {name!r} does not exist",
            later=f"would {verb} {name}, which an earlier step would have to create",
            remedy="list the containers with: docker ps -a",
        )
    return container


def still_there(docker: Engine, container_id: str, name: str) -> Container:
    """The container that existed before the step."""
    container = docker.inspect(container_id)
    if container is None:
        raise OperationError(f"container {name} was removed outside of this run")
    return container


def startable(container: Container) -> None:
    if container.paused:
        raise Preflight(f"container {container.name} is paused", remedy=f"docker unpause {container.name}")
    if container.labels.get(spec.KIND) == "run":
        raise Preflight(f"container {container.name} belongs to a docker.run step and runs only once")


def result(container: Container) -> dict[str, Any]:
    return {
        "id": container.id,
        "name": container.name,
        "status": container.status,
        "started_at": container.started_at,
    }


def start_again(docker: Engine, container: Container, was: ContainerSnapshot) -> bool:
    started = not container.running and docker.start(container.id)
    if was.paused and not container.paused:
        docker.pause(container.id)
        return True
    return started


@implements(CREATE)
class Create(Implementation[CreateParams]):
    """Creates a container, found again by its label. An equal container of another run is attached unchanged."""

    def before(self, ctx: Context, params: CreateParams) -> dict[str, Any]:
        return {"image_id": spec.need(engine(), params.image, "create a container from").id}

    def change(self, ctx: Context, params: CreateParams, before: dict[str, Any]) -> Change:
        spec.allow(ctx, params)
        name = spec.name_of(ctx, params)
        holder = engine().inspect(name)
        if holder is None:
            yield Prediction(f"would create container {name} from {params.image}", undo=f"remove {name}")
        elif holder.labels.get(spec.SPEC) == spec.spec_of(ctx, params, before["image_id"]):
            yield Prediction(f"container {name} exists with these parameters", changed=False)
        else:
            yield obstacle(ctx, f"the name {name} belongs to another container")
        found = {container.id for container in spec.own(engine(), ctx)}
        container, warnings = spec.make(engine(), ctx, params, before["image_id"], kind="create")
        data: dict[str, Any] = {"id": container.id, "name": container.name, "image_id": container.image_id}
        data |= {"attached": container.id in found, "warnings": warnings}
        return Outcome(changed=container.labels[spec.OP] == ctx.op_id, data=data)

    def undo(self, ctx: Context, params: CreateParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, name = engine(), spec.name_of(ctx, params)
        for container in spec.own(docker, ctx):
            if container.name != name:
                raise OperationError(
                    f"container {name} was renamed to {container.name} outside of this run",
                    remedy="rename it back, then resume the undo",
                )
        removed, left = spec.remove_own(docker, ctx, grace=None)
        return Outcome(changed=removed, data={"left_volumes": left} if left else {})


@implements(START)
class Start(Implementation[StartParams]):
    """Starts a container once: a container that was started since `before` is not started again, even if it ended."""

    def before(self, ctx: Context, params: StartParams) -> dict[str, Any]:
        container = there(engine(), params.container, "start")
        startable(container)
        return ContainerSnapshot.of(container)

    def change(self, ctx: Context, params: StartParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), ContainerSnapshot(**before)
        if was.running:
            yield unchanged(ctx, f"container {was.name} is running")
        else:
            yield Prediction(f"would start {was.name}", undo=f"stop {was.name}")
        container = still_there(docker, was.id, was.name)
        if not container.running and container.started_at == was.started_at:
            docker.start(was.id)
        return result(docker.inspect(was.id) or container)

    def undo(self, ctx: Context, params: StartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), ContainerSnapshot(**before)
        container = was.now(docker)
        if was.running or container is None or not container.running:
            return Outcome(changed=False)
        return Outcome(changed=docker.stop(container.id))


def stoppable(container: Container) -> None:
    if container.auto_remove:
        raise Preflight(
            f"container {container.name} was created with --rm, so that a stop deletes it and has no undo",
            remedy="create it without --rm",
        )


@implements(STOP)
class Stop(Implementation[StopParams]):
    """Stops a container. The undo starts it only if it ran before, and pauses it if it was paused."""

    def before(self, ctx: Context, params: StopParams) -> dict[str, Any]:
        container = there(engine(), params.container, "stop")
        stoppable(container)
        return ContainerSnapshot.of(container)

    def change(self, ctx: Context, params: StopParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), ContainerSnapshot(**before)
        if was.running:
            yield Prediction(f"would stop {was.name}", undo=f"start {was.name}")
        else:
            yield unchanged(ctx, f"container {was.name} is not running")
        container = still_there(docker, was.id, was.name)
        if container.running:
            docker.stop(was.id, params.grace)
            container = docker.inspect(was.id) or container
        killed = was.running and container.exit_code == 137 and not container.oom_killed
        return result(container) | {"exit_code": container.exit_code, "killed": killed}

    def undo(self, ctx: Context, params: StopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), ContainerSnapshot(**before)
        if not was.running:
            return Outcome(changed=False)
        container = was.now(docker)
        if container is None:
            raise OperationError(f"container {was.name} was removed outside of this run and cannot be started")
        return Outcome(changed=start_again(docker, container, was))


@implements(REMOVE)
class Remove(Implementation[RemoveParams]):
    """Stops the container and renames it, so that the undo can restore it until gc removes it."""

    def before(self, ctx: Context, params: RemoveParams) -> dict[str, Any]:
        container = engine().inspect(params.container)
        if container is None:
            return {}
        if container.running and not params.force:
            raise Preflight(
                f"container {container.name} is running", remedy="stop it in an earlier step, or set force: true"
            )
        stoppable(container)
        return ContainerSnapshot.of(container)

    def change(self, ctx: Context, params: RemoveParams, before: dict[str, Any]) -> Change:
        docker = engine()
        was = ContainerSnapshot(**before) if before else None
        container = docker.inspect(was.id) if was else None
        if was is None or container is None:
            yield unchanged(ctx, f"container {params.container} does not exist")
            return {"name": params.container}
        verb, again = ("stop and remove", " and start it") if was.running else ("remove", "")
        yield Prediction(f"would {verb} {was.name}", undo=f"rename it back to {was.name}{again}")
        if container.running and not params.force:
            raise OperationError(
                f"container {was.name} was started outside of this run", remedy="stop it, or set force: true"
            )
        backup_name = self._backup_name(ctx, was)
        if container.restart_policy.get("Name") not in {"", "no"}:
            docker.set_restart(was.id, spec.restart_policy("no"))
        if container.running:
            docker.stop(was.id, params.grace)
        if container.name != backup_name:
            self._rename(docker, was.id, backup_name)
        return {"id": was.id, "name": was.name, "kept_as": backup_name}

    def undo(self, ctx: Context, params: RemoveParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        if not before:
            return Outcome(changed=False)
        docker, was = engine(), ContainerSnapshot(**before)
        container = docker.inspect(was.id)
        if container is None:
            raise OperationError(f"container {was.name} was removed outside of this run and cannot be restored")
        changed = False
        if container.name == self._backup_name(ctx, was):
            try:
                docker.rename(was.id, was.name)
            except Conflict as error:
                what = f"another container has taken the name {was.name} meanwhile"
                raise OperationError(what, remedy="remove or rename that container, then resume the undo") from error
            changed = True
        elif container.name != was.name:
            raise OperationError(
                f"container {was.name} was renamed to {container.name} outside of this run",
                remedy="rename it back, then resume the undo",
            )
        if container.restart_policy != was.restart:
            docker.set_restart(was.id, was.restart)
            changed = True
        if was.running:
            changed |= start_again(docker, container, was)
        return Outcome(changed=changed)

    @staticmethod
    def _backup_name(ctx: Context, was: ContainerSnapshot) -> str:
        return f"{was.name}--longshore-{spec.safe(ctx.op_id)}"

    @staticmethod
    def _rename(docker: Engine, container: str, name: str) -> None:
        try:
            docker.rename(container, name)
        except OperationError:
            # Another delivery of the same step may have renamed it already.
            now = docker.inspect(container)
            if now is None or now.name != name:
                raise
