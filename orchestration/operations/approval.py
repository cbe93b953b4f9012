"""A step that waits for an approval."""

from __future__ import annotations

from typing import Literal

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, Waits, register


class ApprovalParams(Params):
    """`timeout` starts when the step is dispatched; after it, `on_timeout` fails or approves the step."""

    message: str = ""
    timeout: Duration = 86_400.0
    on_timeout: Literal["fail", "approve"] = "fail"


class ApprovalResult(Result):
    """`by` is empty after a timeout; `at` is in ms of the Redis clock."""

    approved: bool
    by: str = ""
    note: str = ""
    at: int = 0


APPROVAL = register(
    Operation(
        name="approval.wait.execute",
        params=ApprovalParams,
        result=ApprovalResult,
        queue="control",
        kind=Kind.READ_ONLY,
        undo=Undo.NONE,
        summary="Wait for an approval or rejection, without occupying a worker",
        retry=NO_RETRY,
        waits=Waits.PERSON,
    )
)
