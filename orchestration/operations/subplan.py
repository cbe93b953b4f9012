"""A plan as a step of another plan: a child run with an id of its own."""

from __future__ import annotations

from typing import Any

from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, Waits, register


class RunParams(Params):
    """`plan` is an inline plan, the name of a stored plan, or a path relative to this plan's file.

    The client reads the plan when the run is started, and stores it with the run. The child's id is `<run>.<step>`,
    with `@<number>` for an item.
    """

    plan: str | dict[str, Any]
    params: dict[str, Any] = {}


class RunResult(Result):
    """The outcome of the child run; `steps` maps step names to their data."""

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
        # Templates inside the plan belong to the child run.
        literal=lambda _params: frozenset({"plan"}),
        waits=Waits.RUN,
    )
)
