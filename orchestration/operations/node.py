"""Facts and status of a machine: the worker's host, or a container."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from longshore.orchestration.operations.base import READ_ONLY, Kind, Operation, Params, Result, Undo, register


class NodeParams(Params):
    """The operation has no parameters."""


class DiskParams(Params):
    """The list has all file systems with a size."""

    path: str | None = Field(None, description="Only the file system of this path")


class HostnameResult(Result):
    """`hostname` is that of the kernel. `labels` are the labels of the host."""

    hostname: str
    labels: dict[str, str] = {}


class OsResult(Result):
    """The values are from /etc/os-release; `kernel` and `architecture` are from `uname`."""

    distribution: str
    version: str = ""
    name: str = ""
    kernel: str = ""
    architecture: str = ""


class DiskResult(Result):
    """Each file system has `filesystem`, `mount`, `total`, `used` and `available` (in bytes), from `df -P`."""

    disks: list[dict[str, Any]] = []


class MemoryResult(Result):
    """The values are in bytes, from /proc/meminfo."""

    total: int
    free: int
    available: int
    cached: int
    swap_total: int = 0
    swap_free: int = 0


class UptimeResult(Result):
    """Seconds since the machine started."""

    uptime_s: float


class LoadResult(Result):
    """Load averages over one, five and fifteen minutes, and the number of CPUs."""

    load1: float
    load5: float
    load15: float
    cpus: int


class StatusResult(Result):
    """The results of the other `node.*` operations."""

    hostname: str
    os: OsResult
    uptime_s: float
    load: LoadResult
    memory: MemoryResult
    disks: list[dict[str, Any]] = []


def _node(name: str, params: type[Params], result: type[Result], summary: str) -> Operation:
    return register(
        name=f"node.{name}.get",
        params=params,
        result=result,
        queue="node",
        kind=Kind.READ_ONLY,
        undo=Undo.NONE,
        summary=summary,
        inside=True,
        about=READ_ONLY,
    )


HOSTNAME = _node("hostname", NodeParams, HostnameResult, "Get the hostname")
OS = _node("os", NodeParams, OsResult, "Get the distribution, kernel and architecture")
DISK = _node("disk", DiskParams, DiskResult, "Get the file systems and their free space")
MEMORY = _node("memory", NodeParams, MemoryResult, "Get the memory usage")
UPTIME = _node("uptime", NodeParams, UptimeResult, "Get the uptime")
LOAD = _node("load", NodeParams, LoadResult, "Get the load averages")
STATUS = _node("status", NodeParams, StatusResult, "Get all node facts")
