"""A private Redis server with prefork workers, and meters of both."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longshore.orchestration.store import lua
from tests.servers import RedisServer

ROOT = Path(__file__).resolve().parent.parent
#: Processes of a worker.
CONCURRENCY = 4
#: Seconds within which a worker has to be ready, and has to end.
_PATIENCE = 60.0
#: Redis logs commands that take at least this time, in microseconds.
_SLOW = 1000
#: The length of Redis's slow log.
_SLOW_ENTRIES = 10_000


@dataclass(frozen=True)
class Reading:
    """Totals of a Redis server: commands, including those of scripts, received bytes and bytes of memory."""

    commands: int
    bytes_in: int
    memory: int


class Site:
    """A Redis server and a worker of one Celery app."""

    def __init__(
        self, folder: Path, name: str, app: str, environment: Mapping[str, str], uncounted: Sequence[str] = ()
    ) -> None:
        """`{url}` in `environment` is the URL of the server. Readings omit the `uncounted` commands."""
        self.name, self.app, self._uncounted = name, app, {f"cmdstat_{command}" for command in uncounted}
        self.folder = folder / name
        self.folder.mkdir()
        # As Redis by default: no append-only file.
        slow_log = ("--slowlog-log-slower-than", str(_SLOW), "--slowlog-max-len", str(_SLOW_ENTRIES))
        self.server = RedisServer("--appendonly", "no", *slow_log)
        self.server.start()
        self.redis = self.server.client()
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **{key: value.format(url=self.server.url) for key, value in environment.items()},
        }
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self.pid = 0

    def start(self) -> None:
        """Start the worker if it does not run."""
        if not self._workers:
            self.pid = self.worker(self.name)

    def worker(self, name: str, *options: str, processes: int = CONCURRENCY) -> int:
        """Start another worker, and wait until it is ready. Returns the id of its main process, a group leader."""
        log = self.folder / f"{name}.log"
        command = [
            sys.executable, "-m", "celery", "-A", self.app, "worker", "-c", str(processes), "-n", f"{name}@%h",
            "-l", "INFO", "--without-gossip", "--without-mingle", *options,
        ]  # fmt: skip
        if shutil.which("setpriv"):  # the worker ends with a killed benchmark
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=self.folder, env=self._environment, start_new_session=True
            )
        until = time.monotonic() + _PATIENCE
        while " ready." not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > until:
                self._end(process)
                raise RuntimeError(f"the worker {name} did not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)
        time.sleep(0.5)  # until the pool has forked, and the worker has sent its first messages
        self._workers[process.pid] = process
        return process.pid

    def kill(self, pid: int) -> None:
        """End a worker and its processes with SIGKILL."""
        os.killpg(pid, signal.SIGKILL)
        self._workers.pop(pid).wait(_PATIENCE)

    def stop(self) -> None:
        """End the workers."""
        for process in self._workers.values():
            self._end(process)
        self._workers.clear()

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_PATIENCE)

    def fresh(self) -> None:
        """Continue with an empty Redis and a new worker."""
        self.stop()
        self.server.flush()
        self.start()

    def sync_each_write(self) -> None:
        """Configure Redis to write each change to the disk before it answers."""
        self.redis.config_set("appendonly", "yes")
        self.redis.config_set("appendfsync", "always")
        while self.redis.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.05)

    def close(self) -> None:
        self.stop()
        self.server.close()

    # --- meters -------------------------------------------------------------------------------------

    def read(self) -> Reading:
        calls = self.redis.info("commandstats")
        commands = sum(entry["calls"] for command, entry in calls.items() if command not in self._uncounted)
        return Reading(
            commands, self.redis.info("stats")["total_net_input_bytes"], self.redis.info("memory")["used_memory"]
        )

    def processes(self) -> list[int]:
        """The ids of the worker's processes."""
        children = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False)
        return [self.pid, *map(int, children.stdout.split())]

    def resident(self) -> float:
        """The memory of the worker in MiB. Memory that its processes share counts once."""
        return sum(map(_proportional, self.processes()))

    def cpu(self) -> float:
        """The processor time of the worker in seconds."""
        return sum(map(_cpu, self.processes()))

    def longest_script(self) -> tuple[float, str]:
        """The longest script since the last call, in ms, and its name; 0 if all scripts took less than 1 ms."""
        entries = self.redis.slowlog_get(_SLOW_ENTRIES)
        scripts = [entry for entry in entries if entry["command"].startswith(b"EVALSHA ")]
        self.redis.slowlog_reset()
        if not scripts:
            return 0.0, ""
        slowest = max(scripts, key=lambda entry: entry["duration"])
        sha = slowest["command"].split()[1].decode()
        return slowest["duration"] / 1000, _script_names().get(sha, sha[:8])


def _script_names() -> dict[str, str]:
    """The names of Longshore's scripts by their SHA-1."""
    folder = Path(lua.__file__).parent
    sources = {path.stem: lua.source(path.stem) for path in folder.glob("*.lua") if path.stem != "prelude"}
    sources |= {path.stem: lua.installation_source(path.stem) for path in (folder / "installation").glob("*.lua")}
    return {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name for name, text in sources.items()}


def _proportional(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
