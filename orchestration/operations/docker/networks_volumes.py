"""Networks and volumes of an engine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Params, Result, Undo, expected
from longshore.orchestration.operations.docker.fields import NAME, docker_operation

_Name = Annotated[
    str,
    Field(min_length=1, pattern=rf"({NAME.pattern.removeprefix('/?')}|.*\{{\{{.*)", description="Name"),
    expected("a name: letters, digits and _.-"),
]


class NetworkParams(Params):
    """A missing network is not an error."""

    name: _Name


class NetworkCreateParams(NetworkParams):
    """An existing network with equal driver, `internal` and subnet is kept; a different one is an error."""

    driver: str = Field("bridge", description="Driver")
    internal: bool = Field(default=False, description="Without external access")
    subnet: str | None = Field(None, description="Such as 10.9.0.0/24; by default the engine's choice")
    labels: dict[str, str] = Field({}, description="Labels")
    options: dict[str, str] = Field({}, description="Options of the driver")


class NetworkResult(Result):
    """`containers`: names of the connected containers."""

    exists: bool = True
    id: str | None = None
    name: str
    driver: str | None = None
    internal: bool = False
    subnets: list[str] = []
    containers: list[str] = []
    labels: dict[str, str] = {}


class VolumeParams(Params):
    """A missing volume is not an error."""

    name: _Name


class VolumeCreateParams(VolumeParams):
    """An existing volume with equal driver and options is kept; a different one is an error."""

    driver: str = Field("local", description="Driver")
    options: dict[str, str] = Field({}, description="Options of the driver")
    labels: dict[str, str] = Field({}, description="Labels")


class VolumeRemoveParams(VolumeParams):
    """The data are lost for good. Confirm the loss with `data_loss: true`."""

    data_loss: bool = Field(default=False, description="Must be true if the volume exists")


class VolumeResult(Result):
    """`mountpoint` is a path on the engine's host."""

    exists: bool = True
    name: str
    driver: str | None = None
    mountpoint: str | None = None
    labels: dict[str, str] = {}
    options: dict[str, str] = {}


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}
_MADE_BY_LABEL = "finds the object by its labels"

NETWORK_CREATE = docker_operation(
    "network-create.execute",
    NetworkCreateParams,
    NetworkResult,
    "Create a network",
    About(
        changed="the step created the network",
        undo="removes the network, if the step created it; fails while containers are connected",
        duplicate=_MADE_BY_LABEL,
    ),
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
)
NETWORK_REMOVE = docker_operation(
    "network-remove.execute",
    NetworkParams,
    NetworkResult,
    "Remove a network",
    About(
        changed="the network existed",
        undo="creates the network again with the same driver, subnet, options and labels, under a new id",
        duplicate="finds the network removed",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.PARTIAL,
)
NETWORK_INSPECT = docker_operation(
    "network-inspect.get", NetworkParams, NetworkResult, "Inspect a network", READ_ONLY, **_LOOKS
)
VOLUME_CREATE = docker_operation(
    "volume-create.execute",
    VolumeCreateParams,
    VolumeResult,
    "Create a volume",
    About(
        changed="the step created the volume",
        undo="removes the volume, if the step created it; fails while a container uses it",
        duplicate=_MADE_BY_LABEL,
    ),
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
)
VOLUME_REMOVE = docker_operation(
    "volume-remove.execute",
    VolumeRemoveParams,
    VolumeResult,
    "Remove a volume and its data",
    About(
        changed="the volume existed",
        undo="none: the data cannot be restored",
        duplicate="finds the volume removed",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
)
VOLUME_INSPECT = docker_operation(
    "volume-inspect.get", VolumeParams, VolumeResult, "Inspect a volume", READ_ONLY, **_LOOKS
)
