"""A container as the machine of a step: programs by the engine's exec, files by its archives, no shell if avoidable."""

from __future__ import annotations

import contextlib
import io
import posixpath
import tarfile
import time
from collections.abc import Sequence

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, StepTimeout
from longshore.tasks.host import policy
from longshore.tasks.host.engine.factory import engine, own_project
from longshore.tasks.host.engine.port import Check, Conflict, NotThere
from longshore.tasks.host.machine.live import Live
from longshore.tasks.host.machine.port import Program, State, sha, temporary_name
from longshore.tasks.host.machine.process import Completed, Tail
from longshore.tasks.implementation import Context

#: Prints its process id and then becomes the program, so that the worker can kill it: the engine has no call for that.
_PRINTS_PID = ["/bin/sh", "-c", 'echo "$$"; exec "$@"', "longshore"]
#: Seconds between two polls for the program's end.
_POLL = 0.1
#: Seconds that a program may take to print its process id on an engine under load.
_START_TIMEOUT = 30.0
_FILE_LIMIT = 64 * 1024 * 1024
_SMALL = 1024 * 1024


class ContainerMachine:
    """The Machine port for one container."""

    def __init__(self, ctx: Context, container: str = "") -> None:
        self._ctx = ctx
        self._name = container or ctx.container
        self._docker = engine()
        made = self._docker.raw(self._name)
        if made is not None:  # the later calls report a missing container
            policy.check_inside(self._name, made, own_project())

    # --- programs ---------------------------------------------------------------------------------

    def require(self, program: Program) -> Program:
        """The program unchanged: the container decides what may run inside."""
        return program

    def run(self, program: Program) -> Completed:
        started = time.monotonic()
        has_shell = self._has("/bin/sh")
        body = {
            "Cmd": [*(_PRINTS_PID if has_shell else []), *program.argv],
            "Env": [f"{name}={value}" for name, value in program.env.items()],
            "AttachStdin": program.stdin is not None,
        }
        body |= {"WorkingDir": program.cwd} if program.cwd else {}
        body |= {"User": program.user} if program.user else {}
        try:
            execution = self._docker.create_exec(self._name, body)
        except NotThere:
            raise Preflight(
                f"container {self._name!r} does not exist", remedy="list the containers with: docker ps"
            ) from None
        except Conflict as error:
            raise Preflight(
                f"no program can run in container {self._name}: {error.message}", remedy="start the container"
            ) from error
        heard = _Heard(self._ctx, program.limit, prints_pid=has_shell)
        ends = None if program.timeout is None else started + program.timeout

        def check() -> None:
            heard.live.check()
            if has_shell and not heard.pid and time.monotonic() < started + _START_TIMEOUT:
                return  # without its process id the program cannot be killed yet
            self._ctx.check()
            if ends is not None and time.monotonic() >= ends:
                raise OperationError(f"{program.argv[0]!r} exceeded its timeout of {program.timeout:g} s")

        try:
            self._docker.start_exec(execution, program.stdin, heard, check)
            code = self._code(execution, check)
        except (StepCancelled, StepTimeout, OperationError) as error:
            raise self._kill(error, heard.pid, execution, program) from error
        finally:
            heard.live.flush()
        if code in {126, 127} and not heard.pid and "exec failed" in heard.out.text() + heard.err.text():
            why = (heard.out.text() + heard.err.text()).strip().splitlines()[-1]
            raise Preflight(f"cannot run {program.argv[0]} in container {self._name}: {why}")
        took = round((time.monotonic() - started) * 1000)
        return Completed(code, heard.out.text(), heard.err.text(), heard.out.truncated or heard.err.truncated, took)

    def _code(self, execution: str, check: Check) -> int:
        """The exit code; the engine may report it a moment after the end of the stream."""
        while True:
            state = self._docker.execution(execution)
            if state is None:
                raise OperationError(f"the engine has no record of the program in container {self._name}")
            if not state.running and state.exit_code is not None:
                return state.exit_code
            check()
            time.sleep(_POLL)

    def _kill(self, error: OperationError, pid: str, execution: str, program: Program) -> OperationError:
        """Kill the program and return the error, with a note if the program may still run."""
        state = None
        with contextlib.suppress(OperationError):
            state = self._docker.execution(execution)
        if state is None or not state.running:
            return error
        if pid:
            end = time.monotonic() + program.grace
            self._signal(pid, "TERM")
            while time.monotonic() < end and self._runs(execution):
                time.sleep(_POLL)
            self._signal(pid, "KILL")
        if not pid or self._runs(execution, patience=2.0):
            error.message += f"; the program may still run in container {self._name}"
        return error

    def _signal(self, pid: str, signal: str) -> None:
        """Signal the program's process group."""
        text = f"kill -{signal} -- -{pid} 2>/dev/null || kill -{signal} {pid}"
        with contextlib.suppress(OperationError):
            execution = self._docker.create_exec(self._name, {"Cmd": ["/bin/sh", "-c", text], "User": "0"})
            self._docker.start_exec(execution, None, lambda _stream, _piece: None, lambda: None)

    def _runs(self, execution: str, patience: float = 0.0) -> bool:
        end = time.monotonic() + patience
        while True:
            state = self._docker.execution(execution)
            if state is None or not state.running:
                return False
            if time.monotonic() >= end:
                return True
            time.sleep(_POLL)

    def environment(self) -> dict[str, str]:
        return {}  # the container supplies its own environment

    # --- files ------------------------------------------------------------------------------------

    def _entry(self, path: str, limit: int = _FILE_LIMIT) -> tuple[tarfile.TarInfo, bytes] | None:
        """The entry at a path, without following links."""
        try:
            archive = self._docker.read_archive(self._name, path, limit)
        except NotThere:
            raise Preflight(
                f"container {self._name!r} does not exist", remedy="list the containers with: docker ps -a"
            ) from None
        if archive is None:
            return None
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.next()
            if member is None:
                return None
            file = tar.extractfile(member) if member.isfile() else None
            return member, file.read() if file is not None else b""

    def _has(self, path: str) -> bool:
        return self._docker.has_path(self._name, path)

    def text(self, path: str) -> str | None:
        """The text of a small file. Files of /proc, which are empty in an archive, are read by `cat`."""
        if path.startswith("/proc/"):
            done = self.run(Program(["cat", path], {}, limit=_SMALL))
            return done.stdout if done.exit_code == 0 else None
        for _ in range(5):
            found = self._entry(path, _SMALL)
            if found is None:
                return None
            if not found[0].issym():
                return found[1].decode("utf-8", "replace")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[0].linkname))
        return None

    def read(self, path: str) -> tuple[State, bytes] | None:
        found = self._entry(path)
        if found is None:
            return None
        member, data = found
        if not member.isfile():
            raise Preflight(f"{path} in container {self._name} is not a regular file")
        return State(sha(data), len(data), member.mode & 0o7777, member.uid, member.gid), data

    def exists(self, path: str) -> bool:
        return self._has(path)

    def write(self, path: str, data: bytes, state: State) -> None:
        """Write a temporary file and rename it if the container runs and has `mv`; otherwise write in place."""
        folder, name = posixpath.split(path)
        temporary = temporary_name(self._ctx, name)
        inspected = self._docker.inspect(self._name)
        if inspected is None or not inspected.running or not (self._has("/bin/mv") or self._has("/usr/bin/mv")):
            self._put(folder, name, data, state)
            return
        self._put(folder, temporary, data, state)
        done = self._as_root(["mv", "-f", posixpath.join(folder, temporary), path])
        if done.exit_code:
            self._as_root(["rm", "-f", posixpath.join(folder, temporary)])
            raise OperationError(f"{path} in container {self._name}: {done.stderr.strip() or 'mv failed'}")

    def _put(self, folder: str, name: str, data: bytes, state: State) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uid, info.gid, info.mtime = len(data), state.mode, state.uid, state.gid, time.time()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(info, io.BytesIO(data))
        try:
            self._docker.write_archive(self._name, folder, archive.getvalue())
        except NotThere as error:
            raise Preflight(f"{folder} in container {self._name}: {error.message}") from error

    def _as_root(self, argv: list[str]) -> Completed:
        return self.run(Program(argv, {}, user="0"))

    def remove(self, path: str) -> None:
        done = self._as_root(["rm", "-f", path])
        if done.exit_code:
            raise OperationError(f"{path} in container {self._name}: {done.stderr.strip() or 'rm failed'}")

    def require_removal(self) -> None:
        found = self._docker.inspect(self._name)
        if found is None or not found.running or not (self._has("/bin/rm") or self._has("/usr/bin/rm")):
            what = f"an undo could not remove a new file in container {self._name}"
            raise Preflight(what, remedy="start a container that has rm, or change an existing file only")

    def missing_folders(self, path: str) -> list[str]:
        missing: list[str] = []
        parent = posixpath.dirname(path)
        while parent != "/" and not self._has(parent):
            missing.insert(0, parent)
            parent = posixpath.dirname(parent)
        return missing

    def make_folders(self, path: str) -> None:
        if not self.missing_folders(path):
            return
        done = self._as_root(["mkdir", "-p", posixpath.dirname(path)])
        if done.exit_code:
            raise Preflight(f"{posixpath.dirname(path)} in container {self._name}: {done.stderr.strip()}")

    def remove_folders(self, made: Sequence[str]) -> None:
        for folder in reversed(made):
            if self._as_root(["rmdir", folder]).exit_code:
                break

    def owner(self, user: str | int | None, group: str | int | None) -> tuple[int | None, int | None]:
        return self._number(user, "/etc/passwd", "user"), self._number(group, "/etc/group", "group")

    def _number(self, name: str | int | None, path: str, kind: str) -> int | None:
        if name is None or str(name).isdigit():
            return None if name is None else int(name)
        for line in (self.text(path) or "").splitlines():
            fields = line.split(":")
            if len(fields) > 2 and fields[0] == name and fields[2].isdigit():
                return int(fields[2])
        raise Preflight(f"{kind} {name} does not exist in container {self._name}")

    def me(self) -> tuple[int, int]:
        return 0, 0


class _Heard:
    """Receives a program's output, and the process id in front of it if the program prints one."""

    def __init__(self, ctx: Context, limit: int, *, prints_pid: bool) -> None:
        self.out, self.err = Tail(limit, ctx.redact), Tail(limit, ctx.redact)
        self.live = Live(ctx)
        self.pid = ""
        self._first: bytearray | None = bytearray() if prints_pid else None

    def __call__(self, stream: int, piece: bytes) -> None:
        if stream == 1 and self._first is not None:
            self._first += piece
            if b"\n" not in self._first:
                return
            word, _, piece = bytes(self._first).partition(b"\n")
            self._first = None
            self.pid = word.decode() if word.isdigit() else ""
            if not self.pid:
                piece = word + b"\n" + piece  # a message of the engine: the program did not start
        if piece:
            (self.err if stream == 2 else self.out).add(piece)
            self.live(stream, piece)
