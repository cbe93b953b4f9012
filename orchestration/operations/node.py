"""What a machine is and how it stands: the worker's host, or a container."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from longshore.orchestration.operations.base import READ_ONLY, Kind, Operation, Params, Result, Undo, register


class NodeParams(Params):
    """There is nothing to say."""


class DiskParams(Params):
    """Which file systems; all that have a size if left out."""

    path: str | None = Field(None, description="Only the one that this path is on")


class HostnameResult(Result):
    """As the kernel has it; `labels` are the worker's."""

    hostname: str
    labels: dict[str, str] = {}


class OsResult(Result):
    """Out of /etc/os-release; `kernel` and `architecture` as `uname` says them."""

    distribution: str
    version: str = ""
    name: str = ""
    kernel: str = ""
    architecture: str = ""


class DiskResult(Result):
    """Each as `filesystem, mount, total, used, available`, in bytes, as `df -P` says them."""

    disks: list[dict[str, Any]] = []


class MemoryResult(Result):
    """Bytes, as /proc/meminfo says them."""

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
    """Over one, five and fifteen minutes; `cpus` that it is shared by."""

    load1: float
    load5: float
    load15: float
    cpus: int


class StatusResult(Result):
    """All of it in one."""

    hostname: str
    os: OsResult
    uptime_s: float
    load: LoadResult
    memory: MemoryResult
    disks: list[dict[str, Any]] = []


def _node(name: str, params: type[Params], result: type[Result], summary: str) -> Operation:
    return register(
        Operation(
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
    )


HOSTNAME = _node("hostname", NodeParams, HostnameResult, "The machine's name")
OS = _node("os", NodeParams, OsResult, "Its distribution, kernel and architecture")
DISK = _node("disk", DiskParams, DiskResult, "Its file systems and what is left on them")
MEMORY = _node("memory", NodeParams, MemoryResult, "Its memory")
UPTIME = _node("uptime", NodeParams, UptimeResult, "How long it has been up")
LOAD = _node("load", NodeParams, LoadResult, "How busy it is")
STATUS = _node("status", NodeParams, StatusResult, "All of that in one")
