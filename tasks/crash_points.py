"""Labelled points at which a process can be made to die, to try what follows from it.

`LONGSHORE_CRASH_AT=<point>` kills the process, as `kill -9` would, the first time that it gets there;
`LONGSHORE_CRASH_AT=<point>:<file>` only while that file does not exist, which it then makes, so that
a restarted worker gets past. `LONGSHORE_STOP_AT` stops the process there, as `kill -STOP` would. Without the
variables a point costs two looks at a dictionary.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

#: In the order of a step's life: claim → effect → record → advance → dispatch, forward and backward.
POINTS = (
    "step.claimed",
    "step.journalled",
    "step.acted",
    "step.recorded",
    "step.parked",
    "undo.claimed",
    "undo.acted",
    "undo.recorded",
    "advance.created",
    "advance.admitted",
    "advance.decided",
    "advance.applied",
    "advance.dispatched",
    "advance.ended",
)

#: Those that only a run comes by that is held, or resumed.
HELD_POINTS = ("step.blocked", "run.lifted", "run.reopened")


#: Those of a job, in the order of its life.
JOB_POINTS = (
    "job.snapped",
    "job.created",
    "job.half_stopped",
    "job.stopped",
    "job.started",
    "job.running",
    "job.waited",
    "job.half_started",
    "job.restarted",
    "job.recorded",
    "job.removed",
)

#: Those of a cache that is built, and of services that are brought right.
STACK_POINTS = ("cache.swapped", "deployed.half", "deployed.brought")


def point(name: str) -> None:
    """Die or stop here, if that is what the environment asks for."""
    _signal_at(name, "LONGSHORE_CRASH_AT", signal.SIGKILL)
    _signal_at(name, "LONGSHORE_STOP_AT", signal.SIGSTOP)


def _signal_at(name: str, variable: str, number: signal.Signals) -> None:
    asked = os.environ.get(variable)
    if not asked:
        return
    wanted, _, marker = asked.partition(":")
    if wanted != name:
        return
    if marker:
        try:
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), number)
