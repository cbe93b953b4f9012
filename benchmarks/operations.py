"""Operations of the benchmarks; the worker imports this module by LONGSHORE_IMPORTS."""

from __future__ import annotations

import os
import time
from pathlib import Path

from longshore.orchestration import Context, Result, operation


@operation("bench.change")
def change(number: int) -> Result:
    """Report a change without an effect."""
    return Result(changed=True, data={"number": number})


@change.undo
def take_back(number: int) -> None:
    """Have no effect."""


@operation("bench.interrupted", idempotent=True)
def interrupted(ctx: Context, folder: str) -> Result:
    """Wait for the end of this process at the first attempt, and return at once at the second."""
    marker = Path(folder) / ctx.idempotency_key.replace("/", "-")
    if not marker.exists():
        unfinished = marker.with_suffix(".new")
        unfinished.write_text(f"{os.getpid()} {os.getppid()}")
        unfinished.rename(marker)
        time.sleep(600)
    return Result(data={"attempt": ctx.attempt})
