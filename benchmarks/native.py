"""The same work as plain Celery canvas: what Longshore is compared with, in the same run.

Stock settings, stock Redis result backend. Levels are barriers, as Longshore's are: a chord with a
barrier task for each, which is the form of canvas that runs every task once.
"""

from __future__ import annotations

import os

from celery import Celery, chain, group

app = Celery("native", broker=os.environ["BENCH_URL"], backend=os.environ["BENCH_URL"])
app.conf.worker_hijack_root_logger = False


@app.task(name="native.noop")
def noop() -> None:
    """A step."""


@app.task(name="native.fire", ignore_result=True)
def fire() -> None:
    """A bare task that nobody waits for."""


@app.task(name="native.barrier")
def barrier(_results: object = None) -> None:
    """The end of a level."""


def grid(levels: int, width: int) -> object:
    """A DAG of levels that wait for each other, as canvas."""
    parts: list[object] = []
    for _ in range(levels):
        parts += [group(noop.si() for _ in range(width)), barrier.si()]
    return chain(*parts)
