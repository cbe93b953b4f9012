"""`docker.gc`: removal of undo backups beyond retention."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import docker_operation


class GcParams(Params):
    """Backups of a run are removed when the run is purged and the backup is older than `older_than`."""

    older_than: Annotated[Duration, Field(ge=0)] | None = Field(
        None, description="Minimum age of a backup; by default the worker's retention"
    )
    every_run: bool = Field(
        default=False,
        description="Also remove backups without a receipt of this installation, even those of others on the engine",
    )


class GcResult(Result):
    """The removed backups; `bytes` counts files only, as images share layers."""

    images: list[str] = []
    containers: list[str] = []
    files: list[str] = []
    receipts: int = 0
    bytes: int = 0


GC = docker_operation(
    "gc.execute",
    GcParams,
    GcResult,
    "Remove undo backups beyond retention",
    About(
        changed="a backup was removed",
        undo="none: the removed backups belong to purged runs",
        duplicate="removes the remaining backups",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
)
