"""Start workers and commands by a fork of a process with the modules already imported.

The tests start several hundred workers and commands. In a new interpreter, each of them spends a second of processor
time on imports. `ForkServer` imports the libraries and the modules of Longshore once, and forks for each request. No
preloaded module reads the environment on import. Each child has its own environment, folder, session and signal
handlers, and runs the entry point of the installed program. The tests of the README and of the wheel start the
installed programs instead.

The shell of a test calls the fork server by the program that `ForkServer.write_program` writes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from longshore.orchestration.settings import get_settings

#: Modules that are imported before the first fork. Each child imports `longshore.workers` itself, because that package
#: reads the settings on import.
PRELOADED = (
    "celery.bin.celery", "celery.bin.worker", "celery.bin.beat", "celery.apps.worker", "celery.apps.beat",
    "celery.concurrency.prefork", "celery.worker.consumer", "celery.worker.strategy", "celery.app.amqp",
    "celery.app.control", "celery.events.state", "celery.fixups.django", "celery.loaders.app",
    "celery.worker.autoscale", "celery.worker.components", "kombu.transport.redis", "kombu.serialization",
    "cffi.cparser", "docker", "requests", "rich.live", "rich.console", "rich.table", "longshore.orchestration.cli.main",
    "longshore.orchestration.cli.runs", "longshore.orchestration.client.client",
)  # fmt: skip
PACKAGES = ("longshore.tasks", "longshore.orchestration.operations")

_PR_SET_PDEATHSIG = 1

#: A program that runs a command in the fork server, with its own streams, environment and folder.
_PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"command": [{program!r}, *sys.argv[1:]], "env": dict(os.environ), "cwd": os.getcwd()}}
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
child = int(server.recv(64))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int(server.recv(64) or b"-9")
sys.exit(status if status >= 0 else 128 - status)
"""


class Process:
    """A child of the fork server, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, args: Sequence[str], pid: int, status: int, out: TextIO | None, err: TextIO | None) -> None:
        self.args = list(args)
        self.pid = pid
        self.returncode: int | None = None
        self.stdout, self.stderr = out, err
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative after a signal. Raises `subprocess.TimeoutExpired`."""
        with self._lock:
            if self.returncode is None:
                ready, _, _ = select.select([self._status], [], [], timeout)
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = int(os.read(self._status, 16) or b"-9")
                os.close(self._status)
            return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = ["", ""]

        def read(number: int, stream: TextIO | None) -> None:
            if stream is not None:
                texts[number] = stream.read()
                stream.close()

        readers = [
            threading.Thread(target=read, args=each, daemon=True) for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


class ForkServer:
    """A process that forks on request. The process and all its children end with the test process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._address = f"\0longshore-tests-{uuid.uuid4().hex}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self._address)
        listener.listen()
        passed = [theirs.fileno(), listener.fileno()]
        # Each request has the complete environment of its child.
        command = [sys.executable, "-c", "from tests.fork_server import main; main()", *map(str, passed)]
        root = str(Path(__file__).resolve().parents[1])
        self._process = subprocess.Popen(
            command, pass_fds=passed, cwd=root, env=os.environ | {"PYTHONPATH": root}, start_new_session=True
        )
        theirs.close()
        listener.close()

    def write_program(self, path: Path) -> None:
        """Write a program with the name and the behaviour of an installed one. Calls of it run in the fork server."""
        path.write_text(_PROGRAM.format(python=sys.executable, address=self._address, program=path.name))
        path.chmod(0o755)

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path | None = None,
        new_session: bool = False,
        stdin: str = "",
    ) -> Process:
        """Fork a child that runs `command`, which is `celery …` or `longshore …`.

        With `log`, the child appends both output streams to this file. Without `log`, the streams are text pipes.
        """
        standard_input = os.memfd_create("input")
        os.write(standard_input, stdin.encode())
        os.lseek(standard_input, 0, os.SEEK_SET)
        status_read, status_write = os.pipe()
        out = err = None
        if log is None:
            out_read, out_write = os.pipe()
            err_read, err_write = os.pipe()
            out, err = os.fdopen(out_read, encoding="utf-8"), os.fdopen(err_read, encoding="utf-8")
        else:
            out_write = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            err_write = os.dup(out_write)
        request = {"command": list(command), "env": dict(env), "cwd": str(cwd), "new_session": new_session}
        given = [status_write, standard_input, out_write, err_write]
        try:
            with self._lock:
                socket.send_fds(self._socket, [json.dumps(request).encode()], given)
                answer = self._socket.recv(64)
        finally:
            for descriptor in given:
                os.close(descriptor)
        if not answer:
            raise RuntimeError("the fork server has ended: read its output")
        return Process(command, int(answer), status_read, out, err)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)


def main() -> None:
    """Run the fork server. In a child, run the command of the request."""
    requests, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    _die_with_parent()
    _preload()
    request = _serve(requests, listener)
    if request is not None:
        _run(request)


def _preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for package in PACKAGES:
        for folder in importlib.import_module(package).__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                parts = path.relative_to(folder).with_suffix("").parts
                importlib.import_module(".".join([package, *parts]).removesuffix(".__init__"))
    if get_settings.cache_info().currsize or "longshore.workers" in sys.modules:
        raise RuntimeError("a preloaded module reads the settings on import: children would have wrong settings")
    # The garbage collector of a child skips the objects from before the fork.
    gc.collect()
    gc.freeze()


def _serve(requests: socket.socket, listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request, and report exit codes. Returns the request in a child, and None after the tests."""
    statuses: dict[int, int] = {}
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([requests, listener, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _report_ended(statuses)
        if requests in ready:
            text, given, _, _ = socket.recv_fds(requests, 1 << 20, 4)
            if not text:
                return None
            answer = requests.fileno()
        elif listener in ready:
            connection, _ = listener.accept()
            text, given, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            answer = connection.detach()
            given.insert(0, answer)  # the exit code is the second answer
        else:
            continue
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (wake_read, wake_write, given[0], *statuses.values()):
                os.close(descriptor)
            requests.close()
            listener.close()
            for number, descriptor in enumerate(given[1:]):
                os.dup2(descriptor, number)
            for descriptor in given[1:]:
                os.close(descriptor)
            found: dict[str, Any] = json.loads(text)
            return found
        statuses[pid] = given[0]
        for descriptor in given[1:]:
            os.close(descriptor)
        os.write(answer, str(pid).encode())


def _report_ended(statuses: dict[int, int]) -> None:
    for pid in list(statuses):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            # The program of a shell may have ended before.
            with contextlib.suppress(BrokenPipeError), os.fdopen(statuses.pop(pid), "wb", buffering=0) as out:
                out.write(str(os.waitstatus_to_exitcode(status)).encode())


def _run(request: dict[str, Any]) -> None:
    """Run the command of a request in this process."""
    _die_with_parent()
    if request.get("new_session"):
        os.setsid()
    # A shell starts background programs with SIGINT ignored, and the tests may be a background program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    added = [request["cwd"], *filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))]
    # The child imports `tests` only if PYTHONPATH of its environment allows this.
    root = str(Path(__file__).resolve().parents[1])
    sys.path[:] = added + [path for path in sys.path if path not in {root, ""}]
    program, *arguments = request["command"]
    sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]
    try:
        if program == "celery":
            sys.argv = ["celery", *arguments]
            runpy.run_module("celery", run_name="__main__", alter_sys=True)
        else:
            [entry] = importlib.metadata.entry_points(group="console_scripts", name=program)
            sys.argv = [program, *arguments]
            sys.exit(entry.load()())
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            _end(end.code or 0)
        raise


def _end(status: int) -> NoReturn:
    """End this process as the interpreter does, but without the release of each object.

    The release would copy all memory that the process shares with the fork server, which takes longer than a command.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
