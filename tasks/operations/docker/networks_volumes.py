"""`docker.network-*` and `docker.volume-*`: networks and volumes of the engine."""

from __future__ import annotations

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
    Context,
    Implementation,
    Outcome,
    Prediction,
    ReadOnly,
    implements,
    unchanged,
    would_fail,
)
from longshore.tasks.operations.docker.spec import OP

_REMOVE_USERS = "remove these containers, then resume the undo"


class _CreatedIfMissing(Implementation[Any]):
    """The base of operations that create a named object unless it exists."""

    kind = ""

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

    def predict(self, ctx: Context, params: Any) -> Prediction:
        self.allow(params)
        found = self.find(engine(), params.name)
        if found is None:
            return Prediction(f"would create {self.kind} {params.name}", undo=f"remove {params.name}")
        if (why := self.difference(params, found)) and not ctx.has_upstream:
            return would_fail(f"{self.kind} {params.name} exists with {why}")
        return unchanged(ctx, f"{self.kind} {params.name} exists")

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


def _network_difference(params: NetworkCreateParams, found: dict[str, Any]) -> str:
    """The difference of the existing network from the parameters; '' if none."""
    existing = _network(found, params.name)
    if existing["driver"] != params.driver:
        return f"driver {existing['driver']}"
    if existing["internal"] != params.internal:
        return f"internal: {str(existing['internal']).lower()}"
    if params.subnet and params.subnet not in existing["subnets"]:
        return f"subnet {', '.join(existing['subnets'])}"
    return ""


@implements(NETWORK_CREATE)
class NetworkCreate(_CreatedIfMissing):
    """Creates a network. A lock guards the look-up by name, since the engine allows two networks of one name."""

    kind = "network"

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        return docker.network(name)

    def difference(self, params: NetworkCreateParams, found: dict[str, Any]) -> str:
        return _network_difference(params, found)

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        return _members(docker, found)

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        return docker.remove_network(found["Id"])

    def allow(self, params: NetworkCreateParams) -> None:
        policy.check_network(params.driver)

    def before(self, ctx: Context, params: NetworkCreateParams) -> dict[str, Any]:
        found = engine().network(params.name)
        if found is not None and (why := _network_difference(params, found)):
            raise Preflight(f"network {params.name} exists with {why}", remedy="choose another name, or remove it")
        return {"id": found["Id"] if found else None}

    def act(self, ctx: Context, params: NetworkCreateParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        self.allow(params)
        with exclusive(f"network {docker.url} {params.name}", ctx.check):
            found = docker.network(params.name)
            if found is None:
                try:
                    docker.create_network(_body(params, ctx.op_id))
                except Conflict as error:
                    if docker.network(params.name) is None:
                        raise OperationError(f"network {params.name}: {error.message}") from error
                found = docker.network(params.name)
        if found is None:
            raise OperationError(f"network {params.name} was removed right after its creation")
        if why := _network_difference(params, found):
            raise OperationError(f"network {params.name} exists with {why}", remedy="choose another name, or remove it")
        return Outcome(changed=before["id"] is None and _ours(found, ctx), data=_network(found, params.name))


@implements(NETWORK_REMOVE)
class NetworkRemove(ReadOnly[NetworkParams]):
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

    def act(self, ctx: Context, params: NetworkParams, before: dict[str, Any]) -> Outcome:
        was = before["network"]
        if was is None:
            return Outcome(changed=False, data={"name": params.name, "exists": False})
        engine().remove_network(was["Id"])
        return Outcome(changed=True, data={"name": was["Name"], "id": was["Id"], "exists": False})

    def predict(self, ctx: Context, params: NetworkParams) -> Prediction:
        found = engine().network(params.name)
        if found is None:
            return unchanged(ctx, f"network {params.name} does not exist")
        users = _members(engine(), found)
        what = f"network {params.name} is used by {', '.join(users)}"
        impossible = what if users and not ctx.has_upstream else None
        return Prediction(f"would remove network {params.name}", undo="create it again", impossible=impossible)

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

    def act(self, ctx: Context, params: NetworkParams, before: dict[str, Any]) -> Outcome:
        return Outcome(changed=False, data=_network(engine().network(params.name), params.name))

    def predict(self, ctx: Context, params: NetworkParams) -> Prediction:
        return Prediction(f"would inspect network {params.name}", changed=False)


def _volume(found: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if found is None:
        return {"exists": False, "name": name}
    state = {"exists": True, "name": found["Name"], "driver": found["Driver"], "mountpoint": found.get("Mountpoint")}
    return state | {"labels": found.get("Labels") or {}, "options": found.get("Options") or {}}


def _volume_difference(params: VolumeCreateParams, found: dict[str, Any]) -> str:
    existing = _volume(found, params.name)
    if existing["driver"] != params.driver:
        return f"driver {existing['driver']}"
    return "other options" if existing["options"] != params.options else ""


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

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        return docker.volume(name)

    def difference(self, params: VolumeCreateParams, found: dict[str, Any]) -> str:
        return _volume_difference(params, found)

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        return _users(docker, found["Name"])

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        return docker.remove_volume(found["Name"])

    def allow(self, params: VolumeCreateParams) -> None:
        policy.check_volume(params.options, params.driver)

    def before(self, ctx: Context, params: VolumeCreateParams) -> dict[str, Any]:
        found = engine().volume(params.name)
        if found is not None and (why := _volume_difference(params, found)):
            raise Preflight(f"volume {params.name} exists with {why}", remedy="choose another name")
        return {"exists": found is not None}

    def act(self, ctx: Context, params: VolumeCreateParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        self.allow(params)
        body = {"Name": params.name, "Driver": params.driver, "DriverOpts": params.options}
        docker.create_volume(body | {"Labels": params.labels | {OP: ctx.op_id}})
        found = docker.volume(params.name)
        if found is None:
            raise OperationError(f"volume {params.name} was removed right after its creation")
        if why := _volume_difference(params, found):
            raise OperationError(f"volume {params.name} exists with {why}", remedy="choose another name")
        return Outcome(changed=not before["exists"] and _ours(found, ctx), data=_volume(found, params.name))


@implements(VOLUME_REMOVE)
class VolumeRemove(Implementation[VolumeRemoveParams]):
    """Removes an unused volume and its data, which no undo restores."""

    def before(self, ctx: Context, params: VolumeRemoveParams) -> dict[str, Any]:
        found = engine().volume(params.name)
        if found is not None:
            self._check(params)
            if users := _users(engine(), params.name):
                what = f"volume {params.name} is used by {', '.join(users)}"
                raise Preflight(what, remedy="remove these containers in an earlier step")
        return {"exists": found is not None}

    def act(self, ctx: Context, params: VolumeRemoveParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        if docker.volume(params.name) is not None:
            if not before["exists"]:
                raise OperationError(f"volume {params.name} was created outside of this run")
            if not docker.remove_volume(params.name) and docker.volume(params.name) is not None:
                raise OperationError(f"volume {params.name} is used by {', '.join(_users(docker, params.name))}")
        return Outcome(changed=before["exists"], data={"name": params.name, "exists": False})

    def predict(self, ctx: Context, params: VolumeRemoveParams) -> Prediction:
        docker = engine()
        if docker.volume(params.name) is None:
            return unchanged(ctx, f"volume {params.name} does not exist")
        impossible = None
        try:
            self._check(params)
        except Preflight as error:
            impossible = str(error)
        if (users := _users(docker, params.name)) and not ctx.has_upstream:
            impossible = f"volume {params.name} is used by {', '.join(users)}"
        return Prediction(f"would remove volume {params.name} and its data", impossible=impossible)

    def undo(
        self, ctx: Context, params: VolumeRemoveParams, before: dict[str, Any], data: dict[str, Any] | None
    ) -> Outcome:
        raise OperationError(f"the data of volume {params.name} cannot be restored", remedy="restore it from a backup")

    @staticmethod
    def _check(params: VolumeRemoveParams) -> None:
        if not params.data_loss:
            raise Preflight(
                f"the removal of volume {params.name} deletes its data for good", remedy="set data_loss: true"
            )


@implements(VOLUME_INSPECT)
class VolumeInspect(ReadOnly[VolumeParams]):
    """Reads the state of a volume."""

    def act(self, ctx: Context, params: VolumeParams, before: dict[str, Any]) -> Outcome:
        return Outcome(changed=False, data=_volume(engine().volume(params.name), params.name))

    def predict(self, ctx: Context, params: VolumeParams) -> Prediction:
        return Prediction(f"would inspect volume {params.name}", changed=False)
