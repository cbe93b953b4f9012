"""Undo leaves what somebody else has done in between, takes back no more than was done, and no less."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from docker.auth import INDEX_NAME

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled
from tests.conftest import ComposeProject
from tests.docker.conftest import MakeStep
from tests.docker.stack import IMAGE, SLEEP, Stack, stack
from tests.docker.test_images import NewImage, names
from tests.servers import PREFIX, SOON, Registry

if TYPE_CHECKING:
    import docker

pytestmark = pytest.mark.docker
assert stack


# --- names of images ----------------------------------------------------------------------------------


def test_a_name_that_somebody_else_has_moved_stays_where_he_has_moved_it(stack: Stack, new_image: NewImage) -> None:
    stack.up().act()
    stack.new_image()
    up = stack.up()
    up.act()
    theirs = new_image(f"{PREFIX}theirs:1")
    stack.engine.tag(theirs, stack.name, "app")
    was = {row["Id"] for row in stack.containers()}

    assert up.undo().changed

    assert stack.engine.inspect_image(stack.ref)["Id"] == theirs
    assert {stack.engine.inspect_container(row["Id"])["Image"] for row in stack.containers()} == {stack.v1}
    assert stack.ids() != was


def test_a_name_that_this_step_never_moved_is_not_given_back(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    new_image(f"{PREFIX}moved:1")
    tag = step("docker.pull.execute", image=f"{PREFIX}moved:1")
    assert tag.before  # and then its worker died
    theirs = new_image(f"{PREFIX}moved:1")
    with pytest.raises(OperationError, match="this step has no record"):
        tag.undo()
    assert engine.inspect_image(f"{PREFIX}moved:1")["Id"] == theirs


def test_an_image_that_had_no_name_is_there_after_the_undo_too(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    new_image(f"{PREFIX}nameless:1")
    made = engine.create_container(f"{PREFIX}nameless:1", ["true"])["Id"]
    image = engine.inspect_image(engine.commit(made, changes="ENV NAMELESS=1")["Id"])["Id"]
    engine.remove_container(made)
    assert not engine.inspect_image(image)["RepoTags"]
    tag = step("docker.tag.execute", image=image, name=f"{PREFIX}nameless:2")
    tag.act()
    tag.undo()
    assert engine.inspect_image(image)["Id"] == image
    assert f"{PREFIX}nameless:2" not in names(engine)


def test_the_first_of_two_images_is_given_back_when_the_second_is_not_to_be_had(
    stack: Stack, registry: Registry, step: MakeStep, new_image: NewImage
) -> None:
    ref = f"{registry.host}/{stack.name}:1"
    new_image(ref)
    step("docker.push.execute", image=ref).act()
    second = new_image(ref)
    stack.write(db={"image": ref}, web={"image": f"{registry.host}/{stack.name}:nothing"})
    was = names(stack.engine)
    for operation, said in (("compose.pull.execute", {}), ("compose.up.execute", {"pull": "always"})):
        pull = stack.step(operation, project_dir=str(stack.directory), project=stack.name, **said)
        with pytest.raises(OperationError, match="nothing") as error:
            pull.act()
        assert not isinstance(error.value, Preflight), "the first one was fetched"
        pull.undo()
        assert stack.engine.inspect_image(ref)["Id"] == second
        assert names(stack.engine) == was


def test_a_digest_is_fetched_by_its_name(step: MakeStep, registry: Registry, new_image: NewImage) -> None:
    ref = f"{registry.host}/{PREFIX}{uuid.uuid4().hex[:8]}:1"
    image = new_image(ref)
    digest = step("docker.push.execute", image=ref).act().data["digest"]
    by_digest = f"{ref.rpartition(':')[0]}@{digest}"
    assert step("docker.pull.execute", image=by_digest).act().data["image_id"] == image
    with pytest.raises(Preflight, match="is a digest"):
        step("docker.image-remove.execute", image=by_digest).act()


def test_only_the_name_that_was_given_is_taken_off(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    image = new_image(f"{PREFIX}hex:1")
    part = image.removeprefix("sha256:")[4:6]
    engine.tag(image, part, "latest")
    try:
        step("docker.image-remove.execute", image=part).act()
        assert f"{PREFIX}hex:1" in names(engine)
    finally:
        engine.tag(image, part, "latest")
        engine.remove_image(f"{part}:latest", noprune=True)
    by_id = step("docker.image-remove.execute", image=image)
    assert by_id.act().changed
    again = step("docker.image-remove.execute", image=image)
    assert again.predict().changed is False
    assert not again.act().changed
    by_id.undo()
    assert names(engine)[f"{PREFIX}hex:1"] == image


def test_an_image_that_a_project_uses_is_in_use_under_each_spelling(stack: Stack) -> None:
    stack.engine.tag(IMAGE, stack.name, "latest")
    stack.write(web={"image": stack.name}, db={"image": stack.name})
    stack.new_image()
    stack.engine.tag(f"{stack.name}:app", stack.name, "latest")
    stack.engine.remove_image(f"{stack.name}:app", force=True)
    stack.up().act()
    for spelled in (stack.name, f"{stack.name}:latest", f"{INDEX_NAME}/library/{stack.name}"):
        remove = stack.step("docker.image-remove.execute", image=spelled)
        assert remove.predict().impossible, spelled
        with pytest.raises(Preflight, match="is used by"):
            remove.act()


def test_a_pull_that_is_cancelled_before_the_registry_answers_does_not_go_on(
    engine: docker.APIClient, step: MakeStep, registry: Registry, new_image: NewImage
) -> None:
    # Given a registry that takes its time, behind a proxy that counts its connections
    ref_there = f"{registry.host}/{PREFIX}slow:1"
    new_image(ref_there)
    step("docker.push.execute", image=ref_there).act()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", registry.port)) as server:
            asked = client.recv(65536)
            if b"/manifests/" in asked:
                time.sleep(3)
            server.sendall(asked)
            server.settimeout(1)
            try:
                while chunk := server.recv(65536):
                    client.sendall(chunk)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    ref = f"127.0.0.1:{listening.getsockname()[1]}/{PREFIX}slow:1"
    stop_at = time.monotonic() + 1
    pull = step("docker.pull.execute", {"asked_to_stop": lambda: time.monotonic() > stop_at}, image=ref)
    try:
        with pytest.raises(StepCancelled):
            pull.act()
        assert time.monotonic() - stop_at < SOON
        pull.again(1, asked_to_stop=lambda: False).undo()
        time.sleep(4)
        assert ref not in names(engine)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


# --- networks -----------------------------------------------------------------------------------------


def test_a_network_with_a_stopped_container_in_it_is_in_use(engine: docker.APIClient, step: MakeStep) -> None:
    name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
    create = step("docker.network-create.execute", name=name)
    create.act()
    made = step("docker.create.execute", image=IMAGE, command=SLEEP, networks=[name])
    container = made.act().data["name"]
    with pytest.raises(OperationError, match=container):
        create.undo()
    with pytest.raises(Preflight, match=container):
        step("docker.network-remove.execute", name=name).act()
    network_id = engine.inspect_network(name)["Id"]
    by_part = step("docker.network-remove.execute", name=network_id[:6])
    assert not by_part.act().changed, "the beginning of an id is no name"
    made.undo()
    create.undo()
    assert engine.networks(names=[name]) == []


# --- projects -----------------------------------------------------------------------------------------


def test_replicas_come_back_also_where_their_numbers_had_a_gap(stack: Stack) -> None:
    stack.write(web={"deploy": {"replicas": 2}})
    stack.up().act()
    stack.engine.remove_container(f"{stack.name}-web-1", force=True)
    down = stack.other("down")
    down.act()
    down.undo()
    assert stack.running() == {"db", "web"}
    assert len(stack.containers()) == 2
    assert not down.undo().changed


@pytest.mark.parametrize("name", ["a___b", "a_-b", "a-"])
def test_a_project_may_be_called_what_no_repository_may(
    engine: docker.APIClient, compose_project: ComposeProject, step: MakeStep, name: str
) -> None:
    odd = ComposeProject(f"{compose_project.name}{name}", compose_project.directory)
    plan = {"services": {"web": {"image": IMAGE, "init": True, "command": SLEEP}}}
    (odd.directory / "compose.yml").write_text(json.dumps(plan))
    said: dict[str, Any] = {"project_dir": str(odd.directory), "project": odd.name, "min_healthy_time": 0}
    up = step("compose.up.execute", **said)
    try:
        assert up.act().changed
        down = step("compose.down.execute", project=odd.name)
        down.act()
        down.undo()
        assert up.undo().changed
    finally:
        for row in engine.containers(all=True, filters={"label": f"com.docker.compose.project={odd.name}"}):
            engine.remove_container(row["Id"], force=True)
    for tag in names(engine):
        if compose_project.name.replace("_", "-") in tag or compose_project.name in tag:
            engine.remove_image(tag, noprune=True)


def test_an_undo_knows_what_each_of_its_attempts_has_brought(stack: Stack) -> None:
    stack.up().act()
    was = stack.look()
    stack.write(web={"environment": {"TAG": "2"}})
    up = stack.up()
    up.act()  # and its worker dies before it can say so; then the files change
    stack.write(web={"environment": {"TAG": "3"}})
    stop = {"asked_to_stop": lambda: True}
    with pytest.raises(StepCancelled):
        up.again(2, **stop).act()
    assert up.undo().changed
    assert stack.look() == was


def test_a_revision_is_what_ran_also_where_only_a_part_was_brought_up(stack: Stack) -> None:
    stack.up().act()
    was = stack.look()
    stack.write(web={"environment": {"TAG": "2"}}, db={"environment": {"NEW": "1"}})
    stack.up(services=["web"]).act()  # web depends on db, so both
    stack.write(web={"environment": {"TAG": "3"}}, db={"environment": {"NEW": "2"}})
    stack.other("rollback", to=1, min_healthy_time=0).act()
    assert stack.look()["containers"] == was["containers"]
    stack.write(web={"environment": {"TAG": "4"}}, db={"environment": {"NEW": "3"}, "depends_on": []})
    stack.up(services=["db"]).act()
    part = stack.look()
    stack.write()
    stack.up().act()
    newest = stack.step("compose.ps.get", project=stack.name).act().data["revisions"][-2]["number"]
    stack.other("rollback", to=newest, min_healthy_time=0).act()
    assert stack.look()["containers"] == part["containers"]


def test_rollback_brings_back_as_many_as_there_were(stack: Stack) -> None:
    stack.write(web={"deploy": {"replicas": 2}})
    stack.up().act()
    stack.write()
    stack.up().act()
    back = stack.other("rollback", to=1, min_healthy_time=0)
    assert back.predict().changed is True
    assert back.act().changed
    assert len(stack.containers()) == 3
    back.undo()
    assert len(stack.containers()) == 2


def test_a_container_of_a_profile_is_no_orphan(stack: Stack) -> None:
    stack.write(debug={"profiles": ["debug"]})
    stack.up(profiles=["debug"]).act()
    up = stack.up(remove_orphans=True)
    assert up.predict().changed is False
    assert not up.act().changed
    assert stack.running() == {"db", "web", "debug"}


def test_what_a_run_is_given_is_its_own_and_no_part_of_the_files(stack: Stack) -> None:
    stack.up().act()
    said = {"project_dir": str(stack.directory), "project": stack.name, "service": "web"}
    env = {"HOME": "/wanted", "TAG": "7", "MONEY": "5$ and ${HOME}"}
    run = stack.step("compose.run.execute", **said, command=["sh", "-c", 'echo "$HOME|$TAG|$MONEY"'], env=env)
    assert run.act().data["stdout"] == "/wanted|7|5$ and ${HOME}\n"
    run.undo()


def test_a_job_that_ends_meanwhile_holds_up_no_undo(stack: Stack) -> None:
    job = {"command": ["sleep", "2"]}
    wait = {
        "depends_on": {"db": {"condition": "service_started"}, "job": {"condition": "service_completed_successfully"}}
    }
    stack.write(job=job, web=wait)
    stack.up(healthy_deadline=30).act()
    stack.engine.start(stack.container("job"))
    stop = stack.other("stop", grace=0)
    stop.act()
    assert stop.undo().changed
    assert {"db", "web"} <= stack.running()
