"""Another plan as a step: a child run with an id of its own."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, Waits, register


class RunParams(Params):
    """`plan` is a plan written out, a stored one's name, or a file's path from the folder of this plan's file.

    It is read when the run is started, and kept with it. The child's id is `<run>.<step>`, and `@<number>` for an item.
    """

    plan: str | dict[str, Any]
    params: dict[str, Any] = {}


class RunResult(Result):
    """What the child's report says; `steps` has each step's data by its name."""

    run_id: str
    state: str
    summary: str = ""
    steps: dict[str, Any] = {}


RUN = register(
    Operation(
        name="plan.run.execute",
        params=RunParams,
        result=RunResult,
        queue="control",
        kind=Kind.ACTS,
        undo=Undo.FULL,
        summary="Run another plan as a child of this run",
        retry=NO_RETRY,
        # The plan's own templates are the child's.
        literal=lambda _params: frozenset({"plan"}),
        waits=Waits.RUN,
    )
)
