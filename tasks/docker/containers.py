"""`docker.create`, `start`, `stop`, `restart`, `remove`, `rename` and `update`: containers, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.docker.containers import (
    CREATE,
    REMOVE,
    RENAME,
    RESTART,
    START,
    STOP,
    UPDATE,
    CreateParams,
    RemoveParams,
    RenameParams,
    RestartParams,
    StartParams,
    StopParams,
    UpdateParams,
)
from longshore.orchestration.operations.docker.fields import parse_size
from longshore.tasks.docker import spec
from longshore.tasks.engine import Conflict, Container, Engine, engine
from longshore.tasks.operation import Context, Implementation, Outcome, Prediction, implements

COMPOSE_HASH = "com.docker.compose.config-hash"


@dataclass(frozen=True)
class _Was:
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
        """The same container; or the one that Compose has made again, out of the same, under its name."""
        container = docker.inspect(self.id)
        if container is None and self.hash:
            heir = docker.inspect(self.name)
            if heir and heir.image_id == self.image_id and heir.labels.get(COMPOSE_HASH) == self.hash:
                return heir
        return container


def there(docker: Engine, name: str) -> Container:
    container = docker.inspect(name)
    if container is None:
        raise Preflight(f"there is no container {name!r}", remedy="docker ps -a lists them")
    return container


def missing(ctx: Context, name: str, verb: str) -> Prediction:
    if ctx.has_upstream:
        return Prediction(f"would {verb} {name}: not there now, an earlier step may make it", changed=None)
    what = f"there is no container {name!r}"
    return Prediction(f"would fail: {what}", changed=False, impossible=what)


def _result(container: Container) -> dict[str, Any]:
    return {
        "id": container.id,
        "name": container.name,
        "status": container.status,
        "started_at": container.started_at,
    }


def _start_again(docker: Engine, container: Container, was: _Was) -> bool:
    started = not container.running and docker.start(container.id)
    if was.paused and not container.paused:
        docker.pause(container.id)
        return True
    return started


@implements(CREATE)
class Create(Implementation[CreateParams]):
    """Known again by its label; one that another run has made just so is left as it is."""

    def before(self, ctx: Context, params: CreateParams) -> dict[str, Any]:
        return {"image_id": spec.image_of(engine(), params.image)}

    def act(self, ctx: Context, params: CreateParams, before: dict[str, Any]) -> Outcome:
        found = {container.id for container in spec.own(engine(), ctx)}
        container, warnings = spec.make(engine(), ctx, params, before["image_id"], kind="create")
        data: dict[str, Any] = {"id": container.id, "name": container.name, "image_id": container.image_id}
        data |= {"attached": container.id in found, "warnings": warnings}
        return Outcome(changed=container.labels[spec.OP] == ctx.op_id, data=data)

    def predict(self, ctx: Context, params: CreateParams) -> Prediction:
        docker, name = engine(), spec.name_of(ctx, params)
        image_id = docker.image_id(params.image)
        container = docker.inspect(name)
        if image_id is None:
            what = f"image {params.image!r} is not on the Docker host"
            if ctx.has_upstream:
                return Prediction(f"would make container {name}; {what} yet", changed=None, undo=f"remove {name}")
            return Prediction(f"would fail: {what}", changed=False, impossible=what)
        if container is None:
            return Prediction(f"would make container {name} from {params.image}", undo=f"remove {name}")
        if container.labels.get(spec.SPEC) == spec.spec_of(ctx, params, image_id):
            return Prediction(f"container {name} is there, made just so", changed=False)
        if ctx.has_upstream:
            return Prediction(f"would make container {name}, if an earlier step frees its name", changed=None)
        what = f"the name {name} belongs to another container"
        return Prediction(f"would fail: {what}", changed=False, impossible=what)

    def undo(self, ctx: Context, params: CreateParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, name = engine(), spec.name_of(ctx, params)
        for container in spec.own(docker, ctx):
            if container.name != name:
                raise OperationError(f"container {name} was renamed to {container.name} by somebody else")
        removed, left = spec.take_away(docker, ctx, grace=None)
        return Outcome(changed=removed, data={"left_volumes": left} if left else {})


@implements(START)
class Start(Implementation[StartParams]):
    """A container that was started since `before` is not started again, even if it has ended already."""

    def before(self, ctx: Context, params: StartParams) -> dict[str, Any]:
        container = there(engine(), params.container)
        if container.paused:
            raise Preflight(f"container {container.name} is paused", remedy=f"docker unpause {container.name}")
        if container.labels.get(spec.KIND) == "run":
            raise Preflight(f"container {container.name} ran once, for another step, and is not started again")
        return _Was.of(container)

    def act(self, ctx: Context, params: StartParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), _Was(**before)
        container = docker.inspect(was.id)
        if container is None:
            raise OperationError(f"container {was.name} is gone")
        if not container.running and container.started_at == was.started_at:
            docker.start(was.id)
            container = docker.inspect(was.id) or container
        changed = container.started_at != was.started_at or container.running != was.running
        return Outcome(changed=changed, data=_result(container))

    def predict(self, ctx: Context, params: StartParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            return missing(ctx, params.container, "start")
        if container.running and not container.paused:
            return Prediction(f"container {container.name} is running", changed=False)
        impossible = None
        if container.paused or container.labels.get(spec.KIND) == "run":
            impossible = f"container {container.name} is {'paused' if container.paused else 'a run that has ended'}"
        return Prediction(
            f"would start {container.name}",
            changed=impossible is None,
            undo=f"stop {container.name}",
            impossible=impossible,
        )

    def undo(self, ctx: Context, params: StartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), _Was(**before)
        container = was.now(docker)
        if was.running or container is None or not container.running:
            return Outcome(changed=False)
        return Outcome(changed=docker.stop(container.id))


def _stoppable(container: Container) -> None:
    if container.auto_remove:
        raise Preflight(
            f"container {container.name} was made with --rm: to stop it is to lose it",
            remedy="make it without --rm, so that this can be undone",
        )


@implements(STOP)
class Stop(Implementation[StopParams]):
    """Its undo starts it only if it ran, and pauses it again if it was paused."""

    def before(self, ctx: Context, params: StopParams) -> dict[str, Any]:
        container = there(engine(), params.container)
        _stoppable(container)
        return _Was.of(container)

    def act(self, ctx: Context, params: StopParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), _Was(**before)
        container = docker.inspect(was.id)
        if container is None:
            raise OperationError(f"container {was.name} is gone")
        stopped = container.running and docker.stop(was.id, params.grace)
        container = docker.inspect(was.id) or container
        killed = was.running and container.exit_code == 137 and not container.oom_killed
        data = _result(container) | {"exit_code": container.exit_code, "killed": killed}
        return Outcome(changed=was.running or stopped, data=data)

    def predict(self, ctx: Context, params: StopParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            return missing(ctx, params.container, "stop")
        if not container.running:
            return Prediction(f"container {container.name} is not running", changed=False)
        impossible = f"container {container.name} was made with --rm" if container.auto_remove else None
        return Prediction(f"would stop {container.name}", undo=f"start {container.name}", impossible=impossible)

    def undo(self, ctx: Context, params: StopParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), _Was(**before)
        if not was.running:
            return Outcome(changed=False)
        container = was.now(docker)
        if container is None:
            raise OperationError(f"container {was.name} is gone, and cannot be started again")
        return Outcome(changed=_start_again(docker, container, was))


@implements(REMOVE)
class Remove(Implementation[RemoveParams]):
    """Puts the container aside, stopped and under another name, until gc: only so can it come back."""

    def before(self, ctx: Context, params: RemoveParams) -> dict[str, Any]:
        container = engine().inspect(params.container)
        if container is None:
            return {}
        if container.running and not params.force:
            raise Preflight(f"container {container.name} is running", remedy="stop it first, or say force: true")
        _stoppable(container)
        return _Was.of(container)

    def act(self, ctx: Context, params: RemoveParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        was = _Was(**before) if before else None
        container = docker.inspect(was.id) if was else None
        if was is None or container is None:
            return Outcome(changed=False, data={"name": params.container})
        if container.running and not params.force:
            raise OperationError(f"container {was.name} was started by somebody else meanwhile")
        aside = self._aside(ctx, was)
        if container.restart_policy.get("Name") not in {"", "no"}:
            docker.set_restart(was.id, spec.restart_policy("no"))
        if container.running:
            docker.stop(was.id, params.grace)
        if container.name != aside:
            self._rename(docker, was.id, aside)
        return Outcome(changed=True, data={"id": was.id, "name": was.name, "kept_as": aside})

    def predict(self, ctx: Context, params: RemoveParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            if ctx.has_upstream:
                return missing(ctx, params.container, "remove")
            return Prediction(f"there is no container {params.container}", changed=False)
        impossible = None
        if container.auto_remove:
            impossible = f"container {container.name} was made with --rm"
        elif container.running and not params.force and not ctx.has_upstream:
            impossible = f"container {container.name} is running, and force is not set"
        verb = "stop and remove" if container.running else "remove"
        undo = f"give {container.name} its name back" + (" and start it" if container.running else "")
        return Prediction(f"would {verb} {container.name}", undo=undo, impossible=impossible)

    def undo(self, ctx: Context, params: RemoveParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        if not before:
            return Outcome(changed=False)
        docker, was = engine(), _Was(**before)
        container = docker.inspect(was.id)
        if container is None:
            raise OperationError(f"container {was.name} is gone, and cannot be brought back")
        changed = False
        if container.name == self._aside(ctx, was):
            try:
                docker.rename(was.id, was.name)
            except Conflict as error:
                what = f"the name {was.name} was given to another container meanwhile"
                raise OperationError(what, remedy="remove or rename that one, then resume the undo") from error
            changed = True
        elif container.name != was.name:
            raise OperationError(f"container {was.name} was renamed to {container.name} by somebody else")
        if container.restart_policy != was.restart:
            docker.set_restart(was.id, was.restart)
            changed = True
        if was.running:
            changed |= _start_again(docker, container, was)
        return Outcome(changed=changed)

    @staticmethod
    def _aside(ctx: Context, was: _Was) -> str:
        return f"{was.name}--longshore-{spec.safe(ctx.op_id)}"

    @staticmethod
    def _rename(docker: Engine, container: str, name: str) -> None:
        try:
            docker.rename(container, name)
        except OperationError:
            # Another delivery of the same step may have been quicker.
            now = docker.inspect(container)
            if now is None or now.name != name:
                raise


@implements(RESTART)
class Restart(Implementation[RestartParams]):
    """A stop and a start, so that a later attempt goes on where the first one was."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        container = there(engine(), params.container)
        if container.paused:
            raise Preflight(f"container {container.name} is paused", remedy=f"docker unpause {container.name}")
        if container.labels.get(spec.KIND) == "run":
            raise Preflight(f"container {container.name} ran once, for another step, and is not started again")
        _stoppable(container)
        return _Was.of(container)

    def act(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), _Was(**before)
        container = docker.inspect(was.id)
        if container is None:
            raise OperationError(f"container {was.name} is gone")
        if container.started_at == was.started_at:
            if container.running:
                docker.stop(was.id, params.grace)
            docker.start(was.id)
        elif not container.running and was.running:
            docker.start(was.id)
        return Outcome(changed=True, data=_result(docker.inspect(was.id) or container))

    def predict(self, ctx: Context, params: RestartParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            return missing(ctx, params.container, "restart")
        verb = "restart" if container.running else "start"
        impossible = f"container {container.name} is paused" if container.paused else None
        return Prediction(f"would {verb} {container.name}", undo="nothing, if it runs again", impossible=impossible)

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), _Was(**before)
        container = was.now(docker)
        if container is None:
            raise OperationError(f"container {was.name} is gone")
        if was.running:
            return Outcome(changed=_start_again(docker, container, was))
        return Outcome(changed=container.running and docker.stop(container.id))


@implements(RENAME)
class Rename(Implementation[RenameParams]):
    """See its schema."""

    def before(self, ctx: Context, params: RenameParams) -> dict[str, Any]:
        docker = engine()
        container = docker.inspect(params.container) or there(docker, params.name)
        other = docker.inspect(params.name)
        if other is not None and other.id != container.id:
            raise Preflight(f"the name {params.name} belongs to another container ({other.id[:12]})")
        return {"id": container.id, "name": container.name}

    def act(self, ctx: Context, params: RenameParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        container = docker.inspect(before["id"])
        if container is None:
            raise OperationError(f"container {before['name']} is gone")
        if container.name != params.name:
            _renamed(docker, container.id, params.name)
        data = {"id": before["id"], "name": params.name, "was": before["name"]}
        return Outcome(changed=before["name"] != params.name, data=data)

    def predict(self, ctx: Context, params: RenameParams) -> Prediction:
        docker = engine()
        container, other = docker.inspect(params.container), docker.inspect(params.name)
        if container is None and other is None:
            return missing(ctx, params.container, "rename")
        if container is None or (other is not None and other.id == container.id):
            return Prediction(f"it is called {params.name}", changed=False)
        impossible = (
            None if other is None or ctx.has_upstream else f"the name {params.name} belongs to another container"
        )
        return Prediction(
            f"would rename {container.name} to {params.name}", undo=f"call it {container.name}", impossible=impossible
        )

    def undo(self, ctx: Context, params: RenameParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker = engine()
        container = docker.inspect(before["id"])
        if container is None:
            raise OperationError(f"container {before['name']} is gone")
        if container.name == before["name"]:
            return Outcome(changed=False)
        if container.name != params.name:
            raise OperationError(f"container {before['name']} was renamed to {container.name} by somebody else")
        _renamed(docker, container.id, before["name"])
        return Outcome(changed=True)


def _renamed(docker: Engine, container: str, name: str) -> None:
    try:
        docker.rename(container, name)
    except Conflict as error:
        raise OperationError(f"the name {name} was given to another container meanwhile: {error.message}") from error


def _all_cpus(docker: Engine) -> int:
    return int(docker.info()["NCPU"]) * 1_000_000_000


def _all_memory(docker: Engine) -> int:
    return int(docker.info()["MemTotal"])


def _limit(value: int, everything: int) -> int:
    """0 for none, and for as much as there is, which is the same."""
    return value if 0 < value < everything else 0


@implements(UPDATE)
class Update(Implementation[UpdateParams]):
    """See its schema."""

    def before(self, ctx: Context, params: UpdateParams) -> dict[str, Any]:
        container = there(engine(), params.container)
        return {"id": container.id, "name": container.name, "was": self._now(engine(), container.id)}

    def act(self, ctx: Context, params: UpdateParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        wanted = before["was"] | self._wanted(params)
        if self._now(docker, before["id"]) != wanted:
            docker.update(before["id"], self._body(wanted, before["was"]))
        now = self._now(docker, before["id"])
        wrong = sorted(key for key in wanted if now[key] != wanted[key])
        if wrong:
            raise OperationError(f"the engine did not change {', '.join(wrong)} of {before['name']}")
        return Outcome(changed=wanted != before["was"], data=self._data(before, now))

    def predict(self, ctx: Context, params: UpdateParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            return missing(ctx, params.container, "update")
        now = self._now(engine(), container.id)
        differs = {key: value for key, value in self._wanted(params).items() if now[key] != value}
        if not differs:
            return Prediction(f"container {container.name} is as it should be", changed=False)
        what = ", ".join(f"{key} {now[key]} → {value}" for key, value in differs.items())
        return Prediction(f"would change {container.name}: {what}", undo="bring the former values back")

    def undo(self, ctx: Context, params: UpdateParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), before["was"]
        if docker.inspect(before["id"]) is None:
            raise OperationError(f"container {before['name']} is gone")
        now, wanted = self._now(docker, before["id"]), self._wanted(params)
        foreign = [key for key in wanted if now[key] not in {was[key], wanted[key]}]
        if foreign:
            raise OperationError(f"{', '.join(foreign)} of {before['name']} was changed by somebody else since")
        if all(now[key] == was[key] for key in wanted):
            return Outcome(changed=False)
        docker.update(before["id"], self._body(now | {key: was[key] for key in wanted}, now))
        return Outcome(changed=True)

    @staticmethod
    def _now(docker: Engine, container: str) -> dict[str, Any]:
        raw = docker.raw(container)
        if raw is None:
            raise OperationError(f"container {container} is gone")
        host = raw["HostConfig"]
        policy = host.get("RestartPolicy") or {}
        times = policy.get("MaximumRetryCount") or 0
        return {
            "restart": (policy.get("Name") or "no") + (f":{times}" if times else ""),
            "memory": _limit(host.get("Memory") or 0, _all_memory(docker)),
            "cpus": _limit(host.get("NanoCpus") or 0, _all_cpus(docker)),
            "pids": host.get("PidsLimit") if (host.get("PidsLimit") or 0) > 0 else -1,
        }

    @staticmethod
    def _wanted(params: UpdateParams) -> dict[str, Any]:
        said = {
            "restart": params.restart,
            "memory": None if params.memory is None else _limit(parse_size(params.memory), _all_memory(engine())),
            "cpus": None if params.cpus is None else _limit(round(params.cpus * 1e9), _all_cpus(engine())),
            "pids": params.pids if params.pids != 0 else -1,
        }
        return {key: value for key, value in said.items() if value is not None}

    @staticmethod
    def _body(wanted: dict[str, Any], was: dict[str, Any]) -> dict[str, Any]:
        """Only what differs. The engine takes 0 for "as it is", so no limit is one that is as large as can be."""
        body: dict[str, Any] = {}
        if wanted["restart"] != was["restart"]:
            body["RestartPolicy"] = spec.restart_policy(wanted["restart"])
        if wanted["memory"] != was["memory"]:
            # Twice the memory with swap is what the engine itself gives at creation.
            memory = wanted["memory"] or _all_memory(engine())
            body |= {"Memory": memory, "MemorySwap": 2 * memory}
        if wanted["cpus"] != was["cpus"]:
            body["NanoCpus"] = wanted["cpus"] or _all_cpus(engine())
        if wanted["pids"] != was["pids"]:
            body["PidsLimit"] = wanted["pids"]
        return body

    @staticmethod
    def _data(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        said = {"id": before["id"], "name": before["name"], "restart": now["restart"], "memory": now["memory"]}
        return said | {"cpus": now["cpus"] / 1e9, "pids": now["pids"] if now["pids"] > 0 else None}
