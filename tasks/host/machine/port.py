"""Where a step is at work: its worker's host, or inside a container. Programs and files, the same for both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from longshore.tasks.host.machine.process import OUTPUT_LIMIT, Completed
from longshore.tasks.implementation import Context


@dataclass(frozen=True)
class State:
    """A regular file as it is."""

    sha256: str
    size: int
    mode: int
    uid: int
    gid: int

    def as_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "size": self.size, "mode": self.mode, "uid": self.uid, "gid": self.gid}


@dataclass(frozen=True)
class Program:
    """What is to be run, and how it is bounded; `timeout` and `grace` in seconds."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None = None
    stdin: bytes | None = None
    timeout: float | None = None
    grace: float = 10.0
    limit: int = OUTPUT_LIMIT
    user: str | None = None
    #: The file that is started; what `argv` names, if left out.
    executable: str | None = None


class Machine(Protocol):
    """What operations ask of the place where they are at work. Errors are OperationErrors; Preflight before the
    first effect.
    """

    def require(self, program: Program) -> Program:
        """The program as it may be run: the very file, in the very folder. Preflight where it may not."""

    def run(self, program: Program) -> Completed:
        """To its end; TERM, grace and KILL when the step is cancelled or out of its time."""

    def environment(self) -> dict[str, str]:
        """What a program may see of the place's own."""

    def text(self, path: str) -> str | None:
        """A small file of the system's, such as /etc/os-release; None if it is not there."""

    def read(self, path: str) -> tuple[State, bytes] | None:
        """The regular file, or None. Anything else there is refused."""

    def exists(self, path: str) -> bool:
        """Relative to where programs are run. NotAllowed for a path that may not be touched."""

    def write(self, path: str, data: bytes, state: State) -> None:
        """Put the file in place: whole or not at all."""

    def remove(self, path: str) -> None: ...

    def require_removal(self) -> None:
        """Preflight where a file that is made could not be removed again."""

    def missing_folders(self, path: str) -> list[str]:
        """The folders above it that are not there, outermost first."""

    def make_folders(self, path: str) -> None:
        """Those above it."""

    def remove_folders(self, made: Sequence[str]) -> None:
        """Innermost first, as long as nothing else is in them."""

    def owner(self, user: str | int | None, group: str | int | None) -> tuple[int | None, int | None]:
        """Their numbers there; Preflight where there is no such user or group."""

    def me(self) -> tuple[int, int]:
        """Who owns what is made there by default."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def temporary_name(ctx: Context, name: str) -> str:
    """Beside a file: a dead attempt's rest is overwritten, not left."""
    return f".{name[:100]}.longshore-{sha(ctx.op_id.encode())[:12]}"
