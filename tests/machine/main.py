"""Run a command with real servers. Missing servers are installed, fetched or started if possible."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import ParamSpec

from tests.machine import packages
from tests.machine.engine import PACKAGES, PROGRAMS, Engine, output
from tests.machine.packages import UnavailableError

DEV = packages.ROOT / ".dev"
LOG = DEV / "machine.log"
SCRATCH = DEV / "apt"
P = ParamSpec("P")
#: Programs of the tests of Flower's pages.
BROWSER = ["chromium", "chromedriver"]
#: The engine and Compose start a new process for each action. These processes are written in Go, and the garbage
#: collection would take a fifth of their processor time.
GO = {"GOGC": "off", "GOMEMLIMIT": "512MiB"}
USAGE = "usage: with-servers [--redis-only] COMMAND..."


def main(arguments: list[str]) -> int:
    redis_only = arguments[:1] == ["--redis-only"]
    command = arguments[1:] if redis_only else arguments
    if not command:
        print(USAGE, file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    # The folder is deleted with all temporary files of the tests. Its name is short, because the folder has sockets.
    temporary = Path(tempfile.mkdtemp(prefix="ls-")).resolve()
    engine = Engine(DEV / "engine", short=temporary)
    os.environ.update(GO)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    try:
        # Folders of Debian's programs for administrators, which may be missing in PATH.
        os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
        prepare(environment, engine, redis_only)
        return run(command, environment)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        engine.stop()
        shutil.rmtree(temporary, ignore_errors=True)


def leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def prepare(environment: dict[str, str], engine: Engine, redis_only: bool) -> None:
    """Provide all servers. Each missing one is reported in one line, and its tests are skipped, or fail under CI."""
    wants_engine = not redis_only and not engine_answers(environment)
    install_missing(wants_engine, redis_only)
    if wants_engine:
        attempt(start_engine, environment, engine)
    if not redis_only and "DOCKER_HOST" in environment:
        attempt(add_compose, environment)
        attempt(add_busybox)
        attempt(add_registry)


def attempt(step: Callable[P, None], *arguments: P.args, **more: P.kwargs) -> None:
    try:
        step(*arguments, **more)
    except UnavailableError as reason:
        say(str(reason))


def install_missing(wants_engine: bool, redis_only: bool) -> None:
    missing = []
    if not (shutil.which("redis-server") or shutil.which("valkey-server")):
        missing.append("redis-server")
    if not redis_only and not all(map(shutil.which, BROWSER)):
        missing += ["chromium", "chromium-driver"]
    if wants_engine and platform.system() == "Linux" and not all(map(shutil.which, PROGRAMS)):
        missing += PACKAGES
    if not missing:
        return
    if not packages.can_install():
        say(f"missing here, and installing needs root and apt-get: {' '.join(missing)}")
        return
    say(f"installing {' '.join(missing)}")
    attempt(packages.install, missing, LOG)


def engine_answers(environment: dict[str, str]) -> bool:
    """Whether the user's engine responds. DOCKER_HOST then names this engine, since docker-py ignores contexts."""
    if not output("docker", "version", "--format", "{{.Server.Version}}", timeout=15):
        return False
    if "DOCKER_HOST" not in environment:
        host = output("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
        environment["DOCKER_HOST"] = host or "unix:///var/run/docker.sock"
    return True


def start_engine(environment: dict[str, str], engine: Engine) -> None:
    lacking = [program for program in PROGRAMS if not shutil.which(program)]
    if platform.system() != "Linux" or os.geteuid() != 0 or lacking:
        raise UnavailableError("no Docker engine answers, and starting one needs Linux, root and dockerd")
    engine.start()
    environment.update(DOCKER_HOST=engine.url, LONGSHORE_TEST_ENGINE="1")


def add_compose(environment: dict[str, str]) -> None:
    if "LONGSHORE_TEST_ENGINE" not in environment and has_compose():
        return
    # A separate client configuration, so that the user's configuration stays unchanged.
    config = DEV / "engine/config"
    config.mkdir(parents=True, exist_ok=True)
    os.environ["DOCKER_CONFIG"] = environment["DOCKER_CONFIG"] = str(config)
    if not has_compose():
        say("fetching Docker Compose v2")
        packages.fetch_compose(config / "cli-plugins/docker-compose", SCRATCH, LOG)


def has_compose() -> bool:
    return packages.is_version_2(output("docker", "compose", "version", "--short").removeprefix("v"))


def add_busybox() -> None:
    if not packages.find_busybox():
        say("fetching a static busybox")
        packages.fetch_busybox(SCRATCH, LOG)


def add_registry() -> None:
    if not packages.find_registry():
        say("fetching an image registry")
        packages.fetch_registry(SCRATCH, LOG)


def run(command: list[str], environment: dict[str, str]) -> int:
    child = subprocess.Popen(command, env=environment)
    try:
        code = child.wait()
    except (KeyboardInterrupt, SystemExit) as stop:
        # A terminal sends Ctrl-C to the command, too. A second SIGINT would interrupt the cleanup of the command.
        interrupted = isinstance(stop, KeyboardInterrupt) and sys.stdin.isatty()
        # SIGINT first: pytest then tears down its fixtures, and SIGTERM would end pytest at once.
        for number in (None if interrupted else signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if number:
                child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=20)
                break
        raise
    return code if code >= 0 else 128 - code


def say(line: str) -> None:
    print(f"with-servers: {line}", file=sys.stderr, flush=True)
