"""One contract for both engines: the one that tests and rehearsals use, and the real one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from longshore.tasks.engine import Conflict, Container, Engine, NotThere, engine_url
from longshore.tasks.engine.client import DockerEngine
from longshore.tasks.engine.memory import MemoryEngine

if TYPE_CHECKING:
    import docker

IMAGE = "longshore-test:1"
pytestmark = pytest.mark.docker


@pytest.fixture(params=["memory", "real"])
def port(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "memory":
        made = MemoryEngine()
        made.add_image(IMAGE)
        yield made
        return
    engine: docker.APIClient = request.getfixturevalue("engine")
    real = DockerEngine(engine_url())
    yield real
    for row in engine.containers(all=True, filters={"label": "lst.contract"}):
        engine.remove_container(row["Id"], force=True, v=True)
    with contextlib.suppress(NotThere):
        real.untag("lst-contract:2")
    real.close()


def make(port: Engine, **config: object) -> str:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    body = {"Image": IMAGE, "Cmd": ["sleep", "600"], "Labels": {"lst.contract": name}, "HostConfig": {"Init": True}}
    port.create(name, body | config)
    return name


def look(port: Engine, name: str) -> Container:
    found = port.inspect(name)
    assert found is not None
    return found


def test_a_container_is_made_started_stopped_and_removed(port: Engine) -> None:
    name = make(port)
    made = look(port, name)
    assert (made.name, made.status, made.running, made.started_at) == (name, "created", False, None)
    assert look(port, made.id) == made
    assert look(port, made.id[:12]) == made

    assert port.start(name)
    assert not port.start(name), "it runs already"
    started = look(port, name)
    assert (started.status, started.running) == ("running", True)
    assert started.started_at is not None

    assert port.stop(name, 1)
    assert not port.stop(name, 1)
    assert (look(port, name).status, look(port, name).running) == ("exited", False)
    assert look(port, name).started_at == started.started_at

    assert port.remove(name)
    assert not port.remove(name)
    assert port.inspect(name) is None


def test_what_is_not_there_is_none_for_a_look_and_an_error_for_an_act(port: Engine) -> None:
    assert port.inspect("lst-nothing") is None
    assert port.image_id("lst-nothing:1") is None
    for act in (port.start, port.stop, port.pause):
        with pytest.raises(NotThere):
            act("lst-nothing")
    with pytest.raises(NotThere):
        port.create("lst-x", {"Image": "lst-nothing:1"})


def test_a_name_is_one_containers(port: Engine) -> None:
    name = make(port)
    with pytest.raises(Conflict):
        port.create(name, {"Image": IMAGE})
    other = make(port)
    with pytest.raises(Conflict):
        port.rename(other, name)
    port.rename(other, f"{other}-x")
    assert look(port, f"{other}-x").name == f"{other}-x"
    assert port.inspect(other) is None


def test_labels_find_containers_stopped_ones_too(port: Engine) -> None:
    name = make(port)
    assert [found.name for found in port.containers({"lst.contract": name})] == [name]
    assert port.containers({"lst.contract": "another"}) == []


def test_pause_and_restart_policy(port: Engine) -> None:
    name = make(port)
    with pytest.raises(Conflict):
        port.pause(name)
    port.start(name)
    port.pause(name)
    assert (look(port, name).paused, look(port, name).status) == (True, "paused")
    port.set_restart(name, {"Name": "on-failure", "MaximumRetryCount": 3})
    assert look(port, name).restart_policy == {"Name": "on-failure", "MaximumRetryCount": 3}


def test_an_image_has_names(port: Engine) -> None:
    image = port.image_id(IMAGE)
    assert image is not None
    assert port.image_id(image) == image
    port.tag(image, "lst-contract:2")
    assert port.image_id("lst-contract:2") == image
    assert port.untag("lst-contract:2")
    assert port.image_id("lst-contract:2") is None
    assert not port.untag("lst-contract:2")


def test_functions_have_the_sdks_own_client(engine: docker.APIClient) -> None:
    from longshore.tasks.attempt import _engine

    client = _engine()
    assert client.ping()
    client.close()
