"""The worker's own host: programs in a process group of their own, files inside the folders that it may touch."""

from __future__ import annotations

import contextlib
import fnmatch
import grp
import os
import pwd
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from longshore.orchestration.errors import NotAllowed, OperationError, Preflight, Transient
from longshore.orchestration.settings import get_settings
from longshore.tasks import policy
from longshore.tasks.machine import Program, State, process, sha, temporary_name
from longshore.tasks.machine.live import Live
from longshore.tasks.machine.process import Completed
from longshore.tasks.operation import Context

#: What a program may see of the worker's environment.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "TZ", "TMPDIR")
#: A disk error and a full disk may pass.
_PASSING = {5, 28}


def allowed_roots() -> list[str]:
    return [os.path.realpath(root) for root in get_settings().allowed_roots.split(":") if root]


def _within(real: str) -> bool:
    # What the worker signs with, and what other processes were started with, is in no root.
    closed = ["/proc", *([os.path.realpath(os.path.dirname(keys))] if (keys := get_settings().keys) else [])]
    if any(policy.within(real, root) for root in closed):
        return False
    return any(policy.within(real, root) for root in allowed_roots())


def require_program(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Preflight unless the worker may run it, as what it is on the worker's own PATH."""
    allowed = policy.patterns(get_settings().allowed_commands)
    program = argv[0]
    # A pattern without a slash is a program of that name on PATH, and not one of that name anywhere.
    if allowed and not any(fnmatch.fnmatchcase(program, pattern) for pattern in allowed):
        raise NotAllowed(
            f"this worker may not run {program!r}", remedy="it is not in the worker's LONGSHORE_ALLOWED_COMMANDS"
        )
    bent = [name for name in env if name.startswith("LD_") or (name == "PATH" and env[name] != os.environ.get("PATH"))]
    if allowed and bent:
        raise NotAllowed(f"this worker runs only some programs, and {bent[0]} may make another of one")


class HostMachine:
    """See the port."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    # --- programs ---------------------------------------------------------------------------------

    def require(self, program: Program) -> None:
        require_program(program.argv, program.env)
        if program.cwd is not None and not _within(os.path.realpath(program.cwd)):
            raise _outside(program.cwd)

    def run(self, program: Program) -> Completed:
        live = Live(self._ctx)

        def check() -> None:
            live.check()
            self._ctx.check()

        try:
            return process.run(
                program.argv,
                cwd=program.cwd if program.cwd is not None else _home(),
                env=program.env,
                stdin=program.stdin,
                timeout=program.timeout,
                grace=program.grace,
                check=check,
                began=self._ctx.began,
                said=live,
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
            with _folder(path) as folder:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(os.path.basename(path), flags, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from error
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            raise Preflight(f"{path} is there and is not a regular file")
        with os.fdopen(fd, "rb") as file:
            data = file.read()
        return State(sha(data), len(data), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid), data

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def write(self, path: str, data: bytes, state: State) -> None:
        """Also whole or not at all if the power fails in the middle."""
        name = os.path.basename(path)
        temporary = temporary_name(self._ctx, name)
        try:
            with _folder(path) as folder:
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
            raise Preflight(f"{path}: permission denied", remedy="run the worker as a user that may") from error
        except OSError as error:
            kind = Transient if error.errno in _PASSING else OperationError
            raise kind(f"{path}: {error.strerror}") from error

    def remove(self, path: str) -> None:
        try:
            with _folder(path) as folder:
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
        parent = Path(path).parent
        if not _within(os.path.realpath(parent)):
            raise _outside(path)
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Preflight(f"{parent}: {error.strerror}") from error

    def remove_folders(self, made: Sequence[str]) -> None:
        for folder in reversed(made):
            try:
                os.rmdir(folder)
            except OSError:
                break

    def owner(self, user: str | int | None, group: str | int | None) -> tuple[int | None, int | None]:
        return _number(user, "user"), _number(group, "group")

    def me(self) -> tuple[int, int]:
        return os.geteuid(), os.getegid()


def _home() -> str | None:
    """Where a program is run that names no folder: where the worker is, if it may be there."""
    here = os.getcwd()
    return None if _within(os.path.realpath(here)) else allowed_roots()[0]


def _number(name: str | int | None, kind: str) -> int | None:
    if name is None:
        return None
    text = str(name)
    if text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid if kind == "user" else grp.getgrnam(text).gr_gid
    except KeyError:
        raise Preflight(f"no such {kind} on this host: {text}") from None


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    """The folder that it is in, open. Links above it are followed once, and may not lead out of the allowed roots;
    then each folder is opened as what it is, so that none can be put in its place meanwhile.
    """
    real = os.path.realpath(os.path.dirname(path))
    if not _within(real):
        raise _outside(path)
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in Path(real).parts[1:]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def require_within(path: str) -> None:
    """Preflight unless it lies in a folder that the worker may touch."""
    if not _within(os.path.realpath(path)):
        raise _outside(path)


def _outside(path: str) -> NotAllowed:
    roots = ", ".join(allowed_roots()) or "none"
    return NotAllowed(
        f"{path} lies outside of the folders that this worker may touch ({roots})",
        remedy="choose another path, or set the worker's LONGSHORE_ALLOWED_ROOTS",
    )


def _refused(path: str, error: OSError) -> Preflight:
    if isinstance(error, PermissionError):
        return Preflight(f"{path}: permission denied", remedy="run the worker as a user that may")
    if isinstance(error, NotADirectoryError):
        return Preflight(f"{path}: a part of the path is a file")
    return Preflight(f"{path} is a link or cannot be read: {error.strerror}")
