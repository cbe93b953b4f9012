"""`docker.network-*` and `docker.volume-*`."""

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
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, ReadOnly, implements
from longshore.tasks.operations.docker.spec import OP


class _Made(Implementation[Any]):
    """What has a name on the engine, and is made only where it is not there."""

    kind = ""

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        raise NotImplementedError

    def unlike(self, params: Any, found: dict[str, Any]) -> str:
        """What is there has otherwise; '' if nothing."""
        raise NotImplementedError

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        raise NotImplementedError

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        raise NotImplementedError

    def allow(self, params: Any) -> None:
        """NotAllowed for one that this worker may not make."""
        raise NotImplementedError

    def predict(self, ctx: Context, params: Any) -> Prediction:
        self.allow(params)
        found = self.find(engine(), params.name)
        if found is None:
            return Prediction(f"would make {self.kind} {params.name}", undo=f"remove {params.name}")
        if (why := self.unlike(params, found)) and not ctx.has_upstream:
            what = f"{self.kind} {params.name} is there with {why}"
            return Prediction(f"would fail: {what}", changed=False, impossible=what)
        return Prediction(f"{self.kind} {params.name} is there", changed=None if ctx.has_upstream else False)

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        docker = engine()
        found = self.find(docker, params.name)
        if found is None or not _ours(found, ctx):
            return Outcome(changed=False)
        if users := self.users(docker, found):
            raise OperationError(f"{self.kind} {params.name} is used by {', '.join(users)}")
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


def _unlike(params: NetworkCreateParams, found: dict[str, Any]) -> str:
    """What a network of that name has otherwise; '' if nothing."""
    said = _network(found, params.name)
    if said["driver"] != params.driver:
        return f"driver {said['driver']}"
    if said["internal"] != params.internal:
        return f"internal: {str(said['internal']).lower()}"
    if params.subnet and params.subnet not in said["subnets"]:
        return f"subnet {', '.join(said['subnets'])}"
    return ""


@implements(NETWORK_CREATE)
class NetworkCreate(_Made):
    """The engine allows two networks of one name; so it is looked for under a lock."""

    kind = "network"

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        return docker.network(name)

    def unlike(self, params: NetworkCreateParams, found: dict[str, Any]) -> str:
        return _unlike(params, found)

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        return _members(docker, found)

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        return docker.remove_network(found["Id"])

    def allow(self, params: NetworkCreateParams) -> None:
        policy.check_network(params.driver)

    def before(self, ctx: Context, params: NetworkCreateParams) -> dict[str, Any]:
        found = engine().network(params.name)
        if found is not None and (why := _unlike(params, found)):
            raise Preflight(f"network {params.name} is there with {why}", remedy="choose another name, or remove it")
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
            raise OperationError(f"network {params.name} was made, and is gone")
        if why := _unlike(params, found):
            raise OperationError(f"network {params.name} is there with {why}")
        return Outcome(changed=before["id"] is None and _ours(found, ctx), data=_network(found, params.name))


@implements(NETWORK_REMOVE)
class NetworkRemove(ReadOnly[NetworkParams]):
    """See its schema."""

    def before(self, ctx: Context, params: NetworkParams) -> dict[str, Any]:
        found = engine().network(params.name)
        if found is None:
            return {"network": None}
        if users := _members(engine(), found):
            raise Preflight(f"network {params.name} is used by {', '.join(users)}", remedy="stop them in a step before")
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
            changed = None if ctx.has_upstream else False
            return Prediction(f"there is no network {params.name}", changed=changed)
        users = _members(engine(), found)
        what = f"network {params.name} is used by {', '.join(users)}"
        impossible = what if users and not ctx.has_upstream else None
        return Prediction(f"would remove network {params.name}", undo="make it again", impossible=impossible)

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
            raise OperationError(f"there is another network {was['Name']} now")
        return Outcome(changed=False)


@implements(NETWORK_INSPECT)
class NetworkInspect(ReadOnly[NetworkParams]):
    """See its schema."""

    def act(self, ctx: Context, params: NetworkParams, before: dict[str, Any]) -> Outcome:
        return Outcome(changed=False, data=_network(engine().network(params.name), params.name))

    def predict(self, ctx: Context, params: NetworkParams) -> Prediction:
        return Prediction(f"would look at network {params.name}", changed=False)


def _volume(found: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if found is None:
        return {"exists": False, "name": name}
    said = {"exists": True, "name": found["Name"], "driver": found["Driver"], "mountpoint": found.get("Mountpoint")}
    return said | {"labels": found.get("Labels") or {}, "options": found.get("Options") or {}}


def _other(params: VolumeCreateParams, found: dict[str, Any]) -> str:
    said = _volume(found, params.name)
    if said["driver"] != params.driver:
        return f"driver {said['driver']}"
    return "other options" if said["options"] != params.options else ""


def _members(docker: Engine, network: dict[str, Any]) -> list[str]:
    """Stopped ones too, which the network itself does not list: they could not be started without it.

    One that was never started knows it by its name alone.
    """
    rows = docker.rows({"network": [network["Id"], network["Name"]]}, all_of_them=True)
    return sorted(str(row["Names"][0]).removeprefix("/") for row in rows if row.get("Names"))


def _users(docker: Engine, name: str) -> list[str]:
    rows = docker.rows({"volume": [name]}, all_of_them=True)
    return sorted(str(row["Names"][0]).removeprefix("/") for row in rows if row.get("Names"))


@implements(VOLUME_CREATE)
class VolumeCreate(_Made):
    """The engine makes one of a name only once; what is there already it leaves as it is, without a word."""

    kind = "volume"

    def find(self, docker: Engine, name: str) -> dict[str, Any] | None:
        return docker.volume(name)

    def unlike(self, params: VolumeCreateParams, found: dict[str, Any]) -> str:
        return _other(params, found)

    def users(self, docker: Engine, found: dict[str, Any]) -> list[str]:
        return _users(docker, found["Name"])

    def remove(self, docker: Engine, found: dict[str, Any]) -> bool:
        return docker.remove_volume(found["Name"])

    def allow(self, params: VolumeCreateParams) -> None:
        policy.check_volume(params.options, params.driver)

    def before(self, ctx: Context, params: VolumeCreateParams) -> dict[str, Any]:
        found = engine().volume(params.name)
        if found is not None and (why := _other(params, found)):
            raise Preflight(f"volume {params.name} is there with {why}", remedy="choose another name")
        return {"exists": found is not None}

    def act(self, ctx: Context, params: VolumeCreateParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        self.allow(params)
        body = {"Name": params.name, "Driver": params.driver, "DriverOpts": params.options}
        docker.create_volume(body | {"Labels": params.labels | {OP: ctx.op_id}})
        found = docker.volume(params.name)
        if found is None:
            raise OperationError(f"volume {params.name} was made, and is gone")
        if why := _other(params, found):
            raise OperationError(f"volume {params.name} is there with {why}")
        return Outcome(changed=not before["exists"] and _ours(found, ctx), data=_volume(found, params.name))


@implements(VOLUME_REMOVE)
class VolumeRemove(Implementation[VolumeRemoveParams]):
    """See its schema."""

    def before(self, ctx: Context, params: VolumeRemoveParams) -> dict[str, Any]:
        found = engine().volume(params.name)
        if found is not None:
            self._check(params)
            if users := _users(engine(), params.name):
                raise Preflight(f"volume {params.name} is used by {', '.join(users)}")
        return {"exists": found is not None}

    def act(self, ctx: Context, params: VolumeRemoveParams, before: dict[str, Any]) -> Outcome:
        docker = engine()
        if docker.volume(params.name) is not None:
            if not before["exists"]:
                raise OperationError(f"volume {params.name} was made by somebody else meanwhile")
            if not docker.remove_volume(params.name) and docker.volume(params.name) is not None:
                raise OperationError(f"volume {params.name} is used by {', '.join(_users(docker, params.name))}")
        return Outcome(changed=before["exists"], data={"name": params.name, "exists": False})

    def predict(self, ctx: Context, params: VolumeRemoveParams) -> Prediction:
        docker = engine()
        if docker.volume(params.name) is None:
            return Prediction(f"there is no volume {params.name}", changed=None if ctx.has_upstream else False)
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
        raise OperationError("nobody can bring a volume's data back")

    @staticmethod
    def _check(params: VolumeRemoveParams) -> None:
        if not params.data_loss:
            raise Preflight(f"volume {params.name} would be lost for good", remedy="say data_loss: true")


@implements(VOLUME_INSPECT)
class VolumeInspect(ReadOnly[VolumeParams]):
    """See its schema."""

    def act(self, ctx: Context, params: VolumeParams, before: dict[str, Any]) -> Outcome:
        return Outcome(changed=False, data=_volume(engine().volume(params.name), params.name))

    def predict(self, ctx: Context, params: VolumeParams) -> Prediction:
        return Prediction(f"would look at volume {params.name}", changed=False)
