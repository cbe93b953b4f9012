"""Files on the worker's host."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from longshore.orchestration.operations.base import NO_RETRY, Kind, Operation, Params, Result, Undo, register


class DeployParams(Params):
    """One of `content` (text) and `source` (a file beside the plan, carried with it) is needed.

    Without `mode`, `owner` or `group` an existing file keeps its own; a new one gets 0644 and the
    worker's user. With `template`, the content is a Jinja2 template over `vars`.
    """

    path: Annotated[str, Field(min_length=1, pattern=r"^/[^\x00]*$")]
    content: str | None = None
    source: str | None = None
    template: bool = False
    vars: dict[str, Any] = {}
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$")] | None = None
    owner: str | int | None = None
    group: str | int | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DeployParams:
        if (self.content is None) == (self.source is None):
            raise ValueError("give one of content and source")
        return self


class DeployResult(Result):
    """What is on disk now."""

    path: str
    sha256: str
    size: int


DEPLOY = register(
    Operation(
        name="file.deploy.execute",
        params=DeployParams,
        result=DeployResult,
        queue="file",
        kind=Kind.CONVERGES,
        undo=Undo.FULL,
        # Over `vars` alone, and rendered when the file is written.
        literal=lambda params: frozenset({"content"}) if params.get("template") is True else frozenset(),
        summary="Put a file in place: content, mode and owner",
        retry=NO_RETRY,
    )
)
