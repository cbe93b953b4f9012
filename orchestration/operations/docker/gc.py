"""`docker.gc`: what was kept for an undo that nobody can ask for any more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import About, Kind, Params, Result, Undo
from longshore.orchestration.operations.docker.fields import docker_operation


class GcParams(Params):
    """What is kept of a run goes when its run is forgotten, and so long after it was made."""

    older_than: Annotated[Duration, Field(ge=0)] | None = Field(
        None, description="How long ago it was kept; the worker's retention if left out"
    )
    every_run: bool = Field(
        default=False,
        description="Also what no receipt tells to be of this installation: of others on the same engine, too",
    )


class GcResult(Result):
    """What was taken away; `bytes` of files, an image's size is not known to be free."""

    images: list[str] = []
    containers: list[str] = []
    files: list[str] = []
    receipts: int = 0
    bytes: int = 0


GC = docker_operation(
    "gc.execute",
    GcParams,
    GcResult,
    "Take away what was kept for undo, beyond retention",
    About(
        changed="something was taken away",
        undo="none: what it takes away nobody can ask for any more",
        duplicate="finds less to take away",
    ),
    kind=Kind.CONVERGES,
    undo=Undo.NONE,
)
