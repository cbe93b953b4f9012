"""The port for programs and files on the machine of a step: its worker's host, or a container."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from longshore.tasks.host.machine.process import OUTPUT_LIMIT, Completed
from longshore.tasks.implementation import Context


@dataclass(frozen=True)
class State:
    """The content hash, size, mode and owner of a regular file."""

    sha256: str
    size: int
    mode: int
    uid: int
    gid: int

    def as_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "size": self.size, "mode": self.mode, "uid": self.uid, "gid": self.gid}


@dataclass(frozen=True)
class Program:
    """A program to run and its limits; `timeout` and `grace` in seconds."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None = None
    stdin: bytes | None = None
    timeout: float | None = None
    grace: float = 10.0
    limit: int = OUTPUT_LIMIT
    user: str | None = None
    #: The file to start, if other than `argv[0]`.
    executable: str | None = None


class Machine(Protocol):
    """The calls that operations make to a machine. Errors are OperationErrors; Preflight before the first effect."""

    def require(self, program: Program) -> Program:
        """The program with its resolved file and folder. Raises NotAllowed or Preflight if it may not run."""

    def run(self, program: Program) -> Completed:
        """Run a program to its end; TERM, grace and KILL if the step is cancelled or times out."""

    def environment(self) -> dict[str, str]:
        """The variables that the machine passes on to programs."""

    def text(self, path: str) -> str | None:
        """The text of a small system file, such as /etc/os-release; None if it does not exist."""

    def read(self, path: str) -> tuple[State, bytes] | None:
        """State and content of a regular file; None if it does not exist. Raises Preflight for other file types."""

    def exists(self, path: str) -> bool:
        """Reports whether a path exists, relative to the default folder of programs. Raises NotAllowed."""

    def write(self, path: str, data: bytes, state: State) -> None:
        """Write the file atomically."""

    def remove(self, path: str) -> None: ...

    def require_removal(self) -> None:
        """Raise Preflight if an undo could not remove a new file."""

    def missing_folders(self, path: str) -> list[str]:
        """The missing parent folders of a path, outermost first."""

    def make_folders(self, path: str) -> None:
        """Create the missing parent folders of a path."""

    def remove_folders(self, made: Sequence[str]) -> None:
        """Remove the folders, innermost first, up to the first that is not empty."""

    def owner(self, user: str | int | None, group: str | int | None) -> tuple[int | None, int | None]:
        """The numeric user and group id on the machine. Raises Preflight if the user or group does not exist."""

    def me(self) -> tuple[int, int]:
        """The user and group id of new files."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def temporary_name(ctx: Context, name: str) -> str:
    """The name of a step's temporary file, the same for each attempt, so that a retry overwrites it."""
    return f".{name[:100]}.longshore-{sha(ctx.op_id.encode())[:12]}"
