"""Surprising behaviour of the Docker engine and of Compose, a test each."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from longshore.orchestration.errors import OperationError, Transient
from longshore.tasks.host.engine.client import DockerEngine
from longshore.tasks.host.engine.factory import close_engine, engine_url
from tests.docker.conftest import MakeStep
from tests.docker.stack import Stack, stack

if TYPE_CHECKING:
    import docker

pytestmark = pytest.mark.docker
assert stack
MakeContainer = Callable[..., str]


def test_env_file_does_not_make_a_service_stale(stack: Stack) -> None:
    # `config --hash` of the project files differs from the hash in the labels of the containers
    (stack.directory / "web.env").write_text("COLOUR=blue\n")
    stack.write(web={"env_file": ["web.env"]})
    stack.up().act()
    ids = stack.ids()
    again = stack.up()
    assert again.predict().changed is False
    assert not again.act().changed
    assert stack.ids() == ids
    (stack.directory / "web.env").write_text("COLOUR=red\n")
    changed = stack.up()
    assert "web: configuration changed" in changed.predict().action
    assert changed.act().changed
    changed.undo()
    assert stack.up(services=["db"]).predict().changed is False


def test_concurrent_removals_of_a_container_succeed(container: MakeContainer) -> None:
    # the engine answers seven of eight calls with a conflict, "removal already in progress"
    name = container()
    done: list[bool] = []

    def remove() -> None:
        port = DockerEngine(engine_url())
        try:
            done.append(port.remove(name))
        finally:
            port.close()

    threads = [threading.Thread(target=remove) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 8
    assert any(done)


def test_port_in_use_is_a_final_error(step: MakeStep) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = step(
            "docker.create.execute", image="longshore-test:1", command=["sleep", "60"], ports=[f"127.0.0.1:{port}:80"]
        )
        name = made.act().data["name"]
        start = step("docker.start.execute", container=name)
        with pytest.raises(OperationError, match=r"address already in use|port is already allocated") as error:
            start.act()
        assert not isinstance(error.value, Transient)
        start.undo()
        assert made.undo().changed


def test_stop_continues_after_the_timeout_of_the_client(
    engine: docker.APIClient, container: MakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the engine completes a stop after the client has disconnected
    name = container("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    port = DockerEngine(engine_url())
    try:
        assert port.info()
        monkeypatch.setattr(
            "longshore.tasks.host.engine.client.CALL_TIMEOUT", -2.0
        )  # a timeout one second shorter than the stop
        with pytest.raises(Transient, match="did not respond"):
            port.stop(name, 3)
        deadline = time.monotonic() + 10
        while engine.inspect_container(name)["State"]["Running"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        port.close()
        close_engine()


def test_stop_of_a_project_leaves_its_one_off_containers_running(stack: Stack) -> None:
    stack.up().act()
    params = {"project_dir": str(stack.directory), "project": stack.name, "service": "web", "command": ["sleep", "60"]}
    cancelled = threading.Event()
    run = stack.step("compose.run.execute", {"asked_to_stop": cancelled.is_set}, **params)

    def until_cancelled() -> None:
        with pytest.raises(OperationError):
            run.act()

    thread = threading.Thread(target=until_cancelled)
    thread.start()
    deadline = time.monotonic() + 20
    while len(stack.containers()) < 3 or sum(row["State"] == "running" for row in stack.containers()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stack.other("stop").act()
    running = [row["Labels"]["com.docker.compose.oneoff"] for row in stack.containers() if row["State"] == "running"]
    cancelled.set()
    thread.join()
    assert running == ["True"]
    run.undo()
    assert stack.running() == set()
