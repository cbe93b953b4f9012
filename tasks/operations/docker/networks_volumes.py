"""`docker.network-*` and `docker.volume-*`: networks and volumes of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.operations.docker.networks_volumes import (
    NETWORK_CREATE,
    NETWORK_INSPECT,
    NETWORK_REMOVE,
    VOLUME_CREATE,
    VOLUME_INSPECT,
    VOLUME_REMOVE,
    NetworkCreateParams,
    NetworkParams,
    VolumeCreateParams,
    VolumeParams,
    VolumeRemoveParams,
)
from longshore.tasks.host import policy
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Conflict, Engine
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import (
    Change,
    Context,
    Implementation,
    Outcome,
    Prediction,
    ReadOnly,
    implements,
    unchanged,
)
from longshore.tasks.operations.docker.spec import OP

_REMOVE_OTHER = "choose another name, or remove it"
_REMOVE_USERS = "remove these containers, then resume the undo"


class _CreatedIfMissing(Implementation[Any]):
    """The base of operations that create a named object unless it exists."""

    kind = ""
    state: Callable[[dict[str, Any] | None, str], dict[str, Any]]

    def note(self, found: dict[str, Any] | None) -> dict[str, Any]:
        """The state before the step, for its undo."""
        raise NotImplementedError

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        raise NotImplementedError

    def difference(self, params: Any, found: dict[str, Any]) -> str:
        """The difference of the existing object from the parameters; '' if none."""
        raise NotImplementedError

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        raise NotImplementedError

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        raise NotImplementedError

    def allow(self, params: Any) -> None:
        """Raise NotAllowed for an object that this worker may not create."""
        raise NotImplementedError

    def create(self, ctx: Context, docker: Engine, params: Any) -> dict[str, Any] | None:
        """The object, created unless it exists."""
        raise NotImplementedError

    def before(self, ctx: Context, params: Any) -> dict[str, Any]:
        found = self.find(engine(), params.name)
        if found is not None and (why := self.difference(params, found)):
            raise Preflight(f"{self.kind} {params.name} exists with {why}", remedy=_REMOVE_OTHER)
        return self.note(found)

    def change(self, ctx: Context, params: Any, before: dict[str, Any]) -> Change:
        self.allow(params)
        if before != self.note(None):
            yield unchanged(ctx, f"{self.kind} {params.name} exists")
        else:
            yield Prediction(f"would create {self.kind} {params.name}", undo=f"remove {params.name}")
        found = self.create(ctx, engine(), params)
        if found is None:
            raise OperationError(f"{self.kind} {params.name} was removed right after its creation")
        if why := self.difference(params, found):
            raise OperationError(f"{self.kind} {params.name} exists with {why}", remedy=_REMOVE_OTHER)
        return Outcome(before == self.note(None) and _ours(found, ctx), self.state(found, params.name))

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker = engine()
        found = self.find(docker, params.name)
        if found is None or not _ours(found, ctx):
            return Outcome(changed=False)
        if users := self.users(docker, found):
            raise OperationError(f"{self.kind} {params.name} is used by {', '.join(users)}", remedy=_REMOVE_USERS)
        return Outcome(changed=self.remove(docker, found))


def _ours(found: dict[str, Any], ctx: Context) -> bool:
    return (found.get("Labels") or {}).get(OP) == ctx.op_id


def _network(found: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if found is None:
        return {"exists": False, "name": name}
    pools = (found.get("IPAM") or {}).get("Config") or []
    return {
        "exists": True,
        "id": found["Id"],
        "name": found["Name"],
        "driver": found["Driver"],
        "internal": bool(found.get("Internal")),
        "subnets": [pool["Subnet"] for pool in pools if pool.get("Subnet")],
        "containers": sorted(str(one.get("Name")) for one in (found.get("Containers") or {}).values()),
        "labels": found.get("Labels") or {},
    }


def _body(params: NetworkCreateParams, op_id: str) -> dict[str, Any]:
    body: dict[str, Any] = {"Name": params.name, "Driver": params.driver, "Internal": params.internal}
    body |= {"Labels": params.labels | {OP: op_id}, "Options": params.options}
    return body | ({"IPAM": {"Config": [{"Subnet": params.subnet}]}} if params.subnet else {})


@implements(NETWORK_CREATE)
class NetworkCreate(_CreatedIfMissing):
    """Creates a network. A lock guards the look-up by name, since the engine allows two networks of one name."""

    kind = "network"
    state = staticmethod(_network)

    def note(self, found: dict[str, Any] | None) -> dict[str, Any]:
        return {"id": found["Id"] if found else None}

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        return docker.network(name)

    def difference(self, params: NetworkCreateParams, found: dict[str, Any]) -> str:
        existing = _network(found, params.name)
        if existing["driver"] != params.driver:
            return f"driver {existing['driver']}"
        if existing["internal"] != params.internal:
            return f"internal: {str(existing['internal']).lower()}"
        if params.subnet and params.subnet not in existing["subnets"]:
            return f"subnet {', '.join(existing['subnets'])}"
        return ""

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        return _members(docker, found)

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        return docker.remove_network(found["Id"])

    def allow(self, params: NetworkCreateParams) -> None:
        policy.check_network(params.driver)

    def create(self, ctx: Context, docker: Engine, params: NetworkCreateParams) -> dict[str, Any] | None:
        with exclusive(f"network {docker.url} {params.name}", ctx.check):
            found = docker.network(params.name)
            if found is None:
                try:
                    docker.create_network(_body(params, ctx.op_id))
                except Conflict as error:
                    if docker.network(params.name) is None:
                        raise OperationError(f"network {params.name}: {error.message}") from error
                found = docker.network(params.name)
        return found


@implements(NETWORK_REMOVE)
class NetworkRemove(Implementation[NetworkParams]):
    """Removes an unused network; the undo creates it again with the same settings."""

    def before(self, ctx: Context, params: NetworkParams) -> dict[str, Any]:
        found = engine().network(params.name)
        if found is None:
            return {"network": None}
        if users := _members(engine(), found):
            raise Preflight(
                f"network {params.name} is used by {', '.join(users)}",
                remedy="remove these containers in an earlier step",
            )
        kept = ("Id", "Name", "Driver", "Internal", "Labels", "Options", "IPAM", "Attachable", "EnableIPv6")
        return {"network": {key: found[key] for key in kept if key in found}}

    def change(self, ctx: Context, params: NetworkParams, before: dict[str, Any]) -> Change:
        was = before["network"]
        if was is None:
            yield unchanged(ctx, f"network {params.name} does not exist")
            return {"name": params.name, "exists": False}
        yield Prediction(f"would remove network {params.name}", undo="create it again")
        engine().remove_network(was["Id"])
        return {"name": was["Name"], "id": was["Id"], "exists": False}

    def undo(self, ctx: Context, params: NetworkParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker, was = engine(), before["network"]
        if was is None:
            return Outcome(changed=False)
        with exclusive(f"network {docker.url} {was['Name']}", ctx.check):
            found = docker.network(was["Name"])
            if found is None:
                docker.create_network({key: value for key, value in was.items() if key != "Id" and value is not None})
                return Outcome(changed=True)
        alike = ("Driver", "Internal", "Options", "IPAM")
        if found["Id"] != was["Id"] and any(found.get(key) != was.get(key) for key in alike):
            raise OperationError(
                f"a different network {was['Name']} was created outside of this run",
                remedy="remove or rename that network, then resume the undo",
            )
        return Outcome(changed=False)


@implements(NETWORK_INSPECT)
class NetworkInspect(ReadOnly[NetworkParams]):
    """Reads the state of a network."""

    reads = "inspect network {name}"

    def read(self, ctx: Context, params: NetworkParams) -> dict[str, Any]:
        return _network(engine().network(params.name), params.name)


def _volume(found: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if found is None:
        return {"exists": False, "name": name}
    state = {"exists": True, "name": found["Name"], "driver": found["Driver"], "mountpoint": found.get("Mountpoint")}
    return state | {"labels": found.get("Labels") or {}, "options": found.get("Options") or {}}


def _members(docker: Engine, network: dict[str, Any]) -> list[str]:
    """The containers of a network, including stopped ones, which the network does not list and which need it to start.

    A container that was never started refers to the network by name only.
    """
    rows = docker.rows({"network": [network["Id"], network["Name"]]}, all_of_them=True)
    return sorted(str(row["Names"][0]).removeprefix("/") for row in rows if row.get("Names"))


def _users(docker: Engine, name: str) -> list[str]:
    rows = docker.rows({"volume": [name]}, all_of_them=True)
    return sorted(str(row["Names"][0]).removeprefix("/") for row in rows if row.get("Names"))


@implements(VOLUME_CREATE)
class VolumeCreate(_CreatedIfMissing):
    """Creates a volume. The engine silently keeps an existing volume of the name."""

    kind = "volume"
    state = staticmethod(_volume)

    def note(self, found: dict[str, Any] | None) -> dict[str, Any]:
        return {"exists": found is not None}

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        return docker.volume(name)

    def difference(self, params: VolumeCreateParams, found: dict[str, Any]) -> str:
        existing = _volume(found, params.name)
        if existing["driver"] != params.driver:
            return f"driver {existing['driver']}"
        return "other options" if existing["options"] != params.options else ""

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        return _users(docker, found["Name"])

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        return docker.remove_volume(found["Name"])

    def allow(self, params: VolumeCreateParams) -> None:
        policy.check_volume(params.options, params.driver)

    def create(self, ctx: Context, docker: Engine, params: VolumeCreateParams) -> dict[str, Any] | None:
        body = {"Name": params.name, "Driver": params.driver, "DriverOpts": params.options}
        docker.create_volume(body | {"Labels": params.labels | {OP: ctx.op_id}})
        return docker.volume(params.name)


@implements(VOLUME_REMOVE)
class VolumeRemove(Implementation[VolumeRemoveParams]):
    """Removes an unused volume and its data, which no undo restores."""

    def before(self, ctx: Context, params: VolumeRemoveParams) -> dict[str, Any]:
        found = engine().volume(params.name)
        if found is not None:
            if not params.data_loss:
                what = f"the removal of volume {params.name} deletes its data for good"
                raise Preflight(what, remedy="set data_loss: true")
            if users := _users(engine(), params.name):
                what = f"volume {params.name} is used by {', '.join(users)}"
                raise Preflight(what, remedy="remove these containers in an earlier step")
        return {"exists": found is not None}

    def change(self, ctx: Context, params: VolumeRemoveParams, before: dict[str, Any]) -> Change:
        docker = engine()
        if before["exists"]:
            yield Prediction(f"would remove volume {params.name} and its data")
        else:
            yield unchanged(ctx, f"volume {params.name} does not exist")
        if docker.volume(params.name) is not None:
            if not before["exists"]:
                raise OperationError(f"volume {params.name} was created outside of this run")
            if not docker.remove_volume(params.name) and docker.volume(params.name) is not None:
                raise OperationError(f"volume {params.name} is used by {', '.join(_users(docker, params.name))}")
        return {"name": params.name, "exists": False}

    def undo(
        self, ctx: Context, params: VolumeRemoveParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        raise OperationError(f"the data of volume {params.name} cannot be restored", remedy="restore it from a backup")


@implements(VOLUME_INSPECT)
class VolumeInspect(ReadOnly[VolumeParams]):
    """Reads the state of a volume."""

    reads = "inspect volume {name}"

    def read(self, ctx: Context, params: VolumeParams) -> dict[str, Any]:
        return _volume(engine().volume(params.name), params.name)
