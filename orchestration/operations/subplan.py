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
    """The client reads `plan` at the start of this run; later changes of the file have no effect.

    The id of the child run is `<run>.<step>`. An item of `foreach` adds `@<number>`.
    """

    plan: str | dict[str, Any] = Field(
        description="A map with the plan itself; a path relative to the file of this plan; or the name of a plan in "
        "a folder of LONGSHORE_PLANS or in a package"
    )
    params: dict[str, Any] = Field({}, description="Parameters of the child run")


class RunResult(Result):
    """The outcome of the child run. `steps` has the data of its steps, by their names."""

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
        undo="undoes the child run; fails if an effect of the child run remains",
        duplicate="finds the child run by its id",
        fails="if the child run does not succeed. After the time limit of the step, the child run is cancelled",
        dry_run="names the plan",
    ),
)
