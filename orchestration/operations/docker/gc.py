"""`docker.gc`: removal of undo backups beyond retention."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import docker_operation


class GcParams(Params):
    """A backup is an image tag, a container, a stored configuration, a former content of a file or a receipt. The step
    removes a backup that is older than `older_than`, if its run has receipts on the host and is no longer in Redis.
    """

    older_than: Annotated[Duration, Field(ge=0)] | None = Field(
        None, description="Minimum age of a backup; by default LONGSHORE_RETENTION"
    )
    every_run: bool = Field(
        default=False,
        description="Also remove backups of runs without receipts, which another installation may still need",
    )


class GcResult(Result):
    """The lists have the removed backups. `bytes` counts only files, because images share layers."""

    images: list[str] = []
    containers: list[str] = []
    files: list[str] = []
    receipts: int = 0
    bytes: int = 0


GC = docker_operation(
    "gc.execute",
    GcParams,
    GcResult,
    "Remove backups of runs that Redis no longer has",
    About(
        changed="a backup was removed",
        undo="none",
        duplicate="removes the remaining backups",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
)
