"""Backups of the bytes that a step replaces: on the step's host, readable by the worker only, until undo or gc."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from longshore.orchestration.errors import OperationError
from longshore.orchestration.language import identifiers
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.machine.port import sha
from longshore.tasks.implementation import Context

_RESTORE = "restore the previous content by hand"
#: The folders, in the state folder, with a folder of files for each run.
_KINDS = ("backups", "names")


class Backups:
    """The backup of one step, or of one part of a step."""

    def __init__(self, ctx: Context) -> None:
        self._path = file_of(ctx, "backups", ".bytes")
        self._dry_run = ctx.dry_run

    def keep(self, data: bytes) -> None:
        if not self._dry_run:
            write_private(self._path, data)

    def bytes_of(self, digest: str, what: str) -> bytes:
        """The backup with this digest. Raises OperationError if the backup is missing or damaged."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError as error:
            raise OperationError(f"the backup of {what} is missing on this host", remedy=_RESTORE) from error
        if sha(data) != digest:
            raise OperationError(f"the backup of {what} is damaged", remedy=_RESTORE)
        return data

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()


def file_of(ctx: Context, kind: str, suffix: str) -> Path:
    """The path of a step's (or part's) file of one kind in the state folder."""
    folder = get_settings().state_dir / kind / identifiers.run_id(ctx.run_id)
    return folder / f"{identifiers.part(ctx.part)}{suffix}"


def folders_of(state_dir: Path, run_id: str) -> list[Path]:
    """The existing folders with the backups of a run. The receipts of the run show that this installation owns them."""
    return [folder for kind in _KINDS if (folder := state_dir / kind / run_id).is_dir()]


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
