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
    """If the network does not exist, the result has `exists: false`."""

    name: _Name


class NetworkCreateParams(NetworkParams):
    """The step keeps an existing network of this name, if its driver, `internal` and `subnet` are as given."""

    driver: str = Field("bridge", description="Driver")
    internal: bool = Field(default=False, description="Isolate the network from the outside")
    subnet: str | None = Field(None, description="Subnet, such as 10.9.0.0/24; by default the engine chooses one")
    labels: dict[str, str] = Field({}, description="Labels")
    options: dict[str, str] = Field({}, description="Options of the driver")


class NetworkRemoveParams(NetworkParams):
    """No container may use the network."""


class NetworkResult(Result):
    """`containers` lists the names of the connected containers."""

    exists: bool = True
    id: str | None = None
    name: str
    driver: str | None = None
    internal: bool = False
    subnets: list[str] = []
    containers: list[str] = []
    labels: dict[str, str] = {}


class NetworkRemoveResult(Result):
    """`exists` is false. `id` is the former id; absent if the network did not exist."""

    exists: bool = False
    id: str | None = None
    name: str


class VolumeParams(Params):
    """If the volume does not exist, the result has `exists: false`."""

    name: _Name


class VolumeCreateParams(VolumeParams):
    """The step keeps an existing volume of this name, if its driver and options are as given."""

    driver: str = Field("local", description="Driver")
    options: dict[str, str] = Field({}, description="Options of the driver")
    labels: dict[str, str] = Field({}, description="Labels")


class VolumeRemoveParams(VolumeParams):
    """The data cannot be restored."""

    data_loss: bool = Field(
        default=False,
        description="Set to true to confirm the loss of the data; not needed if the volume does not exist",
    )


class VolumeRemoveResult(Result):
    """`exists` is false."""

    exists: bool = False
    name: str


class VolumeResult(Result):
    """`mountpoint` is a path on the engine's host."""

    exists: bool = True
    name: str
    driver: str | None = None
    mountpoint: str | None = None
    labels: dict[str, str] = {}
    options: dict[str, str] = {}


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}
_USED = "if a container, even a stopped one, uses the"

NETWORK_CREATE = docker_operation(
    "network-create.execute",
    NetworkCreateParams,
    NetworkResult,
    "Create a network",
    About(
        changed="the step created the network",
        undo="removes the network if the step created it; fails if a container, even a stopped one, uses the network",
        duplicate="finds the network by its label",
        fails="if a network of this name has another driver, `internal` or subnet",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
)
NETWORK_REMOVE = docker_operation(
    "network-remove.execute",
    NetworkRemoveParams,
    NetworkRemoveResult,
    "Remove a network",
    About(
        changed="the network existed",
        undo="creates the network again with the same driver, subnet, options and labels, under a new id; fails if a "
        "network with other settings has its name",
        duplicate="finds the network removed, or removes it",
        fails=f"{_USED} network",
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
        undo="removes the volume if the step created it; fails if a container, even a stopped one, uses the volume",
        duplicate="finds the volume by its label",
        fails="if a volume of this name has another driver or other options",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.FULL,
)
VOLUME_REMOVE = docker_operation(
    "volume-remove.execute",
    VolumeRemoveParams,
    VolumeRemoveResult,
    "Remove a volume and its data",
    About(
        changed="the volume existed",
        undo="none: the data cannot be restored",
        duplicate="finds the volume removed, or removes it",
        fails=f"{_USED} volume, or without `data_loss: true`",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
)
VOLUME_INSPECT = docker_operation(
    "volume-inspect.get", VolumeParams, VolumeResult, "Inspect a volume", READ_ONLY, **_LOOKS
)
