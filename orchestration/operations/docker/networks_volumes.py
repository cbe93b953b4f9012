"""Networks and volumes of an engine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from longshore.orchestration.operations.base import READ_ONLY, About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import NAME, docker_operation

_Name = Annotated[
    str, Field(min_length=1, pattern=rf"({NAME.pattern.removeprefix('/?')}|.*\{{\{{.*)", description="Its name")
]


class NetworkParams(Params):
    """A network by its name."""

    name: _Name


class NetworkCreateParams(NetworkParams):
    """One that is there with the same driver, `internal` and subnet is left as it is; with others it is an error."""

    driver: str = "bridge"
    internal: bool = Field(default=False, description="No way out of it")
    subnet: str | None = Field(None, description="Such as 10.9.0.0/24; the engine's choice if left out")
    labels: dict[str, str] = {}
    options: dict[str, str] = Field({}, description="The driver's own")


class NetworkResult(Result):
    """`containers`: the names of those that are in it."""

    exists: bool = True
    id: str | None = None
    name: str
    driver: str | None = None
    internal: bool = False
    subnets: list[str] = []
    containers: list[str] = []
    labels: dict[str, str] = {}


class VolumeParams(Params):
    """A volume by its name."""

    name: _Name


class VolumeCreateParams(VolumeParams):
    """One that is there with the same driver and options is left as it is; with others it is an error."""

    driver: str = "local"
    options: dict[str, str] = Field({}, description="The driver's own")
    labels: dict[str, str] = {}


class VolumeRemoveParams(VolumeParams):
    """Its data is gone for good, so this has to be said: `data_loss: true`."""

    data_loss: bool = Field(default=False, description="Must be true where the volume is there")


class VolumeResult(Result):
    """`mountpoint` is a path on the engine's host."""

    exists: bool = True
    name: str
    driver: str | None = None
    mountpoint: str | None = None
    labels: dict[str, str] = {}
    options: dict[str, str] = {}


_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}
_MADE_BY_LABEL = "finds it by its label: the run and the step"

NETWORK_CREATE = docker_operation(
    "network-create.execute",
    NetworkCreateParams,
    NetworkResult,
    "Make a network",
    About(
        changed="it was made by this step",
        undo="removes it, if this step has made it; refuses while containers are in it",
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
        changed="it was there",
        undo="makes it again with the same driver, subnet, options and labels; it has another id then",
        duplicate="finds it gone",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.PARTIAL,
)
NETWORK_INSPECT = docker_operation(
    "network-inspect.get", NetworkParams, NetworkResult, "Look at a network", READ_ONLY, **_LOOKS
)
VOLUME_CREATE = docker_operation(
    "volume-create.execute",
    VolumeCreateParams,
    VolumeResult,
    "Make a volume",
    About(
        changed="it was made by this step",
        undo="removes it, if this step has made it; refuses while a container uses it",
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
        changed="it was there",
        undo="none: nobody can bring the data back",
        duplicate="finds it gone",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
)
VOLUME_INSPECT = docker_operation(
    "volume-inspect.get", VolumeParams, VolumeResult, "Look at a volume", READ_ONLY, **_LOOKS
)
