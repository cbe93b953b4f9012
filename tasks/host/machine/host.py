"""The worker's host as the machine of a step: programs in their own process groups, files in the allowed folders."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.tasks.host import paths, programs
from longshore.tasks.host.machine import process
from longshore.tasks.host.machine.live import Live
from longshore.tasks.host.machine.port import Program, State, sha, temporary_name
from longshore.tasks.host.machine.process import Completed
from longshore.tasks.implementation import Context

#: Variables that the worker passes on to programs.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ", "TMPDIR")
#: EIO and ENOSPC, which are transient.
_PASSING = {5, 28}


class HostMachine:
    """The Machine port for this host."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    # --- programs ---------------------------------------------------------------------------------

    def require(self, program: Program) -> Program:
        cwd = paths.require(program.cwd) if program.cwd is not None else _home()
        executable = programs.require(program.argv[0], program.env, self.environment(), cwd)
        name = executable if executable is not None and "/" in program.argv[0] else program.argv[0]
        return replace(program, argv=[name, *program.argv[1:]], cwd=cwd, executable=executable)

    def run(self, program: Program) -> Completed:
        live = Live(self._ctx)

        def check() -> None:
            live.check()
            self._ctx.check()

        try:
            return process.run(
                program.argv,
                executable=program.executable,
                cwd=program.cwd if program.cwd is not None else _home(),
                env=program.env,
                stdin=program.stdin,
                timeout=program.timeout,
                grace=program.grace,
                check=check,
                began=self._ctx.began,
                on_output=live,
                limit=program.limit,
                redact=self._ctx.redact,
            )
        finally:
            live.flush()

    def environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in PASSED_ON if name in os.environ}

    def text(self, path: str) -> str | None:
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return None

    # --- files ------------------------------------------------------------------------------------

    def read(self, path: str) -> tuple[State, bytes] | None:
        try:
            with paths.folder_of(path) as folder:
                fd = paths.open_regular(os.path.basename(path), folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from error
        if fd is None:
            raise Preflight(f"{path} is not a regular file")
        with os.fdopen(fd, "rb") as file:
            info, data = os.fstat(fd), file.read()
        return State(sha(data), len(data), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid), data

    def exists(self, path: str) -> bool:
        """Reports whether a path exists. Raises NotAllowed for a path outside of the roots, also if it is missing."""
        return os.path.exists(paths.require(os.path.join(_home(), path)))

    def write(self, path: str, data: bytes, state: State) -> None:
        """Write the file atomically and durably, also across a power failure."""
        name = os.path.basename(path)
        temporary = temporary_name(self._ctx, name)
        try:
            with paths.folder_of(path) as folder:
                try:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=folder)
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                        file.write(data)
                        if (state.uid, state.gid) != (os.geteuid(), os.getegid()):
                            os.fchown(file.fileno(), state.uid, state.gid)
                        os.fchmod(file.fileno(), state.mode)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=folder)
        except PermissionError as error:
            raise Preflight(f"{path}: permission denied", remedy="run the worker as a user with access") from error
        except OSError as error:
            kind = Transient if error.errno in _PASSING else OperationError
            raise kind(f"{path}: {error.strerror}") from error

    def remove(self, path: str) -> None:
        try:
            with paths.folder_of(path) as folder:
                os.unlink(os.path.basename(path), dir_fd=folder)
                os.fsync(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(path, error) from error

    def require_removal(self) -> None:
        """A file can always be removed here."""

    def missing_folders(self, path: str) -> list[str]:
        missing: list[str] = []
        parent = Path(path).parent
        while not parent.exists():
            missing.insert(0, str(parent))
            parent = parent.parent
        return missing

    def make_folders(self, path: str) -> None:
        parent = Path(paths.require(os.path.dirname(path)))
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Preflight(f"{parent}: {error.strerror}") from error

    def remove_folders(self, made: Sequence[str]) -> None:
        for folder in reversed(made):
            try:
                os.rmdir(paths.require(folder))  # the paths come from a record, which is not trusted
            except OSError:
                break

    def owner(self, user: str | int | None, group: str | int | None) -> tuple[int | None, int | None]:
        return _number(user, "user"), _number(group, "group")

    def me(self) -> tuple[int, int]:
        return os.geteuid(), os.getegid()


def _home() -> str:
    """The default working directory of programs: the worker's own if allowed, else the first existing root."""
    roots = paths.allowed_roots()
    return paths.admitted(os.getcwd()) or next(filter(os.path.isdir, roots), next(iter(roots), "/"))


def _number(name: str | int | None, kind: str) -> int | None:
    if name is None:
        return None
    text = str(name)
    if text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid if kind == "user" else grp.getgrnam(text).gr_gid
    except KeyError:
        raise Preflight(f"{kind} {text} does not exist on this host") from None


def _refused(path: str, error: OSError) -> Preflight:
    if isinstance(error, PermissionError):
        return Preflight(f"{path}: permission denied", remedy="run the worker as a user with access")
    if isinstance(error, NotADirectoryError):
        return Preflight(f"{path}: a parent of the path is a file")
    return Preflight(f"{path} is a link or unreadable: {error.strerror}")
