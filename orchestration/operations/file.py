"""Files on the worker's host or inside a container, and the store that they may come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from longshore.orchestration.operations.base import (
    NO_RETRY,
    READ_ONLY,
    About,
    Kind,
    Operation,
    Params,
    Result,
    Undo,
    register,
)

#: The type of the validation error of a path with `..`.
UPWARDS = "path_upwards"


def _straight(value: str) -> str:
    if ".." in value.split("/"):
        raise PydanticCustomError(UPWARDS, "{path} has a .. in it: say where it leads", {"path": repr(value)})
    return value


_Path = Annotated[
    str, Field(min_length=1, pattern=r"^/[^\x00]*$|.*\{\{.*", description="Absolute"), AfterValidator(_straight)
]
#: A name in the object store.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._/@-]{0,254}$"


class DeployParams(Params):
    """One of `content`, `source` and `object` is needed.

    Without `mode`, `owner` or `group` an existing file keeps its own; a new one gets 0644 and the
    worker's user. With `template`, the content is a Jinja2 template over `vars`, `host` and `run`; a name that is
    not there is an error.
    """

    path: _Path
    content: str | None = Field(None, description="Text")
    source: str | None = Field(None, description="A file beside the plan, carried with it")
    object: str | None = Field(
        None,
        description="A name in the object store (file.upload), or a URL: https://…, file:///…, s3://…, gs://…, az://…",
    )
    template: bool | None = Field(None, description="Left out: as the object was uploaded, else false")
    vars: dict[str, Any] = Field({}, description="For the template")
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$|.*\{\{.*")] | None = Field(None, description="Octal: '0644'")
    owner: str | int | None = Field(None, description="A user's name or number, there")
    group: str | int | None = Field(None, description="A group's name or number, there")

    @model_validator(mode="after")
    def _one_source(self) -> DeployParams:
        if sum(one is not None for one in (self.content, self.source, self.object)) != 1:
            raise ValueError("give one of content, source and object")
        return self


class DeployResult(Result):
    """What is on disk now; `mode` in octal."""

    path: str
    sha256: str
    size: int
    mode: str = ""
    uid: int = 0
    gid: int = 0


class UndeployParams(Params):
    """Remove a file. The record of its deployment stays, so that its status is `missing`."""

    path: _Path


class UndeployResult(Result):
    """`sha256` of what was there."""

    path: str
    sha256: str | None = None


class StatusParams(Params):
    """How a file compares with what was deployed last."""

    path: _Path


class StatusResult(Result):
    """`in-sync`, `drifted` (content, mode or owner), or `missing` (no file, or never deployed)."""

    path: str
    status: Literal["in-sync", "drifted", "missing"]
    sha256: str | None = None
    deployed_sha256: str | None = None
    #: What differs: content, mode, owner.
    differs: list[str] = []


class _Named(Params):
    name: Annotated[str, Field(pattern=NAME + r"|.*\{\{.*", description="In the object store")]
    content: str | None = Field(None, description="Text")
    source: str | None = Field(None, description="A file beside the plan, carried with it")

    @model_validator(mode="after")
    def _one_source(self) -> _Named:
        if (self.content is None) == (self.source is None):
            raise ValueError("give one of content and source")
        return self


class UploadParams(_Named):
    """Put bytes into the object store. Other bytes under a name that is taken are refused without `force`."""

    content_type: Literal["raw", "template"] = Field("raw", description="template: rendered where it is deployed")
    force: bool = Field(default=False, description="Replace what is there")


class UploadResult(Result):
    """What the store has under that name now."""

    name: str
    sha256: str
    size: int
    content_type: str = "raw"


class ChangedParams(_Named):
    """Whether an upload of this would change what the store has."""


class ChangedResult(Result):
    """`differs`: the store has nothing under that name, or other bytes."""

    name: str
    differs: bool
    sha256: str


def _file(name: str, params: type[Params], result: type[Result], summary: str, about: About, **more: Any) -> Operation:
    return register(
        Operation(
            name=name, params=params, result=result, queue="file", summary=summary, about=about, retry=NO_RETRY, **more
        )
    )


_FULL: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}
_NOTHING = "a full disk or a disk error; nothing else"
_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}


def _literal(params: dict[str, Any]) -> frozenset[str]:
    """Over `vars` alone, and rendered when the file is written."""
    return frozenset({"content"}) if params.get("template") is True else frozenset()


DEPLOY = _file(
    "file.deploy.execute",
    DeployParams,
    DeployResult,
    "Put a file in place: content, mode and owner",
    About(
        changed="bytes, mode, owner or group on the disk were others",
        undo="brings back bytes, mode and owner, or removes the file and the folders made for it; refuses where "
        "somebody else has changed it since",
        duplicate="finds it as wanted",
        retried=_NOTHING,
    ),
    literal=_literal,
    secrets=frozenset({"content", "vars"}),
    inside=True,
    **_FULL,
)
UNDEPLOY = _file(
    "file.undeploy.execute",
    UndeployParams,
    UndeployResult,
    "Remove a file",
    About(
        changed="it was there",
        undo="brings back bytes, mode and owner; refuses where there is another file now",
        duplicate="finds it gone",
        retried=_NOTHING,
    ),
    inside=True,
    **_FULL,
)
STATUS = _file(
    "file.status.get",
    StatusParams,
    StatusResult,
    "Compare a file with what was deployed last",
    READ_ONLY,
    inside=True,
    **_LOOKS,
)
UPLOAD = _file(
    "file.upload",
    UploadParams,
    UploadResult,
    "Put bytes into the object store",
    About(
        changed="the store had nothing under that name, or something else",
        undo="brings back what the store had; refuses where somebody else has replaced it since",
        duplicate="finds it as wanted",
        retried="Redis that does not answer",
    ),
    literal=lambda params: frozenset({"content"}) if params.get("content_type") == "template" else frozenset(),
    **_FULL,
)
CHANGED = _file(
    "file.changed.get",
    ChangedParams,
    ChangedResult,
    "Compare bytes with what the object store has",
    READ_ONLY,
    **_LOOKS,
)
