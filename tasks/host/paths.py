"""The folders of its host that a worker may touch: `LONGSHORE_ALLOWED_ROOTS`, without all that is the worker's own.

A path is resolved before it is compared, so that no link and no `..` leads out. A file is then opened folder by folder
below the resolved path, without following a link, so that nothing can be put in its place between check and use.
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
    """Folders that are in no root, whatever the setting: the worker's keys and state, and what the kernel tells of
    processes, the worker's environment for instance.
    """
    settings = get_settings()
    own = ["/proc", os.path.realpath(settings.state_dir)]
    return [*own, os.path.realpath(os.path.dirname(settings.keys))] if settings.keys else own


def own_files() -> list[str]:
    """Single files of the worker's own: the Redis URL may stand in its configuration."""
    config = os.environ.get("LONGSHORE_CONFIG")
    return [os.path.realpath(path) for path in (config, get_settings().keys) if path]


def is_own(real: str) -> bool:
    """Reports whether a resolved path is one of the worker's own files, or lies in one of its own folders."""
    return real in own_files() or any(within(real, folder) for folder in own_folders())


def admitted(path: str) -> str | None:
    """The path with all links followed, where that lies in an allowed root; else None."""
    real = os.path.realpath(path)
    if is_own(real):
        return None
    return real if any(within(real, root) for root in allowed_roots()) else None


def require(path: str) -> str:
    """The path with all links followed; NotAllowed where that lies outside of the allowed roots."""
    real = admitted(path)
    if real is None:
        raise outside(path)
    return real


def require_tree(path: str) -> str:
    """The resolved path of a folder that is read as a whole; NotAllowed also where the worker's own files lie in it."""
    real = require(path)
    if any(within(own, real) for own in (*own_folders()[1:], *own_files())):
        raise NotAllowed(f"{path} holds keys or state of this worker", remedy="choose a folder beside these")
    return real


def outside(path: str) -> NotAllowed:
    roots = ", ".join(allowed_roots()) or "none"
    return NotAllowed(
        f"{path} lies outside of the folders that this worker may touch ({roots})",
        remedy="choose another path, or set the worker's LONGSHORE_ALLOWED_ROOTS",
    )


@contextlib.contextmanager
def opened(real: str, closed: Sequence[str] = ()) -> Iterator[int]:
    """A folder, open, by its resolved path: a link that was put into it meanwhile is an OSError.

    NotAllowed where one of the folders on the way is one of `closed` by another name, a bind mount for instance.
    """
    shut = {known for path in closed if (known := _identity(path)) is not None}
    fd = os.open("/", _FOLDER)
    try:
        for part in Path(real).parts[1:]:
            inner = os.open(part, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
            if shut and (found := os.fstat(fd)) and (found.st_dev, found.st_ino) in shut:
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
    """The folder that a path is in, open; NotAllowed where that lies outside."""
    real = require(os.path.dirname(path))
    if os.path.join(real, os.path.basename(path)) in own_files():
        raise outside(path)
    with opened(real, own_folders()) as fd:
        yield fd


def open_regular(name: str, folder: int) -> int | None:
    """A regular file of an open folder, for reading; None for anything else. Raises OSError, for a link as well, and
    NotAllowed for one of the worker's own files by another name.
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
    """At most `limit` + 1 bytes of a regular file in the allowed folders, links inside of them followed.

    Raises NotAllowed, OSError, and Preflight for what is no regular file.
    """
    real = require(path)
    with opened(os.path.dirname(real), own_folders()) as folder:
        fd = open_regular(os.path.basename(real), folder)
    if fd is None:
        raise Preflight(f"{path} is not a regular file")
    with os.fdopen(fd, "rb") as file:
        return file.read(limit + 1)
