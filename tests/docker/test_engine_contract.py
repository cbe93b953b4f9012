"""One contract for both engines: the one that tests and rehearsals use, and the real one."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from longshore.orchestration.errors import OperationError, StepCancelled
from longshore.tasks.host.engine.client import DockerEngine
from longshore.tasks.host.engine.factory import engine_url
from longshore.tasks.host.engine.port import Conflict, Container, Engine, NotThere
from longshore.tasks.simulation.engine import MemoryEngine

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


def test_a_label_finds_whatever_its_value_is(port: Engine) -> None:
    name = make(port)
    found = port.rows({"label": ["lst.contract"]}, all_of_them=True)
    assert f"/{name}" in [row["Names"][0] for row in found]
    assert port.rows({"label": ["lst.nothing"]}, all_of_them=True) == []


def test_volumes_are_found_by_a_label_with_all_that_they_have(port: Engine) -> None:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    port.create_volume({"Name": name, "Labels": {name: "yes", "and": "more"}})
    try:
        assert port.labelled_volumes(name) == {name: {name: "yes", "and": "more"}}
        assert port.labelled_volumes("lst.nothing") == {}
    finally:
        port.remove_volume(name)


def test_it_is_known_whose_network_a_container_is_in(port: Engine) -> None:
    first = look(port, make(port))
    second = make(port, HostConfig={"NetworkMode": f"container:{first.id}"})
    assert look(port, second).network_mode == f"container:{first.id}"
    (row,) = port.rows({"label": [f"lst.contract={second}"]}, all_of_them=True)
    assert row["HostConfig"]["NetworkMode"] == f"container:{first.id}"


def test_what_a_container_says_is_followed_to_its_end(engine: docker.APIClient) -> None:
    real = DockerEngine(engine_url())
    said: list[tuple[int, bytes]] = []
    name = make(real, Cmd=["sh", "-c", "echo one; sleep 0.5; echo two >&2"])
    try:
        real.start(name)
        real.follow(name, lambda stream, piece: said.append((stream, piece)), lambda: False)
        assert said == [(1, b"one\n"), (2, b"two\n")]
        real.follow("lst-nothing", lambda *_: None, lambda: False)
    finally:
        engine.remove_container(name, force=True)
        real.close()


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
    from longshore.tasks.attempts.contexts import _engine

    client = _engine()
    assert client.ping()
    client.close()


# --- what came later --------------------------------------------------------------------------------


def test_rows_are_filtered_by_the_engine(port: Engine) -> None:
    name = make(port)
    port.start(name)
    label = {"label": [f"lst.contract={name}"]}
    (row,) = port.rows(label, all_of_them=False)
    assert (row["Names"], row["State"]) == ([f"/{name}"], "running")
    port.stop(name, 0)
    assert port.rows(label, all_of_them=False) == []
    assert [row["State"] for row in port.rows(label, all_of_them=True)] == ["exited"]
    assert [row["State"] for row in port.rows(label | {"status": ["exited"]}, all_of_them=False)] == ["exited"]
    other = make(port)
    port.rename(other, f"{name}0")
    found = port.rows({"name": [f"^/{name}$"]}, all_of_them=True)
    assert [row["Names"] for row in found] == [[f"/{name}"]], "and not a part of a name"


def test_the_long_answer_has_what_the_short_one_is_made_of(port: Engine) -> None:
    name = make(port)
    raw = port.raw(name)
    assert raw is not None
    assert Container.of(raw) == look(port, name)
    assert port.raw("lst-nothing") is None


def test_limits_are_changed_while_it_runs(port: Engine) -> None:
    name = make(port)
    port.update(name, {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}, "PidsLimit": 40})
    raw = port.raw(name)
    assert raw is not None
    assert (raw["HostConfig"]["RestartPolicy"]["Name"], raw["HostConfig"]["PidsLimit"]) == ("always", 40)
    with pytest.raises(NotThere):
        port.update("lst-nothing", {})


def test_a_container_is_paused_once(port: Engine) -> None:
    name = make(port)
    port.start(name)
    port.pause(name)
    assert look(port, name).paused
    with pytest.raises(OperationError):
        port.pause(name)


def test_a_program_inside_is_heard_and_its_end_is_known(port: Engine) -> None:
    name = make(port)
    with pytest.raises(Conflict, match="not running"):
        port.create_exec(name, {"Cmd": ["true"]})
    port.start(name)
    heard: list[tuple[int, bytes]] = []
    execution = port.create_exec(name, {"Cmd": ["echo", "well"]})
    port.start_exec(execution, None, lambda stream, piece: heard.append((stream, piece)), lambda: None)
    assert heard == [(1, b"well\n")]
    known = port.execution(execution)
    assert known is not None
    assert (known.running, known.exit_code) == (False, 0)
    fed = port.create_exec(name, {"Cmd": ["cat"], "AttachStdin": True})
    port.start_exec(fed, b"in", lambda _stream, piece: heard.append((1, piece)), lambda: None)
    assert heard[-1] == (1, b"in")
    failed = port.create_exec(name, {"Cmd": ["false"]})
    port.start_exec(failed, None, lambda _stream, _piece: None, lambda: None)
    known = port.execution(failed)
    assert known is not None
    assert known.exit_code == 1
    assert port.execution("0" * 64) is None


def test_files_travel_as_archives(port: Engine) -> None:
    name = make(port)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("note.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"well"))
    assert not port.has_path(name, "/note.txt")
    assert port.read_archive(name, "/note.txt", 1 << 20) is None
    port.write_archive(name, "/", data.getvalue())
    assert port.has_path(name, "/note.txt")
    archive = port.read_archive(name, "/note.txt", 1 << 20)
    assert archive is not None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.next()
        assert member is not None
        content = tar.extractfile(member)
        assert content is not None
        assert (member.name, content.read()) == ("note.txt", b"well")
    with pytest.raises(NotThere):
        port.read_archive("lst-nothing", "/note.txt", 1 << 20)


def test_an_image_knows_its_names_and_goes_with_the_last(port: Engine) -> None:
    image_id = port.image_id(IMAGE)
    assert image_id is not None
    port.tag(image_id, "lst-contract:2")
    image = port.image("lst-contract:2")
    assert image is not None
    assert (image.id, {IMAGE, "lst-contract:2"} <= set(image.tags)) == (image_id, True)
    assert port.untag("lst-contract:2")
    assert port.image("lst-contract:2") is None
    assert not port.untag("lst-contract:2")


def test_a_network_is_made_looked_at_and_removed(port: Engine) -> None:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    made = port.create_network({"Name": name, "Driver": "bridge", "Internal": True, "Labels": {"a": "b"}})
    found = port.network(name)
    assert found is not None
    assert (found["Id"], found["Driver"], found["Internal"], found["Labels"]) == (made, "bridge", True, {"a": "b"})
    with pytest.raises(Conflict):
        port.create_network({"Name": name, "Driver": "bridge"})
    assert port.remove_network(made)
    assert not port.remove_network(made)
    assert port.network(name) is None


def test_a_volume_is_made_once_and_what_is_there_stays_as_it_is(port: Engine) -> None:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    for label in ("first", "second"):
        port.create_volume({"Name": name, "Labels": {"of": label}})
    found = port.volume(name)
    assert found is not None
    assert (found["Driver"], found["Labels"]) == ("local", {"of": "first"})
    assert port.remove_volume(name)
    assert port.volume(name) is None


def test_the_engine_says_what_it_is(port: Engine) -> None:
    said = port.info()
    assert said["ID"]
    assert said["NCPU"] > 0
    assert said["MemTotal"] > 0


# --- a registry -------------------------------------------------------------------------------------


@pytest.fixture
def shelf(port: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name in a registry that the engine has no image of."""
    name = f"lst-{uuid.uuid4().hex[:8]}:1"
    if isinstance(port, MemoryEngine):
        yield name
        return
    registry = request.getfixturevalue("registry")
    yield f"{registry.host}/{name}"
    port.untag(f"{registry.host}/{name}")


def test_an_image_goes_to_a_registry_and_comes_back(port: Engine, shelf: str) -> None:
    def nobody() -> None:
        return

    image_id = port.image_id(IMAGE)
    assert image_id is not None
    with pytest.raises((NotThere, OperationError)):
        port.pull(shelf, login=None, platform=None, check=nobody)
    with pytest.raises(OperationError):
        port.push(shelf, login=None, check=nobody)
    port.tag(image_id, shelf)
    port.push(shelf, login=None, check=nobody)
    digest = port.remote_digest(shelf, login=None)
    image = port.image(shelf)
    assert image is not None
    assert any(text.endswith(f"@{digest}") for text in image.digests)
    assert port.untag(shelf)
    assert port.image(shelf) is None
    port.pull(shelf, login=None, platform=None, check=nobody)
    assert port.image_id(shelf) == image_id


def test_what_check_raises_ends_a_long_call(port: Engine, shelf: str) -> None:
    def stop() -> None:
        raise StepCancelled("enough")

    image_id = port.image_id(IMAGE)
    assert image_id is not None
    port.tag(image_id, shelf)
    with pytest.raises(StepCancelled):
        port.push(shelf, login=None, check=stop)
    port.push(shelf, login=None, check=lambda: None)
    with pytest.raises(StepCancelled):
        port.pull(shelf, login=None, platform=None, check=stop)


def test_all_images_and_what_happened_to_containers_come_in_one_call_each(port: Engine) -> None:
    began = time.time() - 1
    name = make(port)
    port.start(name)
    port.stop(name, 0)

    (row,) = port.rows({"name": [f"^/{name}$"]}, all_of_them=True)
    assert re.match(r"Exited \(\d+\) ", row["Status"])
    events = [
        one for one in port.events(("start", "die", "stop"), began, time.time()) if one["Actor"]["ID"] == row["Id"]
    ]
    assert [one["Action"] for one in events] == ["start", "die", "stop"]
    assert not [one for one in port.events(("stop",), 0.0, began) if one["Actor"]["ID"] == row["Id"]]
    assert any(image.id == port.image_id(IMAGE) and IMAGE in image.tags for image in port.images())


def test_when_an_image_was_given_a_name_last_is_known(port: Engine) -> None:
    image_id = port.image_id(IMAGE)
    assert image_id is not None
    began = time.time() - 2
    port.tag(image_id, f"{IMAGE.partition(':')[0]}:named-{os.urandom(4).hex()}")
    told = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", port.tagged_at(image_id)))
    assert began <= told.timestamp() <= time.time() + 2
    assert port.tagged_at("sha256:" + "0" * 64) == ""
