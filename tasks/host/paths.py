"""The check of file paths against `LONGSHORE_ALLOWED_ROOTS`, minus the worker's own files and folders.

A path is resolved before the comparison, so that no link and no `..` leads out of a root. A file is then opened folder
by folder along the resolved path, without following links, so that no replacement between check and use succeeds.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.allow_lists import within

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def allowed_roots() -> list[str]:
    return [os.path.realpath(root) for root in get_settings().allowed_roots.split(":") if root]


def own_folders() -> list[str]:
    """Folders that no root admits: the worker's keys and state, and /proc, which shows the worker's environment."""
    settings = get_settings()
    own = ["/proc", os.path.realpath(settings.state_dir)]
    return [*own, os.path.realpath(os.path.dirname(settings.keys))] if settings.keys else own


def own_files() -> list[str]:
    """The worker's own files: its configuration, which may hold the Redis URL, and its keys."""
    config = os.environ.get("LONGSHORE_CONFIG")
    return [os.path.realpath(path) for path in (config, get_settings().keys) if path]


def is_own(real: str) -> bool:
    """Reports whether a resolved path is one of the worker's own files, or lies in one of its own folders."""
    return real in own_files() or any(within(real, folder) for folder in own_folders())


def admitted(path: str) -> str | None:
    """The resolved path if an allowed root contains it; otherwise None."""
    real = os.path.realpath(path)
    if is_own(real):
        return None
    return real if any(within(real, root) for root in allowed_roots()) else None


def require(path: str) -> str:
    """The resolved path. Raises NotAllowed if no allowed root contains it."""
    real = admitted(path)
    if real is None:
        raise outside(path)
    return real


def require_tree(path: str) -> str:
    """The resolved path of a folder to read recursively. Raises NotAllowed also if it contains the worker's files."""
    real = require(path)
    if any(within(own, real) for own in (*own_folders()[1:], *own_files())):
        raise NotAllowed(f"{path} contains keys or state of this worker", remedy="choose a folder without these files")
    return real


def outside(path: str) -> NotAllowed:
    roots = ", ".join(allowed_roots()) or "none"
    return NotAllowed(
        f"{path} is outside of the allowed folders of this worker ({roots})",
        remedy="choose a path in these folders, or add its folder to LONGSHORE_ALLOWED_ROOTS of the worker",
    )


@contextlib.contextmanager
def opened(real: str, closed: Sequence[str] = ()) -> Iterator[int]:
    """Open a folder by its resolved path. Raises OSError if a part of the path has become a link.

    Raises NotAllowed if a folder of the path is one of `closed` under another name, such as a bind mount.
    """
    forbidden = {known for path in closed if (known := _identity(path)) is not None}
    fd = os.open("/", _FOLDER)
    try:
        for part in Path(real).parts[1:]:
            inner = os.open(part, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
            if forbidden and (found := os.fstat(fd)) and (found.st_dev, found.st_ino) in forbidden:
                raise outside(real)
        yield fd
    finally:
        os.close(fd)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def folder_of(path: str) -> Iterator[int]:
    """Open the parent folder of a path. Raises NotAllowed if the folder is outside of the allowed roots."""
    real = require(os.path.dirname(path))
    if os.path.join(real, os.path.basename(path)) in own_files():
        raise outside(path)
    with opened(real, own_folders()) as fd:
        yield fd


def open_regular(name: str, folder: int) -> int | None:
    """Open a regular file of an open folder for reading; None for other file types.

    Raises OSError, also for a link, and NotAllowed for one of the worker's own files under another name.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    found = os.fstat(fd)
    own = (found.st_dev, found.st_ino) in {_identity(path) for path in own_files()}
    if stat.S_ISREG(found.st_mode) and not own:
        return fd
    os.close(fd)
    if own:
        raise outside(name)
    return None


def read(path: str, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a regular file in the allowed folders; links within these folders are followed.

    Raises NotAllowed, OSError, and Preflight if the path is not a regular file.
    """
    real = require(path)
    with opened(os.path.dirname(real), own_folders()) as folder:
        fd = open_regular(os.path.basename(real), folder)
    if fd is None:
        raise Preflight(f"{path} is not a regular file")
    with os.fdopen(fd, "rb") as file:
        return file.read(limit + 1)
