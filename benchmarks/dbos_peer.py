"""DBOS in an environment and a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from benchmarks.site import ROOT
from tests.servers import MissingError, last_line

PYTHON = ROOT / ".dev" / "dbos" / "bin" / "python"


class DbosPeer:
    """A process with DBOS on a database. Raises MissingError if the process does not start."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        if (
            not PYTHON.exists()
            or subprocess.run([PYTHON, "-c", "import dbos"], capture_output=True, check=False).returncode
        ):
            raise MissingError("DBOS is not installed in .dev/dbos")
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                [PYTHON, Path(__file__).with_name("dbos_program.py"), url],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
            )  # fmt: skip
        self._answer()

    def workflows(self, count: int, length: int) -> float:
        """The seconds of concurrent workflows of `length` steps each."""
        assert self._process.stdin is not None
        print(json.dumps(["workflows", count, length]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str | float:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            self.close()
            raise MissingError(f"DBOS ended: {last_line(self._log)[:200]}")
        answer: str | float = json.loads(text)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(30)


def version() -> str:
    """The installed version, or an empty text."""
    code = "import importlib.metadata as m; print(m.version('dbos'))"
    if not PYTHON.exists():
        return ""
    return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
