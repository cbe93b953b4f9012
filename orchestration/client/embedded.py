"""The embedded server and worker of one user, started by a client on demand.

One supervisor for each state folder owns both (`longshore.workers.embedded`). The supervisor is a process of its own,
so that runs outlive the command that started them, and ends when idle.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from longshore.orchestration.errors import ConfigError, StoreUnavailable
from longshore.orchestration.settings import Settings

SUPERVISOR = "longshore.workers.embedded"
#: Files in the state folder: the modules that the worker must import, and those that it was started with.
IMPORTS, LEARNED = "imports.json", "imports.learned"
#: Seconds to wait for the server to answer.
_PATIENCE = 20.0


def ensure(settings: Settings) -> None:
    """Start the supervisor unless one runs, and return when the server answers.

    Raises StoreUnavailable after 20 s, and ConfigError where this installation has no worker or the supervisor rejects
    its settings.
    """
    folder = settings.state_dir
    requested = _send_imports(settings)
    if is_up(settings):
        touch(folder)
        _wait_for_imports(folder, requested)
        return
    if importlib.util.find_spec(SUPERVISOR) is None:
        raise ConfigError(
            "the embedded server cannot start: this installation has no worker",
            remedy="set LONGSHORE_REDIS_URL to a Redis with workers",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_path = folder / "supervisor.log"
    until = time.monotonic() + _PATIENCE
    process: subprocess.Popen[bytes] | None = None
    while time.monotonic() < until:
        if is_up(settings):
            touch(folder)
            _wait_for_imports(folder, requested)
            return
        # A supervisor that loses the race for the lock ends at once; the loop then finds the winner's server.
        if process is None or process.poll() is not None:
            if process is not None and process.returncode not in {0, None}:
                why = last_line(log_path).removeprefix("longshore: ")
                if process.returncode == ConfigError.exit_code:
                    raise ConfigError(why)
                raise StoreUnavailable(f"the embedded server did not start: {why}", remedy=f"read {log_path}")
            if process is not None and _locked(folder):
                time.sleep(0.05)
                continue
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", SUPERVISOR],
                    # The imports file names the modules, with the path of each.
                    env=os.environ | {"LONGSHORE_STATE_DIR": str(folder), "LONGSHORE_IMPORTS": ""},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                )
        time.sleep(0.05)
    raise StoreUnavailable(
        f"the embedded server did not answer within {_PATIENCE:g} s: {last_line(log_path)}", remedy=f"read {log_path}"
    )


def _send_imports(settings: Settings) -> str:
    """Write the modules that the worker must import, with their path and modification time; return the text written.

    The supervisor restarts its worker when the file changes.
    """
    names = [name for part in settings.imports.split(",") if (name := part.strip())]
    if not names:
        return ""
    file = settings.state_dir / IMPORTS
    before = file.read_text() if file.exists() else "{}"
    known = json.loads(before)
    path_given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for name in names:
        # The import path of this process: the worker starts in another folder.
        path = os.pathsep.join([*map(os.path.abspath, filter(None, path_given)), os.getcwd()])
        known[name] = {"path": path, "age": _age(name)}
    text = json.dumps(known, sort_keys=True)
    if text != before:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = file.with_name(f"{IMPORTS}.{os.getpid()}")
        new.write_text(text)
        new.replace(file)
    return text


def _age(module: str) -> float:
    """The modification time of the file of a module, or 0 where this process cannot find the module."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        sys.path.insert(0, os.getcwd())
        try:
            spec = importlib.util.find_spec(module)
        finally:
            sys.path.pop(0)
        if spec is not None and spec.origin:
            return os.stat(spec.origin).st_mtime
    return 0.0


def _wait_for_imports(folder: Path, requested: str) -> None:
    """Wait until the worker runs with the requested imports: the former worker would not know a new operation."""
    until = time.monotonic() + _PATIENCE
    learned = folder / LEARNED
    while requested and time.monotonic() < until:
        with contextlib.suppress(OSError):
            # Another client may have requested more imports meanwhile.
            if json.loads(requested).items() <= json.loads(learned.read_text()).items():
                return
        time.sleep(0.05)


def is_up(settings: Settings) -> bool:
    """Report whether the server answers and a supervisor runs that is not ending."""
    if not settings.embedded_socket.exists() or not _locked(settings.state_dir):
        return False
    # A killed server leaves its socket, and the client's own retries would wait ten seconds.
    once = Retry(NoBackoff(), 0)
    client = redis.Redis(unix_socket_path=str(settings.embedded_socket), socket_timeout=1.0, retry=once)
    try:
        # The server of an ending supervisor still answers, but is about to stop.
        return bool(client.ping()) and not (settings.state_dir / "ending").exists()
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def touch(folder: Path) -> None:
    """Restart the idle time of the supervisor."""
    with contextlib.suppress(OSError):
        (folder / "used").touch()


def supervisor_pid(folder: Path) -> int | None:
    """The process id of the supervisor that holds the folder, or None."""
    if not _locked(folder):
        return None
    try:
        return int((folder / "supervisor.lock").read_text())
    except (OSError, ValueError):
        return None


def _locked(folder: Path) -> bool:
    try:
        with (folder / "supervisor.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def last_line(path: Path) -> str:
    """The last line of a log file."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "the log is empty"
