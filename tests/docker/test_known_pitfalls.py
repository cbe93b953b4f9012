"""What engines and Compose do otherwise than one would think, each once, against the real thing."""

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


def test_a_service_with_an_env_file_is_not_taken_for_changed(stack: Stack) -> None:
    # `config --hash` of the files themselves gives another hash than the containers bear
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


def test_many_who_remove_one_container_all_succeed(container: MakeContainer) -> None:
    # seven of eight are told "removal already in progress", with the code of a conflict
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


def test_a_port_that_is_taken_is_final_although_the_engine_calls_it_its_own_error(step: MakeStep) -> None:
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


def test_a_stop_that_takes_longer_than_the_client_waits_is_looked_at_and_not_repeated(
    engine: docker.APIClient, container: MakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the engine goes on stopping when nobody waits for it any more
    name = container("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    port = DockerEngine(engine_url())
    try:
        assert port.info()
        monkeypatch.setattr("longshore.tasks.host.engine.client.CALL_TIMEOUT", -2.0)  # one second less than it takes
        with pytest.raises(Transient, match="did not respond"):
            port.stop(name, 3)
        deadline = time.monotonic() + 10
        while engine.inspect_container(name)["State"]["Running"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        port.close()
        close_engine()


def test_a_container_of_compose_run_is_not_stopped_with_its_project(stack: Stack) -> None:
    stack.up().act()
    said = {"project_dir": str(stack.directory), "project": stack.name, "service": "web", "command": ["sleep", "60"]}
    enough = threading.Event()
    run = stack.step("compose.run.execute", {"asked_to_stop": enough.is_set}, **said)

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
    still = [row["Labels"]["com.docker.compose.oneoff"] for row in stack.containers() if row["State"] == "running"]
    enough.set()
    thread.join()
    assert still == ["True"]
    run.undo()
    assert stack.running() == set()
