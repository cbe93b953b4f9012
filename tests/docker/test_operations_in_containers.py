"""Commands, files, node and network operations in a container (`in: {container: …}`)."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled
from longshore.tasks.operations import file, http, network, node
from tests.docker.conftest import MakeStep

if TYPE_CHECKING:
    import docker

pytestmark = pytest.mark.docker
MakeContainer = Callable[..., str]
FAMILIES = (file, http, network, node)


def entry(engine: docker.APIClient, name: str, path: str) -> tuple[str, int, int, int] | None:
    """Content, mode, owner and group of a file in a container, from the engine."""
    from docker.errors import NotFound

    try:
        chunks, _ = engine.get_archive(name, path)
    except NotFound:
        return None
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        member = tar.next()
        assert member is not None
        content = tar.extractfile(member)
        assert content is not None
        return content.read().decode(), member.mode & 0o7777, member.uid, member.gid


def archive(name: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_undo_of_file_deploy_restores_the_file_in_a_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, running: bool
) -> None:
    name = container(start=running)
    inside: dict[str, Any] = {"container": name}
    if not running:
        with pytest.raises(Preflight, match="an undo could not remove"):
            step("file.deploy.execute", inside, path="/app.conf", content="one").act()
        engine.put_archive(name, "/", archive("app.conf", b"none"))
    params = {"path": "/app.conf", "content": "one", "mode": "0600", "owner": "7", "group": 8}
    deploy = step("file.deploy.execute", inside, **params)
    assert deploy.predict().changed is True
    assert deploy.act().changed
    assert entry(engine, name, "/app.conf") == ("one", 0o600, 7, 8)
    again = step("file.deploy.execute", inside, **params)
    assert again.predict().changed is False
    assert not again.act().changed
    change = step("file.deploy.execute", inside, path="/app.conf", content="two")
    change.act()
    assert entry(engine, name, "/app.conf") == ("two", 0o600, 7, 8)
    change.undo()
    assert entry(engine, name, "/app.conf") == ("one", 0o600, 7, 8)
    if running:
        assert deploy.undo().changed
        assert entry(engine, name, "/app.conf") is None


def test_undo_of_file_deploy_removes_created_folders_in_a_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container()
    deploy = step("file.deploy.execute", {"container": name}, path="/a/b/c.txt", content="x", template=True)
    deploy.act()
    assert entry(engine, name, "/a/b/c.txt") == ("x", 0o644, 0, 0)
    undeploy = step("file.undeploy.execute", {"container": name}, path="/a/b/c.txt")
    assert undeploy.act().changed
    assert undeploy.undo().changed
    assert entry(engine, name, "/a/b/c.txt") == ("x", 0o644, 0, 0)
    deploy.undo()
    gone = step("command.exec.execute", {"container": name}, argv=["test", "!", "-e", "/a"]).act()
    assert gone.data["exit_code"] == 0


def test_commands_run_in_the_container(engine: docker.APIClient, step: MakeStep, container: MakeContainer) -> None:
    name = container()
    shell = step(
        "command.shell.execute", {"container": name}, command="hostname; echo $LONGSHORE_STEP; pwd", cwd="/bin"
    )
    data = shell.act().data
    assert data["stdout"].split() == [engine.inspect_container(name)["Config"]["Hostname"], "step", "/bin"]
    creates = step("command.exec.execute", {"container": name}, argv=["true"], creates="/bin/sh")
    assert not creates.act().changed
    stop_at = time.monotonic() + 1
    cancelled = {"container": name, "asked_to_stop": lambda: time.monotonic() > stop_at}
    with pytest.raises(StepCancelled):
        step("command.shell.execute", cancelled, command="sleep 654", grace=1).act()
    assert not [row for row in engine.top(name)["Processes"] if "654" in " ".join(row)]
    with pytest.raises(Preflight, match=r"lst-nothing.*does not exist"):
        step("command.exec.execute", {"container": "lst-nothing"}, argv=["true"]).act()


def test_node_operations_describe_the_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container()
    inside: dict[str, Any] = {"container": name}
    hostname = step("node.hostname.get", inside).act().data["hostname"]
    assert hostname == engine.inspect_container(name)["Config"]["Hostname"]
    status = step("node.status.get", inside).act()
    assert not status.changed
    assert any(disk["mount"] == "/" for disk in status.data["disks"])
    assert status.data["memory"]["total"] > 0
    assert step("node.os.get", inside).act().data["distribution"] == "unknown", "the image has no os-release"


def test_dns_operations_use_the_name_servers_of_the_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container(dns=["10.1.2.3"])
    inside: dict[str, Any] = {"container": name}
    assert step("network.dns.get", inside).act().data["servers"] == ["10.1.2.3"]
    update = step("network.dns.update", inside, servers=["10.9.9.9"], search_domains=["lan"])
    assert update.predict().changed is True
    assert update.act().changed
    assert step("network.dns.get", inside).act().data["search_domains"] == ["lan"]
    assert not step("network.dns.update", inside, servers=["10.9.9.9"]).act().changed
    assert update.undo().changed
    assert step("network.dns.get", inside).act().data["servers"] == ["10.1.2.3"]


def test_http_and_ping_run_in_the_container(step: MakeStep, container: MakeContainer) -> None:
    name = container("sh", "-c", "echo well >/index.html; httpd -f -p 8080 -h /")
    inside: dict[str, Any] = {"container": name}
    get = step("network.http.get", inside, url="http://127.0.0.1:8080/index.html", contains="well", deadline="5s")
    assert get.act().data["code"] == 200
    with pytest.raises(OperationError, match="404"):
        step("network.http.get", inside, url="http://127.0.0.1:8080/nothing").act()
    with pytest.raises(OperationError, match="refused"):
        step("network.http.get", inside, url="http://127.0.0.1:8081/").act()
    ping = step("network.ping.do", inside, address="127.0.0.1", count=1).act()
    assert (ping.changed, ping.data["packets_received"]) == (False, 1)


def test_output_of_a_command_in_a_container_is_streamed(step: MakeStep, container: MakeContainer) -> None:
    printed: list[tuple[str, tuple[str, ...]]] = []
    context = {"container": container(), "printed": lambda stream, lines: printed.append((stream, tuple(lines)))}
    step("command.shell.execute", context, command="echo out; sleep 0.2; echo err >&2").act()
    assert printed == [("stdout", ("out",)), ("stderr", ("err",))]
