"""The contract of both engines: the engine in memory and the Docker engine."""

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


def inspect(port: Engine, name: str) -> Container:
    found = port.inspect(name)
    assert found is not None
    return found


def test_container_is_created_started_stopped_and_removed(port: Engine) -> None:
    name = make(port)
    made = inspect(port, name)
    assert (made.name, made.status, made.running, made.started_at) == (name, "created", False, None)
    assert inspect(port, made.id) == made
    assert inspect(port, made.id[:12]) == made

    assert port.start(name)
    assert not port.start(name), "the container runs"
    started = inspect(port, name)
    assert (started.status, started.running) == ("running", True)
    assert started.started_at is not None

    assert port.stop(name, 1)
    assert not port.stop(name, 1)
    assert (inspect(port, name).status, inspect(port, name).running) == ("exited", False)
    assert inspect(port, name).started_at == started.started_at

    assert port.remove(name)
    assert not port.remove(name)
    assert port.inspect(name) is None


def test_missing_object_is_none_for_a_query_and_an_error_for_a_change(port: Engine) -> None:
    assert port.inspect("lst-nothing") is None
    assert port.image_id("lst-nothing:1") is None
    for act in (port.start, port.stop, port.pause):
        with pytest.raises(NotThere):
            act("lst-nothing")
    with pytest.raises(NotThere):
        port.create("lst-x", {"Image": "lst-nothing:1"})


def test_container_name_is_unique(port: Engine) -> None:
    name = make(port)
    with pytest.raises(Conflict):
        port.create(name, {"Image": IMAGE})
    other = make(port)
    with pytest.raises(Conflict):
        port.rename(other, name)
    port.rename(other, f"{other}-x")
    assert inspect(port, f"{other}-x").name == f"{other}-x"
    assert port.inspect(other) is None


def test_label_filter_finds_stopped_containers(port: Engine) -> None:
    name = make(port)
    assert [found.name for found in port.containers({"lst.contract": name})] == [name]
    assert port.containers({"lst.contract": "another"}) == []


def test_label_filter_without_a_value_matches_any_value(port: Engine) -> None:
    name = make(port)
    found = port.rows({"label": ["lst.contract"]}, all_of_them=True)
    assert f"/{name}" in [row["Names"][0] for row in found]
    assert port.rows({"label": ["lst.nothing"]}, all_of_them=True) == []


def test_labelled_volumes_returns_all_labels_of_a_volume(port: Engine) -> None:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    port.create_volume({"Name": name, "Labels": {name: "yes", "and": "more"}})
    try:
        assert port.labelled_volumes(name) == {name: {name: "yes", "and": "more"}}
        assert port.labelled_volumes("lst.nothing") == {}
    finally:
        port.remove_volume(name)


def test_network_mode_names_the_other_container(port: Engine) -> None:
    first = inspect(port, make(port))
    second = make(port, HostConfig={"NetworkMode": f"container:{first.id}"})
    assert inspect(port, second).network_mode == f"container:{first.id}"
    (row,) = port.rows({"label": [f"lst.contract={second}"]}, all_of_them=True)
    assert row["HostConfig"]["NetworkMode"] == f"container:{first.id}"


def test_follow_returns_the_output_until_the_end_of_the_container(engine: docker.APIClient) -> None:
    real = DockerEngine(engine_url())
    printed: list[tuple[int, bytes]] = []
    name = make(real, Cmd=["sh", "-c", "echo one; sleep 0.5; echo two >&2"])
    try:
        real.start(name)
        real.follow(name, lambda stream, piece: printed.append((stream, piece)), lambda: False)
        assert printed == [(1, b"one\n"), (2, b"two\n")]
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
    assert (inspect(port, name).paused, inspect(port, name).status) == (True, "paused")
    with pytest.raises(OperationError):
        port.pause(name)
    port.set_restart(name, {"Name": "on-failure", "MaximumRetryCount": 3})
    assert inspect(port, name).restart_policy == {"Name": "on-failure", "MaximumRetryCount": 3}


def test_tag_and_untag_change_the_names_of_an_image(port: Engine) -> None:
    image = port.image_id(IMAGE)
    assert image is not None
    assert port.image_id(image) == image
    port.tag(image, "lst-contract:2")
    assert port.image_id("lst-contract:2") == image
    tagged = port.image("lst-contract:2")
    assert tagged is not None
    assert (tagged.id, {IMAGE, "lst-contract:2"} <= set(tagged.tags)) == (image, True)
    assert port.untag("lst-contract:2")
    assert port.image_id("lst-contract:2") is None
    assert port.image("lst-contract:2") is None
    assert not port.untag("lst-contract:2")


def test_context_of_functions_has_a_client_of_the_docker_sdk(engine: docker.APIClient) -> None:
    from longshore.tasks.attempts.contexts import _engine

    client = _engine()
    assert client.ping()
    client.close()


# --- lists, limits, exec, files, networks, volumes --------------------------------------------------
def test_rows_are_filtered_by_label_status_and_name(port: Engine) -> None:
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
    assert [row["Names"] for row in found] == [[f"/{name}"]], "the filter matches whole names"


def test_raw_description_and_inspect_agree(port: Engine) -> None:
    name = make(port)
    raw = port.raw(name)
    assert raw is not None
    assert Container.of(raw) == inspect(port, name)
    assert port.raw("lst-nothing") is None


def test_update_changes_limits_of_a_container(port: Engine) -> None:
    name = make(port)
    port.update(name, {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}, "PidsLimit": 40})
    raw = port.raw(name)
    assert raw is not None
    assert (raw["HostConfig"]["RestartPolicy"]["Name"], raw["HostConfig"]["PidsLimit"]) == ("always", 40)
    with pytest.raises(NotThere):
        port.update("lst-nothing", {})


def test_exec_returns_output_and_exit_code(port: Engine) -> None:
    name = make(port)
    with pytest.raises(Conflict, match="not running"):
        port.create_exec(name, {"Cmd": ["true"]})
    port.start(name)
    printed: list[tuple[int, bytes]] = []
    execution = port.create_exec(name, {"Cmd": ["echo", "well"]})
    port.start_exec(execution, None, lambda stream, piece: printed.append((stream, piece)), lambda: None)
    assert printed == [(1, b"well\n")]
    known = port.execution(execution)
    assert known is not None
    assert (known.running, known.exit_code) == (False, 0)
    fed = port.create_exec(name, {"Cmd": ["cat"], "AttachStdin": True})
    port.start_exec(fed, b"in", lambda _stream, piece: printed.append((1, piece)), lambda: None)
    assert printed[-1] == (1, b"in")
    failed = port.create_exec(name, {"Cmd": ["false"]})
    port.start_exec(failed, None, lambda _stream, _piece: None, lambda: None)
    known = port.execution(failed)
    assert known is not None
    assert known.exit_code == 1
    assert port.execution("0" * 64) is None


def test_files_are_copied_as_archives(port: Engine) -> None:
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


def test_network_is_created_inspected_and_removed(port: Engine) -> None:
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


def test_create_of_an_existing_volume_changes_nothing(port: Engine) -> None:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    for label in ("first", "second"):
        port.create_volume({"Name": name, "Labels": {"of": label}})
    found = port.volume(name)
    assert found is not None
    assert (found["Driver"], found["Labels"]) == ("local", {"of": "first"})
    assert port.remove_volume(name)
    assert port.volume(name) is None


def test_info_describes_the_engine(port: Engine) -> None:
    info = port.info()
    assert info["ID"]
    assert info["NCPU"] > 0
    assert info["MemTotal"] > 0


# --- a registry -------------------------------------------------------------------------------------


@pytest.fixture
def remote_ref(port: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """An image name in a registry. The engine has no image of this name."""
    name = f"lst-{uuid.uuid4().hex[:8]}:1"
    if isinstance(port, MemoryEngine):
        yield name
        return
    registry = request.getfixturevalue("registry")
    yield f"{registry.host}/{name}"
    port.untag(f"{registry.host}/{name}")


def test_image_is_pushed_and_pulled(port: Engine, remote_ref: str) -> None:
    def no_check() -> None:
        return

    image_id = port.image_id(IMAGE)
    assert image_id is not None
    with pytest.raises((NotThere, OperationError)):
        port.pull(remote_ref, login=None, platform=None, check=no_check)
    with pytest.raises(OperationError):
        port.push(remote_ref, login=None, check=no_check)
    port.tag(image_id, remote_ref)
    port.push(remote_ref, login=None, check=no_check)
    digest = port.remote_digest(remote_ref, login=None)
    image = port.image(remote_ref)
    assert image is not None
    assert any(text.endswith(f"@{digest}") for text in image.digests)
    assert port.untag(remote_ref)
    assert port.image(remote_ref) is None
    port.pull(remote_ref, login=None, platform=None, check=no_check)
    assert port.image_id(remote_ref) == image_id


def test_exception_of_check_ends_push_and_pull(port: Engine, remote_ref: str) -> None:
    def stop() -> None:
        raise StepCancelled("cancelled")

    image_id = port.image_id(IMAGE)
    assert image_id is not None
    port.tag(image_id, remote_ref)
    with pytest.raises(StepCancelled):
        port.push(remote_ref, login=None, check=stop)
    port.push(remote_ref, login=None, check=lambda: None)
    with pytest.raises(StepCancelled):
        port.pull(remote_ref, login=None, platform=None, check=stop)


def test_images_and_container_events_are_listed(port: Engine) -> None:
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


def test_tagged_at_is_the_time_of_the_last_tag(port: Engine) -> None:
    image_id = port.image_id(IMAGE)
    assert image_id is not None
    began = time.time() - 2
    port.tag(image_id, f"{IMAGE.partition(':')[0]}:named-{os.urandom(4).hex()}")
    tagged = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", port.tagged_at(image_id)))
    assert began <= tagged.timestamp() <= time.time() + 2
    assert port.tagged_at("sha256:" + "0" * 64) == ""
