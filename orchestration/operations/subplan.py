"""A plan as a step of another plan: a child run with an id of its own."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from longshore.orchestration.operations.base import (
    NO_RETRY,
    About,
    Kind,
    Params,
    Result,
    Undo,
    Waits,
    register,
)


class RunParams(Params):
    """The client reads `plan` at the start of the run, and stores the plan with the run.

    The id of the child run is `<run>.<step>`, with `@<number>` for an item.
    """

    plan: str | dict[str, Any] = Field(
        description="An inline plan, the name of a stored plan, or a path relative to the file of this plan"
    )
    params: dict[str, Any] = Field({}, description="Parameters of the plan")


class RunResult(Result):
    """The outcome of the child run. `steps` has the data of each step, by the name of the step."""

    run_id: str
    state: str
    summary: str = ""
    steps: dict[str, Any] = {}


RUN = register(
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
    about=About(
        changed="a step of the child run changed something",
        undo="undoes the child run",
        duplicate="finds the child run by its id",
        dry_run="names the plan",
    ),
)
