"""A pause for a person."""

from __future__ import annotations

from typing import Literal

from longshore.orchestration.language.durations import Duration
from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, Waits, register


class ApprovalParams(Params):
    """`timeout` is counted from the step's turn; then the step fails, or is approved by nobody."""

    message: str = ""
    timeout: Duration = 86_400.0
    on_timeout: Literal["fail", "approve"] = "fail"


class ApprovalResult(Result):
    """`by` is nobody where the time ran out; `at` is ms of Redis's clock."""

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
        summary="Wait until a person approves or rejects; no worker is held meanwhile",
        retry=NO_RETRY,
        waits=Waits.PERSON,
    )
)
