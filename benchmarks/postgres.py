"""A PostgreSQL server with a private folder and port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.servers import MissingError, free_port, last_line

_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
_PATIENCE = 60.0


class Postgres:
    """PostgreSQL with default settings: each commit is written to the disk. Raises MissingError if no server starts."""

    def __init__(self) -> None:
        self._initdb, self._postgres = program("initdb"), program("postgres")
        self._user = _plain_user()
        # Outside of the folder of this run, which only its owner can read.
        self._folder = Path(tempfile.mkdtemp(prefix="ls-pg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        port = free_port()
        self.url = f"postgresql+psycopg://bench@127.0.0.1:{port}/bench"
        try:
            self._start(port)
        except BaseException:
            self.close()
            raise

    def _start(self, port: int) -> None:
        if self._user:
            shutil.chown(self._folder, self._user)
        data, log = self._folder / "data", self._folder / "log"
        made = subprocess.run(
            self._as_user(self._initdb, "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C"),
            capture_output=True, text=True, check=False, cwd=self._folder,
        )  # fmt: skip
        if made.returncode:
            raise MissingError(f"initdb failed: {(made.stderr.strip().splitlines() or ['no message'])[-1]}")
        command = self._as_user(
            self._postgres, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(self._folder)
        )
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self._folder)
        until = time.monotonic() + _PATIENCE
        while "ready to accept connections" not in log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > until:
                raise MissingError(f"postgres did not start: {last_line(log)}")
            time.sleep(0.05)

    def _as_user(self, *command: str) -> list[str]:
        """The prefix of a command that runs as a user other than root, and ends with this process."""
        if shutil.which("setpriv") is None:
            return list(command)
        identity = ["--reuid", self._user, "--regid", self._user, "--clear-groups"] if self._user else []
        return ["setpriv", *identity, "--pdeathsig", "INT", *command]

    def version(self) -> str:
        shown = subprocess.run([self._postgres, "--version"], capture_output=True, text=True, check=True).stdout
        return shown.split()[2]

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            self._process.wait(_PATIENCE)
        shutil.rmtree(self._folder, ignore_errors=True)


def program(name: str) -> str:
    """The path of a program of PostgreSQL, which Debian keeps outside of PATH."""
    if path := shutil.which(name):
        return path
    for pattern in _FOLDERS:
        for folder in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (folder / name).exists():
                return str(folder / name)
    raise MissingError(f"{name} is missing: install the PostgreSQL server")


def _plain_user() -> str:
    """The user of the server, or an empty text for the present user. Raises MissingError if no user is found."""
    if os.geteuid():
        return ""
    if shutil.which("setpriv") is None:
        raise MissingError("PostgreSQL does not run as root, and there is no setpriv")
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
            return user.pw_name
        except KeyError:
            continue
    raise MissingError("PostgreSQL does not run as root, and there is no user postgres or nobody")
