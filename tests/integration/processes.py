"""The processes of an installation, independent of pytest."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import redis

from longshore.orchestration import Client, Plan, Report, Run, Settings
from longshore.orchestration.messaging.canvas import producer
from tests.fork_server import ForkServer, Process

T = TypeVar("T")

#: The installed program, for tests that need a terminal or a separate program.
LONGSHORE = str(Path(sys.executable).with_name("longshore"))
#: A long time, because other tests may occupy the processors.
PATIENCE = 90.0
_WORKER = ["celery", "-A", "longshore.workers", "worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]


@lru_cache(maxsize=1)
def fork_server() -> ForkServer:
    """The fork server of this test process."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def wait_for(what: str, look: Callable[[], T | None], timeout: float = PATIENCE, interval: float = 0.05) -> T:
    """Return the first true result of `look`. A dear `look` needs a longer interval."""
    until = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() >= until:
            raise AssertionError(f"waited {timeout:g} s for: {what}")
        time.sleep(interval)


def processes_with_text(text: str) -> dict[int, str]:
    """The command lines by pid of live processes with the text in the environment or command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if text.encode() in command + (folder / "environ").read_bytes():
                found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def alive(pid: int) -> bool:
    """Report whether the process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Worker:
    """A prefork worker. `name` is unique in the installation; `arguments` are those of Celery."""

    def __init__(self, installation: Installation, name: str, *arguments: str, **environment: str) -> None:
        self.installation = installation
        self.node = f"{name}@{installation.namespace}"
        self.log = installation.folder / f"{name}.log"
        self._command = [*_WORKER, "--hostname", self.node, *arguments]
        self._environment = installation.environment | environment
        self._process: Process | None = None

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the main process. RuntimeError if the worker does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.node} does not run")
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start the worker in its own process group. The worker ends with the tests."""
        self._process = fork_server().start(
            self._command, env=self._environment, cwd=self.installation.folder, log=self.log, new_session=True
        )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the worker answers a ping."""
        app = producer(self.installation.settings)
        with app.connection_for_write() as connection:

            def answers() -> bool:
                if not self.running:
                    raise AssertionError(f"{self.node} did not start:\n{self.log.read_text(errors='replace')[-4000:]}")
                # A ping costs processor time: send the first one when the log shows that the worker is ready.
                if b" ready." not in self.log.read_bytes():
                    return False
                return bool(app.control.ping(destination=[self.node], timeout=2.0, connection=connection, limit=1))

            wait_for(f"{self.node} to answer", answers)
        app.close()

    def keep_alive(self) -> None:
        """Restart the worker if it has ended, like a supervisor."""
        if not self.running:
            self._end_group(signal.SIGKILL)
            self.start(wait=False)

    def signal_main(self, number: signal.Signals) -> None:
        """Send a signal to the main process, like a supervisor."""
        if self._process is not None:
            self._process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to each process of the worker."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def children(self) -> list[int]:
        """The process ids of the children of the main process."""
        if self._process is None:
            return []
        with contextlib.suppress(OSError):
            pid = self._process.pid
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def kill(self) -> None:
        """Kill all processes of the worker, as a power failure does."""
        self._end_group(signal.SIGKILL)

    def stop(self) -> None:
        """Send SIGTERM to the main process, which waits for its steps; after 15 s SIGKILL to all."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.terminate()
        self._end_group(signal.SIGKILL)

    def _end_group(self, number: signal.Signals) -> None:
        self.signal_group(number)
        if self._process is not None:
            self._process.wait(15.0)
        self._process = None


@dataclass
class Installation:
    """A name space on a Redis, a state folder, and the settings of clients and workers."""

    redis_url: str
    folder: Path
    namespace: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")
    #: Settings of clients and workers.
    options: dict[str, str] = field(default_factory=dict)
    #: The URL of the Docker engine for the workers.
    docker_host: str = ""
    workers: list[Worker] = field(default_factory=list)
    _clients: list[Client] = field(default_factory=list)
    _redis: redis.Redis | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process, with the settings of this installation only."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
        given = {
            "redis_url": self.redis_url,
            "namespace": self.namespace,
            "state_dir": str(self.folder / "state"),
            "actor": "tester",
        }
        if self.docker_host:
            given["docker_host"] = self.docker_host
        return mine | {f"LONGSHORE_{name.upper()}": value for name, value in (given | self.options).items()}

    @property
    def pythonpath(self) -> str:
        """The folder from which workers import the modules of the tests."""
        return str(Path(__file__).resolve().parents[2])

    @property
    def settings(self) -> Settings:
        given: dict[str, Any] = {"redis_url": self.redis_url, "namespace": self.namespace, "actor": "tester"}
        return Settings(**(given | {"state_dir": self.folder / "state"} | self.options))

    @property
    def redis(self) -> redis.Redis:
        """A Redis client that returns bytes."""
        if self._redis is None:
            self._redis = redis.Redis.from_url(self.redis_url)
        return self._redis

    def client(self) -> Client:
        client = Client(self.settings)
        self._clients.append(client)
        return client

    def worker(self, name: str, *arguments: str, **environment: str) -> Worker:
        """Return a new worker, not yet started."""
        worker = Worker(self, name, *arguments, **environment)
        self.workers.append(worker)
        return worker

    def at(self, node: str) -> Worker:
        """Return the worker with that node name."""
        return next(worker for worker in self.workers if worker.node == node)

    def run(self, plan: Plan | str, run_id: str | None = None, **params: Any) -> Run:
        """Start a plan, given as an object or as YAML."""
        from longshore.orchestration import parse

        client = self._clients[0] if self._clients else self.client()
        return client.start(parse(plan) if isinstance(plan, str) else plan, params, run_id=run_id)

    def popen(self, *arguments: str, **environment: str) -> Process:
        """Start `longshore …`."""
        return fork_server().start(["longshore", *arguments], env=self.environment | environment, cwd=self.folder)

    def beat(self, **environment: str) -> Process:
        """Start the command that `longshore beat` executes in its place."""
        command = ["celery", "-A", "longshore.workers", "beat", "--pidfile", "", "-l", "INFO"]
        return fork_server().start(command, env=self.environment | environment, cwd=self.folder)

    def feed(self, text: str, *arguments: str) -> CommandResult:
        """Run `longshore …` with a text on its standard input."""
        process = fork_server().start(["longshore", *arguments], env=self.environment, cwd=self.folder, stdin=text)
        return result_of(process)

    def longshore(self, *arguments: str, timeout: float = PATIENCE, **environment: str) -> CommandResult:
        """Run `longshore …`."""
        return result_of(self.popen(*arguments, **environment), timeout)

    def queue(self, name: str) -> list[bytes]:
        """The messages in a queue, the next one first."""
        waiting: Any = self.redis.lrange(self.queue_key(name), 0, -1)
        return list(reversed(waiting))

    def queue_key(self, name: str) -> str:
        return f"{self.settings.broker_prefix()}{name}"

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        for client in self._clients:
            client.store.client.close()
            client._producer.close()
        if self._redis is not None:
            self._redis.close()


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def result_of(process: Process, timeout: float = PATIENCE) -> CommandResult:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} did not end in {timeout:g} s\n{out}\n{err}") from None
    return CommandResult(process.returncode, out, err)


def stored_text(place: Installation, *more: str) -> str:
    """All data in Redis, all files of the installation, and the given texts, as one text."""
    found: list[str] = list(more)
    for key in place.redis.scan_iter(count=1000):
        kind = place.redis.type(key)
        if kind == b"none":  # the key has expired
            continue
        read: dict[bytes, Any] = {
            b"string": lambda: place.redis.get(key),  # noqa: B023 - called at once
            b"hash": lambda: place.redis.hgetall(key),  # noqa: B023
            b"list": lambda: place.redis.lrange(key, 0, -1),  # noqa: B023
            b"set": lambda: place.redis.smembers(key),  # noqa: B023
            b"zset": lambda: place.redis.zrange(key, 0, -1),  # noqa: B023
            b"stream": lambda: place.redis.xrange(key),  # noqa: B023
        }[kind]()
        found.append(f"{key!r} {read!r}")
    found += [path.read_bytes().decode(errors="replace") for path in place.folder.rglob("*") if path.is_file()]
    return "\n".join(found)


def redis_of(installation: Installation) -> dict[bytes, Any]:
    """Every key of the installation with its value, except keys of Celery's remote control, heartbeats of workers,
    the clock of the sweepers, and messages that a worker has received and not yet acknowledged.
    """
    client = installation.redis
    prefix = b"" if installation.namespace == "longshore" else f"{installation.namespace}:".encode()
    wiring = (b"pidbox", b"celeryev", b"_kombu.binding_deadlines", b":hosts", b":host:", b":clock", b"unacked")
    keys = [key for key in client.scan_iter(prefix + b"*") if not any(word in key for word in wiring)]
    # Keys with an expiry, such as heartbeats, may disappear at any time.
    keys = [key for key in keys if client.pttl(key) == -1]
    # The members of a set have no order.
    return {key: client.smembers(key) if client.type(key) == b"set" else client.dump(key) for key in keys}


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The mode, owner and bytes of each path in a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (oct(info.st_mode), info.st_uid, info.st_gid, content)
    return found


def lines(path: Path) -> Sequence[str]:
    """The lines of a file; empty if the file does not exist."""
    return path.read_text().splitlines() if path.exists() else []


def report_of(installation: Installation, plan: Plan, **params: Any) -> Report:
    """Run a plan, and return its report."""
    return installation.run(plan, **params).wait(timeout=PATIENCE)


def statuses(report: Report) -> dict[str, str]:
    return {step.name: str(step.status) for step in report.steps}


def names(run: Run, event: str) -> list[str]:
    """The steps of all events with this name, in order."""
    return [found.step for found in run.events() if found.name == event and found.step]
