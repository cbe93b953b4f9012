"""`docker.restart`, `rename` and `update`: what is changed about a container that is there."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.docker.containers import (
    RENAME,
    RESTART,
    UPDATE,
    RenameParams,
    RestartParams,
    UpdateParams,
)
from longshore.orchestration.operations.docker.fields import parse_size
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Conflict, Engine
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.docker.containers import (
    ContainerSnapshot,
    missing,
    result,
    start_again,
    stoppable,
    there,
)


@implements(RESTART)
class Restart(Implementation[RestartParams]):
    """A stop and a start, so that a later attempt goes on where the first one was."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        container = there(engine(), params.container)
        if container.paused:
            raise Preflight(f"container {container.name} is paused", remedy=f"docker unpause {container.name}")
        if container.labels.get(spec.KIND) == "run":
            raise Preflight(f"container {container.name} ran once, for another step, and is not started again")
        stoppable(container)
        return ContainerSnapshot.of(container)

    def act(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Outcome:
        docker, was = engine(), ContainerSnapshot(**before)
        container = docker.inspect(was.id)
        if container is None:
            raise OperationError(f"container {was.name} is gone")
        if container.started_at == was.started_at:
            if container.running:
                docker.stop(was.id, params.grace)
            docker.start(was.id)
        elif not container.running and was.running:
            docker.start(was.id)
        return Outcome(changed=True, data=result(docker.inspect(was.id) or container))

    def predict(self, ctx: Context, params: RestartParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            return missing(ctx, params.container, "restart")
        verb = "restart" if container.running else "start"
        certain = container.paused and not ctx.has_upstream
        impossible = f"container {container.name} is paused" if certain else None
        return Prediction(f"would {verb} {container.name}", undo="nothing, if it runs again", impossible=impossible)

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), ContainerSnapshot(**before)
        container = was.now(docker)
        if container is None:
            raise OperationError(f"container {was.name} is gone")
        if was.running:
            return Outcome(changed=start_again(docker, container, was))
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
            return Prediction(f"it is called {params.name}", changed=None if ctx.has_upstream else False)
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
    except OperationError as error:
        found = docker.inspect(container)
        if found is not None and found.name == name:
            return  # the same delivery was quicker
        if not isinstance(error, Conflict):
            raise
        raise OperationError(f"the name {name} was given to another container meanwhile: {error.message}") from error


def _everything(docker: Engine) -> dict[str, int]:
    """What the machine has of what can be limited, in the engine's units; as much as that is no limit."""
    info = docker.info()
    return {"memory": int(info["MemTotal"]), "cpus": int(info["NCPU"]) * 1_000_000_000}


def _limit(value: int, everything: int) -> int:
    """0 for none, and for as much as there is, which is the same."""
    return value if 0 < value < everything else 0


@implements(UPDATE)
class Update(Implementation[UpdateParams]):
    """See its schema."""

    def before(self, ctx: Context, params: UpdateParams) -> dict[str, Any]:
        container = there(engine(), params.container)
        if container.auto_remove and params.restart not in {None, "no"}:
            raise Preflight(f"container {container.name} was made with --rm, and takes no restart policy")
        now = self._now(engine(), container.id, _everything(engine()))
        return {"id": container.id, "name": container.name, "was": now}

    def act(self, ctx: Context, params: UpdateParams, before: dict[str, Any]) -> Outcome:
        docker, everything = engine(), _everything(engine())
        said = self._wanted(params, everything)
        wanted = before["was"] | said
        if self._now(docker, before["id"], everything) != wanted:
            docker.update(before["id"], self._body(wanted, before["was"], everything))
        now = self._now(docker, before["id"], everything)
        wrong = sorted(key for key in said if now[key] != wanted[key])
        if wrong:
            raise OperationError(f"the engine did not change {', '.join(wrong)} of {before['name']}")
        return Outcome(changed=wanted != before["was"], data=self._data(before, now))

    def predict(self, ctx: Context, params: UpdateParams) -> Prediction:
        container = engine().inspect(params.container)
        if container is None:
            return missing(ctx, params.container, "update")
        everything = _everything(engine())
        now = self._now(engine(), container.id, everything)
        differs = {key: value for key, value in self._wanted(params, everything).items() if now[key] != value}
        if not differs:
            changed = None if ctx.has_upstream else False
            return Prediction(f"container {container.name} is as it should be", changed=changed)
        what = ", ".join(f"{key} {now[key]} → {value}" for key, value in differs.items())
        return Prediction(f"would change {container.name}: {what}", undo="bring the former values back")

    def undo(self, ctx: Context, params: UpdateParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), before["was"]
        if docker.inspect(before["id"]) is None:
            raise OperationError(f"container {before['name']} is gone")
        everything = _everything(docker)
        now, wanted = self._now(docker, before["id"], everything), self._wanted(params, everything)
        foreign = [key for key in wanted if now[key] not in {was[key], wanted[key]}]
        if foreign:
            raise OperationError(f"{', '.join(foreign)} of {before['name']} was changed by somebody else since")
        if all(now[key] == was[key] for key in wanted):
            return Outcome(changed=False)
        back = {key: was[key] for key in [*wanted, *(["swap"] if "memory" in wanted else [])]}
        docker.update(before["id"], self._body(now | back, now, everything))
        return Outcome(changed=True)

    @staticmethod
    def _now(docker: Engine, container: str, everything: dict[str, int]) -> dict[str, Any]:
        raw = docker.raw(container)
        if raw is None:
            raise OperationError(f"container {container} is gone")
        host = raw["HostConfig"]
        policy = host.get("RestartPolicy") or {}
        times = policy.get("MaximumRetryCount") or 0
        return {
            "restart": (policy.get("Name") or "no") + (f":{times}" if times else ""),
            "memory": _limit(host.get("Memory") or 0, everything["memory"]),
            "cpus": _limit(host.get("NanoCpus") or 0, everything["cpus"]),
            "pids": host.get("PidsLimit") if (host.get("PidsLimit") or 0) > 0 else -1,
            # Goes with the memory: swap included, -1 for no limit.
            "swap": host.get("MemorySwap") or 0,
        }

    @staticmethod
    def _wanted(params: UpdateParams, everything: dict[str, int]) -> dict[str, Any]:
        said = {
            "restart": params.restart,
            "memory": None if params.memory is None else _limit(parse_size(params.memory), everything["memory"]),
            "cpus": None if params.cpus is None else _limit(round(params.cpus * 1e9), everything["cpus"]),
            "pids": params.pids if params.pids != 0 else -1,
        }
        return {key: value for key, value in said.items() if value is not None}

    @staticmethod
    def _body(wanted: dict[str, Any], was: dict[str, Any], everything: dict[str, int]) -> dict[str, Any]:
        """Only what differs. The engine takes 0 for "as it is", so no limit is one that is as large as can be."""
        body: dict[str, Any] = {}
        if wanted["restart"] != was["restart"]:
            body["RestartPolicy"] = spec.restart_policy(wanted["restart"])
        if wanted["memory"] != was["memory"]:
            memory = wanted["memory"] or everything["memory"]
            body |= {"Memory": memory, "MemorySwap": Update._swap(wanted, was, memory)}
        if wanted["cpus"] != was["cpus"]:
            body["NanoCpus"] = wanted["cpus"] or everything["cpus"]
        if wanted["pids"] != was["pids"]:
            body["PidsLimit"] = wanted["pids"]
        return body

    @staticmethod
    def _swap(wanted: dict[str, Any], was: dict[str, Any], memory: int) -> int:
        """What goes with that much memory."""
        if wanted["swap"] != was["swap"] and wanted["swap"]:
            return int(wanted["swap"])  # as it was before
        if was["swap"] == -1 or (was["swap"] and was["swap"] == was["memory"]):
            return -1 if was["swap"] == -1 else memory  # no limit stays none, and no swap stays none
        return 2 * memory  # what the engine itself gives at creation

    @staticmethod
    def _data(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        said = {"id": before["id"], "name": before["name"], "restart": now["restart"], "memory": now["memory"]}
        return said | {"cpus": now["cpus"] / 1e9, "pids": now["pids"] if now["pids"] > 0 else None}
