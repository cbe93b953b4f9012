"""A step that waits for an approval."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import (
    NO_RETRY,
    READ_ONLY,
    Kind,
    Params,
    Result,
    Undo,
    Waits,
    register,
)


class ApprovalParams(Params):
    """`longshore runs approve RUN STEP` approves the step, and with `--reject` rejects the step."""

    message: str = Field("", description="Text for the person who decides")
    timeout: Duration = Field(86_400.0, description="Time for the decision, from the dispatch of the step")
    on_timeout: Literal["fail", "approve"] = Field(
        "fail", description="Whether the step fails or is approved after `timeout`"
    )


class ApprovalResult(Result):
    """`by` names the person who decided, and is empty after a timeout. `note` is the comment of this person. `at` is in
    ms since 1970, by Redis's clock.
    """

    approved: bool
    by: str = ""
    note: str = ""
    at: int = 0


APPROVAL = register(
    name="approval.wait.execute",
    params=ApprovalParams,
    result=ApprovalResult,
    queue="control",
    kind=Kind.READ_ONLY,
    undo=Undo.NONE,
    summary="Wait for the approval of a person, without occupying a worker",
    retry=NO_RETRY,
    waits=Waits.PERSON,
    about=replace(
        READ_ONLY,
        duplicate="waits again",
        fails="after a rejection, and after `timeout` with `on_timeout: fail`",
        dry_run="shows the longest wait",
    ),
)
