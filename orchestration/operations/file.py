"""Files on the worker's host or inside a container, and the object store."""

from __future__ import annotations

from dataclasses import replace
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
    expected,
    register,
)

#: The type of the validation error of a path with `..`.
UPWARDS = "path_upwards"


def _straight(value: str) -> str:
    if ".." in value.split("/"):
        raise PydanticCustomError(UPWARDS, "{path} has a .. in it: write the resolved path", {"path": repr(value)})
    return value


_Path = Annotated[
    str,
    Field(min_length=1, pattern=r"^/[^\x00]*$|.*\{\{.*", description="Absolute path"),
    AfterValidator(_straight),
    expected("an absolute path"),
]
#: A name in the object store.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._/@-]{0,254}$"


class DeployParams(Params):
    """One of `content`, `source` and `object` is required. The step creates missing folders.

    Without `mode`, `owner` or `group`, an existing file keeps its value; a new file gets 0644 and the worker's user.
    With `template`, the content is a Jinja2 template with the variables of `vars`, and `host` and `run`.
    """

    path: _Path
    content: str | None = Field(None, description="Content as text")
    source: str | None = Field(
        None, description="Path of a file, relative to the folder of the plan; the client sends the file with the run"
    )
    object: str | None = Field(
        None,
        description="A name in the object store (file.upload), or a URL: https://…, file:///…, s3://…, gs://…, az://…",
    )
    template: bool | None = Field(
        None, description="Render the content as a template; by default only an object with `content_type: template`"
    )
    vars: dict[str, Any] = Field({}, description="Variables of the template")
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$|.*\{\{.*"), expected("an octal mode such as '0644'")] | None = (
        Field(None, description="Octal, such as '0644'")
    )
    owner: str | int | None = Field(None, description="User name or number on the target")
    group: str | int | None = Field(None, description="Group name or number on the target")

    @model_validator(mode="after")
    def _one_source(self) -> DeployParams:
        if sum(one is not None for one in (self.content, self.source, self.object)) != 1:
            raise ValueError("give one of content, source and object")
        return self


class DeployResult(Result):
    """The file after the step; `mode` is octal."""

    path: str
    sha256: str
    size: int
    mode: str = ""
    uid: int = 0
    gid: int = 0


class UndeployParams(Params):
    """Afterwards, `file.status.get` returns `status: missing`."""

    path: _Path


class UndeployResult(Result):
    """`sha256` is the digest of the removed file, or null if no file existed."""

    path: str
    sha256: str | None = None


class StatusParams(Params):
    """The last deployment is the latest `file.deploy.execute` of this path, on this host or in this container."""

    path: _Path


class StatusResult(Result):
    """`status` is `in-sync`, `drifted` (content, mode or owner differ) or `missing` (no file, or never deployed).

    `differs` lists `content`, `mode` and `owner`, if they differ.
    """

    path: str
    status: Literal["in-sync", "drifted", "missing"]
    sha256: str | None = None
    deployed_sha256: str | None = None
    #: The attributes that differ: content, mode, owner.
    differs: list[str] = []


class _Named(Params):
    name: Annotated[
        str,
        Field(pattern=NAME + r"|.*\{\{.*", description="Name in the object store"),
        expected("a name in the object store: letters, digits and ._/@-"),
    ]
    content: str | None = Field(None, description="Content as text")
    source: str | None = Field(
        None, description="Path of a file, relative to the folder of the plan; the client sends the file with the run"
    )

    @model_validator(mode="after")
    def _one_source(self) -> _Named:
        if (self.content is None) == (self.source is None):
            raise ValueError("give one of content and source")
        return self


class UploadParams(_Named):
    """The object store is in Redis. Either `content` or `source` is required."""

    content_type: Literal["raw", "template"] = Field(
        "raw", description="template: `file.deploy.execute` renders the bytes as a template"
    )
    force: bool = Field(default=False, description="Replace an existing entry")


class UploadResult(Result):
    """The entry in the object store after the step."""

    name: str
    sha256: str
    size: int
    content_type: str = "raw"


class ChangedParams(_Named):
    """Either `content` or `source` is required."""


class ChangedResult(Result):
    """`differs` is true if the entry does not exist or has other bytes. `sha256` is the digest of the given bytes."""

    name: str
    differs: bool
    sha256: str


def _file(name: str, params: type[Params], result: type[Result], summary: str, about: About, **more: Any) -> Operation:
    return register(
        name=name, params=params, result=result, queue="file", summary=summary, about=about, retry=NO_RETRY, **more
    )


_FULL: dict[str, Any] = {"kind": Kind.CONVERGES, "undo": Undo.FULL}
_IRREGULAR = "if `path` is a link, a folder or a special file"
_LOOKS: dict[str, Any] = {"kind": Kind.READ_ONLY, "undo": Undo.NONE}


def _literal(params: dict[str, Any]) -> frozenset[str]:
    """`content` is rendered when the file is written, with `vars`."""
    return frozenset({"content"}) if params.get("template") is True else frozenset()


DEPLOY = _file(
    "file.deploy.execute",
    DeployParams,
    DeployResult,
    "Deploy a file: content, mode and owner",
    About(
        changed="content, mode, owner or group on disk differed",
        undo="restores content, mode and owner, or removes a new file and the folders created for it; fails if the "
        "file was changed since",
        duplicate="finds the file written, or writes it",
        fails=f"{_IRREGULAR}; if the source, the user or the group does not exist; if `content` or `source` exceeds "
        "1 MiB; if the template uses an undefined name",
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
        changed="the file existed",
        undo="restores content, mode and owner; fails if another file exists at the path",
        duplicate="finds the file removed, or removes it",
        fails=_IRREGULAR,
    ),
    inside=True,
    **_FULL,
)
STATUS = _file(
    "file.status.get",
    StatusParams,
    StatusResult,
    "Compare a file with its last deployment",
    replace(READ_ONLY, fails=_IRREGULAR),
    inside=True,
    **_LOOKS,
)
UPLOAD = _file(
    "file.upload",
    UploadParams,
    UploadResult,
    "Store bytes in the object store",
    About(
        changed="the store had no entry of that name, or its bytes or `content_type` differed",
        undo="restores the former entry, or removes a new one; fails if the entry was replaced since",
        duplicate="finds the entry stored, or stores it",
        fails="if an entry of that name has other bytes and `force` is not set, or if the bytes exceed "
        "`LONGSHORE_MAX_OBJECT`",
    ),
    literal=lambda params: frozenset({"content"}) if params.get("content_type") == "template" else frozenset(),
    **_FULL,
)
CHANGED = _file(
    "file.changed.get",
    ChangedParams,
    ChangedResult,
    "Compare bytes with an entry of the object store",
    READ_ONLY,
    **_LOOKS,
)
