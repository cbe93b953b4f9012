"""Crash points for fault tests: labelled places at which a process kills or stops itself.

`LONGSHORE_CRASH_AT=<point>` sends SIGKILL to the process at its first pass of the point;
`LONGSHORE_CRASH_AT=<point>:<file>` only if that file does not exist, and creates the file, so that a restarted
worker passes. `LONGSHORE_STOP_AT` sends SIGSTOP. Without the variables a point costs two dictionary lookups.
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

#: Points of a run that is held or resumed.
HELD_POINTS = ("step.blocked", "run.lifted", "run.reopened")


#: Points of a job, in the order of its life.
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

#: Points of a cache's build and of a stack's rollout.
STACK_POINTS = ("cache.swapped", "stacks.restarting", "stacks.restarted")


def point(name: str) -> None:
    """Kill or stop this process, if the environment names the point."""
    _signal_at(name, "LONGSHORE_CRASH_AT", signal.SIGKILL)
    _signal_at(name, "LONGSHORE_STOP_AT", signal.SIGSTOP)


def _signal_at(name: str, variable: str, number: signal.Signals) -> None:
    setting = os.environ.get(variable)
    if not setting:
        return
    selected, _, marker = setting.partition(":")
    if selected != name:
        return
    if marker:
        try:
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), number)
