"""Descriptions of containers as the engine reports them, from which the engine can create equal containers.

A description needs no file of a project: labels, configuration, mounts and networks come from the container itself, so
that a container that was started by hand can be created again after its files have changed. Volumes are bound by name,
anonymous ones included, and keep their data.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.port import Engine, NotThere
from longshore.tasks.operations.compose.copied_files import copied_files
from longshore.tasks.operations.compose.state import Member

_LABEL = "com.docker.compose."
#: Network modes without endpoints of their own.
_MODES = {"host", "none", "default", "bridge", ""}
#: Fields of the host configuration that may refer to another container as `container:<id>`.
_SHARED = ("NetworkMode", "PidMode", "IpcMode")
_JOINS = "container:"
#: Fields of an endpoint that are configured; all others are assigned by the engine.
_ENDPOINT = ("IPAMConfig", "Links", "DriverOpts")


@dataclass(frozen=True)
class Description:
    """One container, stored as JSON. `body` is in the engine's format and may contain secrets."""

    id: str
    name: str
    image: str
    image_id: str
    body: dict[str, Any]
    #: The hash of the files that it was created from; see `config_hashes`.
    hash: str = ""
    #: Endpoint by network name, without the addresses that the engine assigns.
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The networks of its Compose project, in the format of their creation.
    owned: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Files that Compose has copied into it, as an archive in Base64; may contain secrets.
    files: str = ""

    @property
    def labels(self) -> Mapping[str, str]:
        return self.body.get("Labels") or {}

    @property
    def key(self) -> tuple[str, int]:
        """The service and number in its project."""
        return self.labels.get(_LABEL + "service", ""), int(self.labels.get(_LABEL + "container-number") or 0)

    @property
    def joins(self) -> list[str]:
        """The containers whose namespaces it shares."""
        host = self.body.get("HostConfig") or {}
        modes = (str(host.get(name) or "") for name in _SHARED)
        return [mode.removeprefix(_JOINS) for mode in modes if mode.startswith(_JOINS)]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(docker: Engine, container: str) -> Description | None:
    """The description of a container; None if it does not exist."""
    raw = docker.raw(container)
    if raw is None:
        return None
    host = dict(raw["HostConfig"])
    mode = str(host.get("NetworkMode") or "")
    config = {key: value for key, value in raw["Config"].items() if value is not None}
    if mode.startswith(_JOINS) or mode == "host":
        # The engine fills these in from the other container, and refuses them in a request.
        for name in ("Hostname", "Domainname", "ExposedPorts", "MacAddress"):
            config.pop(name, None)
    elif config.get("Hostname") == raw["Id"][:12]:
        del config["Hostname"]
    _name_volumes(raw, host)
    own = raw["Id"][:12]
    networks, owned = {}, {}
    for name, endpoint in ((raw.get("NetworkSettings") or {}).get("Networks") or {}).items():
        if mode in _MODES - {"bridge", "default", ""}:
            continue
        kept = {key: endpoint[key] for key in _ENDPOINT if endpoint.get(key)}
        aliases = [alias for alias in endpoint.get("Aliases") or [] if alias != own]
        networks[name] = kept | ({"Aliases": aliases} if aliases else {})
        network = docker.network(name)
        if network is not None and (network.get("Labels") or {}).get(_LABEL + "project"):
            owned[name] = _network(network)
    return Description(
        raw["Id"],
        raw["Name"].removeprefix("/"),
        raw["Config"]["Image"],
        raw["Image"],
        config | {"HostConfig": host},
        networks=networks,
        owned=owned,
        files=copied_files(docker, raw),
    )


def _name_volumes(raw: Mapping[str, Any], host: dict[str, Any]) -> None:
    """Mount the volumes that the engine has named itself by these names."""
    volumes = {
        mount["Destination"]: mount["Name"]
        for mount in raw.get("Mounts") or []
        if mount.get("Type") == "volume" and mount.get("Name")
    }
    mounts = [dict(mount) for mount in host.get("Mounts") or []]
    for mount in mounts:
        if mount.get("Type") == "volume" and not mount.get("Source") and mount["Target"] in volumes:
            mount["Source"] = volumes[mount["Target"]]
    named = {str(bind).split(":")[1] for bind in host.get("Binds") or [] if ":" in str(bind)}
    named |= {str(mount["Target"]) for mount in mounts}
    host["Mounts"] = mounts
    host["Binds"] = [*(host.get("Binds") or []), *(f"{n}:{at}" for at, n in volumes.items() if at not in named)]


def _network(raw: Mapping[str, Any]) -> dict[str, Any]:
    ipam = raw.get("IPAM") or {}
    # The engine chooses a free subnet again, unless the subnet was configured: it does not tell which.
    return {
        "Name": raw["Name"],
        "Driver": raw.get("Driver") or "bridge",
        "Internal": bool(raw.get("Internal")),
        "Attachable": bool(raw.get("Attachable")),
        "EnableIPv6": bool(raw.get("EnableIPv6")),
        "IPAM": ipam,
        "Options": dict(raw.get("Options") or {}),
        "Labels": dict(raw.get("Labels") or {}),
    }


def runs_as(one: Description, now: Iterable[Member]) -> bool:
    """Reports whether the project has a container of this service and number, as described."""
    return any((other.key, other.image_id, other.hash) == (one.key, one.image_id, one.hash) for other in now)


def create_all(
    docker: Engine,
    wanted: Iterable[Description],
    present: Mapping[str, str] | None = None,
    *,
    grace: float | None = None,
) -> None:
    """Create containers, without a start, each after those whose namespaces it shares.

    `present`: the present ids of containers by their described ids; `grace`: of containers with one of the names.

    A container with one of the names is set aside first, and removed once its replacement exists. Raises
    OperationError for an image that is no longer on the host.
    """
    left = sorted(wanted, key=lambda one: bool(one.joins))
    current = dict(present or {})
    for one in left:
        current[one.id] = _create(docker, one, current, grace)


def _create(docker: Engine, one: Description, current: Mapping[str, str], grace: float | None) -> str:
    by_digest = "@" in one.image or one.image.startswith("sha256:")
    if docker.image_id(one.image) != one.image_id and not by_digest:
        try:
            docker.tag(one.image_id, one.image)
        except NotThere as error:
            what = f"image {one.image_id} of container {one.name} was removed outside of this run"
            raise OperationError(what) from error
    for name, network in one.owned.items():
        if docker.network(name) is None:
            docker.create_network(network)
    there = docker.inspect(one.name)
    if there is not None:
        if there.running:
            docker.stop(there.id, grace)
        # Compose names a container that it replaces in the same way, and recognises it by this name.
        docker.rename(there.id, f"{there.id[:12]}_{one.name}")
    image = one.image_id if by_digest else one.image
    body = one.body | {"Image": image, "HostConfig": _joined(one, current)}
    names = sorted(one.networks, key=lambda name: (name != one.body["HostConfig"].get("NetworkMode"), name))
    if names:
        body["NetworkingConfig"] = {"EndpointsConfig": {names[0]: one.networks[names[0]]}}
    made, _ = docker.create(one.name, body)
    if one.files:
        docker.write_archive(made, "/", base64.b64decode(one.files))
    for name in names[1:]:
        endpoint = dict(one.networks[name])
        docker.connect(name, made, endpoint.pop("Aliases", []), endpoint)
    if there is not None:
        docker.remove(there.id)
    return made


def _joined(one: Description, current: Mapping[str, str]) -> dict[str, Any]:
    """The host configuration with the present ids of the containers whose namespaces it shares."""
    host = dict(one.body["HostConfig"])
    for name in _SHARED:
        mode = str(host.get(name) or "")
        if mode.startswith(_JOINS):
            other = mode.removeprefix(_JOINS)
            host[name] = _JOINS + current.get(other, other)
    return host
