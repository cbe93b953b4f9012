"""Engines behind TLS (`tcp://`) and SSH, and the errors of engines that do not respond."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longshore.orchestration.errors import OperationError, Transient
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.engine.factory import close_engine
from tests.conftest import require
from tests.docker.conftest import MakeStep
from tests.servers import engine_url

pytestmark = pytest.mark.docker
MakeContainer = Callable[..., str]


def certificates(folder: Path) -> None:
    """Create a certificate authority, and the certificates of a server and a client."""
    if shutil.which("openssl") is None:
        require("openssl is not installed, and the certificates need it")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca-key.pem", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=authority")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for who, stem in (("server", "server"), ("client", "")):
        key, request, done = (f"{stem}{'-' if stem else ''}{end}" for end in ("key.pem", "req.pem", "cert.pem"))
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={who}")
        openssl("x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
                "-out", done, "-days", "2", "-extfile", "names")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates(folder)
    return folder


@pytest.fixture
def tls_address(folder: Path) -> Iterator[str]:
    """The address of a TLS proxy before the engine, which verifies client certificates."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw, socket.socket(socket.AF_UNIX) as engine:
            engine.connect(engine_url().removeprefix("unix://"))
            with context.wrap_socket(raw, server_side=True) as client:
                back = threading.Thread(target=pump, args=(engine, client))
                back.start()
                pump(client, engine)
                back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    if not engine_url().startswith("unix://"):
        require("the engine of the tests has no unix socket")
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def make(url: str, **more: str) -> None:
        close_engine()
        monkeypatch.setenv("LONGSHORE_DOCKER_HOST", url)
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()

    yield make
    close_engine()


def test_operations_reach_an_engine_through_tls(
    step: MakeStep, container: MakeContainer, tls_address: str, folder: Path, use: Callable[..., None]
) -> None:
    name = container()
    use(tls_address, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(folder))
    assert step("docker.inspect.get", container=name).act().data["running"]
    printed = step("docker.exec.execute", container=name, argv=["seq", "1", "20000"]).act().data
    assert printed["stdout"].endswith("19999\n20000\n")
    assert (
        step("docker.run.execute", image="longshore-test:1", command=["echo", "well"]).act().data["stdout"] == "well\n"
    )
    with pytest.raises(OperationError, match="through TLS"):
        step("docker.exec.execute", container=name, argv=["cat"], stdin="x").act()


def test_unknown_certificate_authority_is_a_final_error(
    step: MakeStep, tls_address: str, use: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("others")
    certificates(other)
    use(tls_address, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(other))
    with pytest.raises(OperationError, match="TLS verification between") as error:
        step("docker.list.get").act()
    assert not isinstance(error.value, Transient)


@pytest.mark.parametrize("url", ["unix:///no/such.sock", "tcp://127.0.0.1:1"])
def test_error_of_an_unreachable_engine_names_the_remedy(step: MakeStep, use: Callable[..., None], url: str) -> None:
    use(url)
    with pytest.raises(Transient, match="does not respond: start the engine, or set LONGSHORE_DOCKER_HOST"):
        step("docker.list.get").act()


# docker-py leaves the processes of its ssh connections to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_operations_reach_an_engine_through_the_ssh_program(
    step: MakeStep,
    container: MakeContainer,
    use: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a program `ssh` that runs the remote command on this machine
    calls = tmp_path / "calls"
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >>{calls}\nDOCKER_HOST={engine_url()} exec docker system dial-stdio\n')
    ssh.chmod(0o755)
    name = container("sh", "-c", "echo said; sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    use("ssh://ops@web9")

    assert step("docker.inspect.get", container=name).act().data["running"]
    assert step("docker.logs.get", container=name).act().data["stdout"] == "said\n"
    run = step("docker.run.execute", image="longshore-test:1", command=["echo", "well"])
    assert run.act().data["stdout"] == "well\n"
    assert "web9" in calls.read_text()
    with pytest.raises(OperationError, match="cannot run through ssh://ops@web9"):
        step("docker.exec.execute", container=name, argv=["true"]).act()
    run.undo()
    close_engine()
    gc.collect()  # with the warnings that the marker ignores
