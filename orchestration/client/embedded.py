"""The embedded default, seen from a client: make sure that the user's own server and worker are up.

One supervisor a state folder owns both (`longshore.workers.embedded`). It is a process of its own, so
that runs outlive the command that started them, and it ends when it has nothing to do.
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

from longshore.orchestration.errors import ConfigError, StoreUnavailable
from longshore.orchestration.settings import Settings

SUPERVISOR = "longshore.workers.embedded"
#: In the state folder: the modules that the worker has to import, and those that it was started with.
IMPORTS, LEARNED = "imports.json", "imports.learned"
#: Seconds for the server to answer.
_PATIENCE = 20.0


def ensure(settings: Settings) -> None:
    """Return when the embedded server answers; start its supervisor if there is none."""
    folder = settings.state_dir
    told = _send_imports(settings)
    if is_up(settings):
        touch(folder)
        _wait_for_imports(folder, told)
        return
    if importlib.util.find_spec(SUPERVISOR) is None:
        raise ConfigError("there is no worker in this installation", remedy="set LONGSHORE_REDIS_URL")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_path = folder / "supervisor.log"
    until = time.monotonic() + _PATIENCE
    process: subprocess.Popen[bytes] | None = None
    while time.monotonic() < until:
        if is_up(settings):
            touch(folder)
            _wait_for_imports(folder, told)
            return
        # Whoever loses the race for the lock ends at once; the loop then finds the winner's server.
        if process is None or process.poll() is not None:
            if process is not None and process.returncode not in {0, None}:
                said = last_line(log_path).removeprefix("longshore: ")
                if process.returncode == ConfigError.exit_code:
                    raise ConfigError(said)
                raise StoreUnavailable(f"the embedded server did not start: {said}", remedy=f"see {log_path}")
            if process is not None and _locked(folder):
                time.sleep(0.05)
                continue
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", SUPERVISOR],
                    # What the worker has to import is in the note, with where it is found.
                    env=os.environ | {"LONGSHORE_STATE_DIR": str(folder), "LONGSHORE_IMPORTS": ""},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd="/",
                )
        time.sleep(0.05)
    raise StoreUnavailable(f"the embedded server did not answer: {last_line(log_path)}", remedy=f"see {log_path}")


def _send_imports(settings: Settings) -> str:
    """Put down which modules of the caller's the worker has to import, from where, and of which age.

    The supervisor starts its worker again when that changes. Returns what it has to have read by then.
    """
    names = [name for part in settings.imports.split(",") if (name := part.strip())]
    if not names:
        return ""
    note = settings.state_dir / IMPORTS
    before = note.read_text() if note.exists() else "{}"
    known = json.loads(before)
    path_given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for name in names:
        # Where this process would find it: the worker is started from somewhere else.
        path = os.pathsep.join([*map(os.path.abspath, filter(None, path_given)), os.getcwd()])
        known[name] = {"path": path, "age": _age(name)}
    text = json.dumps(known, sort_keys=True)
    if text != before:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = note.with_name(f"{IMPORTS}.{os.getpid()}")
        new.write_text(text)
        new.replace(note)
    return text


def _age(module: str) -> float:
    """Of a module's file, if it can be found from here."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        sys.path.insert(0, os.getcwd())
        try:
            spec = importlib.util.find_spec(module)
        finally:
            sys.path.pop(0)
        if spec is not None and spec.origin:
            return os.stat(spec.origin).st_mtime
    return 0.0


def _wait_for_imports(folder: Path, told: str) -> None:
    """A step that only the new worker can do must not meet the old one."""
    until = time.monotonic() + _PATIENCE
    learned = folder / LEARNED
    while told and time.monotonic() < until:
        with contextlib.suppress(OSError):
            # Somebody else may have asked for more meanwhile.
            if json.loads(told).items() <= json.loads(learned.read_text()).items():
                return
        time.sleep(0.05)


def is_up(settings: Settings) -> bool:
    """Whether the server answers, and somebody looks after it and its worker."""
    if not settings.embedded_socket.exists() or not _locked(settings.state_dir):
        return False
    import redis  # noqa: PLC0415 - 0.2 s that `longshore --help` need not pay
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    # A killed server leaves its socket: the client's own retries would wait ten seconds for it.
    once = Retry(NoBackoff(), 0)
    client = redis.Redis(unix_socket_path=str(settings.embedded_socket), socket_timeout=1.0, retry=once)
    try:
        # An ending supervisor still has its server: a client must not begin with it.
        return bool(client.ping()) and not (settings.state_dir / "ending").exists()
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def touch(folder: Path) -> None:
    """Say that somebody is there: the supervisor's idle time begins anew."""
    with contextlib.suppress(OSError):
        (folder / "used").touch()


def supervisor_pid(folder: Path) -> int | None:
    """The supervisor's process id, if one holds the folder."""
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
    """The last thing that a log says."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "nothing is known"
    return lines[-1] if lines else "nothing is known"
