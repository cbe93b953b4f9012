"""Situations in which several scenarios begin."""

from __future__ import annotations

from longshore.orchestration.saga import ResumeSet
from longshore.orchestration.states import Cause, RunState
from longshore.orchestration.transitions import RunRecord
from tests.store.stored_run import StoredRun


def suspended(stored: StoredRun) -> None:
    """A suspended run, in which step 0 has been claimed and step 1 has not."""
    stored.begin(0, 1)
    stored.claim(0)
    assert stored.store.suspend(stored.run_id, "breaker", "it is down", 0, service="billing")


def failed(stored: StoredRun) -> None:
    """A run that failed at step 0, and kept the rest undone."""
    stored.begin(0)
    stored.complete(0, stored.claim(0).fence, "failed")
    assert stored.store.finish(stored.run_id, RunState.RUNNING, RunState.FAILED, [1, 2])


def reopened(stored: StoredRun) -> RunRecord:
    """A run that was reopened: its state, level and steps left are those of the older record, which is returned."""
    stored.lay("undoing", left=0, undo_level=2)
    seen = stored.record()
    stored.store.finish(stored.run_id, RunState.UNDOING, RunState.UNDO_FAILED, [])
    stored.store.carry_out(stored.run_id, "1-1", {"kind": "undo"}, 2, [])
    return seen


def expired(stored: StoredRun) -> str:
    """The fence of an attempt at step 0 whose lease has expired."""
    stored.begin(0)
    fence = stored.claim(0, owner="first").fence
    stored.end_lease("0")
    stored.expire(0)
    return fence


def superseded(stored: StoredRun) -> str:
    """The fence of an expired attempt at step 0, which a second attempt has claimed."""
    fence = expired(stored)
    stored.claim(0, owner="second")
    return fence


def lost_while_aborting(stored: StoredRun) -> None:
    """An aborting run, in which the lease of step 0 has ended."""
    stored.begin(0)
    stored.claim(0)
    abort(stored)
    stored.end_lease("0")


def ask_a_person(stored: StoredRun) -> str:
    """A run that asks a person for the unknown outcome of step 0."""
    stored.begin(0)
    stored.claim(0)
    stored.end_lease("0")
    return stored.expire(0, repeatable=False, ask_for=60.0)


def interrupted(stored: StoredRun) -> RunRecord:
    """An always step of two units, one of them done, that an abort stopped and that continues at the run's end."""
    stored.fan_out(2, at_once=1)
    stored.complete("0.0", stored.claim("0.0").fence)
    abort(stored)
    stored.store.drain(stored.run_id, [("0.1", True)])
    return stored.record()


def abort(stored: StoredRun) -> None:
    stored.store.abort(stored.run_id, Cause.CANCEL, "")


def resume(stored: StoredRun) -> str:
    return stored.store.reopen(stored.run_id, "1-1", {"actor": "ann"}, 0, ResumeSet(-1, (0, 1, 2)), keep=False)


def resolve(stored: StoredRun, resolution: str, command_id: str = "1-1") -> str:
    return stored.store.resolve(stored.run_id, command_id, {"actor": "ann", "as": resolution}, 0)
