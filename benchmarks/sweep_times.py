"""Records how long each sweep of a worker takes; the worker imports this module by LONGSHORE_IMPORTS."""

from __future__ import annotations

import os
import time
from pathlib import Path

from longshore.tasks.control.sweep import Sweep

_sweep = Sweep.run


def _timed(self: Sweep) -> int:
    began = time.perf_counter()
    try:
        return _sweep(self)
    finally:
        with Path(os.environ["BENCH_SWEEPS"]).open("a") as file:
            file.write(f"{time.perf_counter() - began:.6f}\n")


Sweep.run = _timed  # type: ignore[method-assign]
