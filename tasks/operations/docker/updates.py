"""`docker.restart`, `rename` and `update`: changes to an existing container."""

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
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements, unchanged
from longshore.tasks.operations.docker import spec
from longshore.tasks.operations.docker.containers import (
    ContainerSnapshot,
    result,
    start_again,
    startable,
    still_there,
    stoppable,
    there,
)


@implements(RESTART)
class Restart(Implementation[RestartParams]):
    """Stops and starts a container as two calls, so that a later attempt resumes in between."""

    def before(self, ctx: Context, params: RestartParams) -> dict[str, Any]:
        container = there(engine(), params.container, "restart")
        startable(container)
        stoppable(container)
        return ContainerSnapshot.of(container)

    def change(self, ctx: Context, params: RestartParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), ContainerSnapshot(**before)
        yield Prediction(f"would {'restart' if was.running else 'start'} {was.name}", undo="nothing, if it runs")
        container = still_there(docker, was.id, was.name)
        if container.started_at == was.started_at:
            if container.running:
                docker.stop(was.id, params.grace)
            docker.start(was.id)
        elif not container.running and was.running:
            docker.start(was.id)
        return result(docker.inspect(was.id) or container)

    def undo(self, ctx: Context, params: RestartParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), ContainerSnapshot(**before)
        container = was.now(docker)
        if container is None:
            raise OperationError(f"container {was.name} was removed outside of this run")
        if was.running:
            return Outcome(changed=start_again(docker, container, was))
        return Outcome(changed=container.running and docker.stop(container.id))


@implements(RENAME)
class Rename(Implementation[RenameParams]):
    """Renames a container; the undo restores the former name."""

    def before(self, ctx: Context, params: RenameParams) -> dict[str, Any]:
        docker = engine()
        other = docker.inspect(params.name)
        container = docker.inspect(params.container) or other or there(docker, params.container, "rename")
        if other is not None and other.id != container.id:
            what = f"the name {params.name} belongs to another container ({other.id[:12]})"
            raise Preflight(what, remedy="choose another name, or rename that container in an earlier step")
        return {"id": container.id, "name": container.name}

    def change(self, ctx: Context, params: RenameParams, before: dict[str, Any]) -> Change:
        docker, was = engine(), before["name"]
        if was == params.name:
            yield unchanged(ctx, f"the container is named {params.name}")
        else:
            yield Prediction(f"would rename {was} to {params.name}", undo=f"rename it back to {was}")
        if still_there(docker, before["id"], was).name != params.name:
            _renamed(docker, before["id"], params.name)
        return {"id": before["id"], "name": params.name, "was": was}

    def undo(self, ctx: Context, params: RenameParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker = engine()
        container = still_there(docker, before["id"], before["name"])
        if container.name == before["name"]:
            return Outcome(changed=False)
        if container.name != params.name:
            raise OperationError(
                f"container {before['name']} was renamed to {container.name} outside of this run",
                remedy="rename it back, then resume the undo",
            )
        _renamed(docker, container.id, before["name"])
        return Outcome(changed=True)


def _renamed(docker: Engine, container: str, name: str) -> None:
    try:
        docker.rename(container, name)
    except OperationError as error:
        found = docker.inspect(container)
        if found is not None and found.name == name:
            return  # another delivery of this step has renamed it
        if not isinstance(error, Conflict):
            raise
        raise OperationError(f"another container has taken the name {name} meanwhile: {error.message}") from error


def _everything(docker: Engine) -> dict[str, int]:
    """The machine's memory and CPUs in the engine's units; a limit of that size counts as none."""
    info = docker.info()
    return {"memory": int(info["MemTotal"]), "cpus": int(info["NCPU"]) * 1_000_000_000}


def _limit(value: int, everything: int) -> int:
    """The limit; 0 for no limit, or for one that covers the whole machine."""
    return value if 0 < value < everything else 0


@implements(UPDATE)
class Update(Implementation[UpdateParams]):
    """Changes the limits and the restart policy of a container; the undo restores the former values."""

    def before(self, ctx: Context, params: UpdateParams) -> dict[str, Any]:
        container = there(engine(), params.container, "update")
        if container.auto_remove and params.restart not in {None, "no"}:
            raise Preflight(f"container {container.name} was created with --rm and cannot have a restart policy")
        now = self._now(engine(), container.id, _everything(engine()))
        return {"id": container.id, "name": container.name, "was": now}

    def change(self, ctx: Context, params: UpdateParams, before: dict[str, Any]) -> Change:
        docker, everything, was = engine(), _everything(engine()), before["was"]
        requested = self._wanted(params, everything)
        if what := ", ".join(f"{key} {was[key]} → {value}" for key, value in requested.items() if was[key] != value):
            yield Prediction(f"would change {before['name']}: {what}", undo="restore the former values")
        else:
            yield unchanged(ctx, f"container {before['name']} has these values")
        wanted = was | requested
        if self._now(docker, before["id"], everything) != wanted:
            docker.update(before["id"], self._body(wanted, was, everything))
        now = self._now(docker, before["id"], everything)
        wrong = sorted(key for key in requested if now[key] != wanted[key])
        if wrong:
            raise OperationError(f"the engine did not change {', '.join(wrong)} of {before['name']}")
        return self._data(before, now)

    def undo(self, ctx: Context, params: UpdateParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), before["was"]
        still_there(docker, before["id"], before["name"])
        everything = _everything(docker)
        now, wanted = self._now(docker, before["id"], everything), self._wanted(params, everything)
        foreign = [key for key in wanted if now[key] not in {was[key], wanted[key]}]
        if foreign:
            raise OperationError(
                f"{', '.join(foreign)} of container {before['name']} was changed outside of this run",
                remedy="check the values, then run: longshore runs resolve --undone",
            )
        if all(now[key] == was[key] for key in wanted):
            return Outcome(changed=False)
        back = {key: was[key] for key in [*wanted, *(["swap"] if "memory" in wanted else [])]}
        docker.update(before["id"], self._body(now | back, now, everything))
        return Outcome(changed=True)

    @staticmethod
    def _now(docker: Engine, container: str, everything: dict[str, int]) -> dict[str, Any]:
        raw = docker.raw(container)
        if raw is None:
            raise OperationError(f"container {container} was removed outside of this run")
        host = raw["HostConfig"]
        policy = host.get("RestartPolicy") or {}
        times = policy.get("MaximumRetryCount") or 0
        return {
            "restart": (policy.get("Name") or "no") + (f":{times}" if times else ""),
            "memory": _limit(host.get("Memory") or 0, everything["memory"]),
            "cpus": _limit(host.get("NanoCpus") or 0, everything["cpus"]),
            "pids": host.get("PidsLimit") if (host.get("PidsLimit") or 0) > 0 else -1,
            # Memory plus swap; -1 for no limit.
            "swap": host.get("MemorySwap") or 0,
        }

    @staticmethod
    def _wanted(params: UpdateParams, everything: dict[str, int]) -> dict[str, Any]:
        values = {
            "restart": params.restart,
            "memory": None if params.memory is None else _limit(parse_size(params.memory), everything["memory"]),
            "cpus": None if params.cpus is None else _limit(round(params.cpus * 1e9), everything["cpus"]),
            "pids": params.pids if params.pids != 0 else -1,
        }
        return {key: value for key, value in values.items() if value is not None}

    @staticmethod
    def _body(wanted: dict[str, Any], was: dict[str, Any], everything: dict[str, int]) -> dict[str, Any]:
        """The changed values. The engine keeps a value for 0, so that "no limit" becomes the machine's full size."""
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
        """The swap limit for that memory limit."""
        if wanted["swap"] != was["swap"] and wanted["swap"]:
            return int(wanted["swap"])  # the former value
        if was["swap"] == -1 or (was["swap"] and was["swap"] == was["memory"]):
            return -1 if was["swap"] == -1 else memory  # no limit stays none, and no swap stays none
        return 2 * memory  # the engine's default at creation

    @staticmethod
    def _data(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        data = {"id": before["id"], "name": before["name"], "restart": now["restart"], "memory": now["memory"]}
        return data | {"cpus": now["cpus"] / 1e9, "pids": now["pids"] if now["pids"] > 0 else None}
