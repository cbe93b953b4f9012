"""Compensation after changes outside of the run, and the exact extent of each undo."""

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


def test_undo_of_up_leaves_a_tag_that_was_moved_outside_of_the_run(stack: Stack, new_image: NewImage) -> None:
    stack.up().act()
    stack.new_image()
    up = stack.up()
    up.act()
    foreign_image = new_image(f"{PREFIX}foreign:1")
    stack.engine.tag(foreign_image, stack.name, "app")
    was = {row["Id"] for row in stack.containers()}

    assert up.undo().changed

    assert stack.engine.inspect_image(stack.ref)["Id"] == foreign_image
    assert {stack.engine.inspect_container(row["Id"])["Image"] for row in stack.containers()} == {stack.v1}
    assert stack.ids() != was


def test_undo_of_a_pull_leaves_a_tag_that_the_step_did_not_move(
    engine: docker.APIClient, step: MakeStep, new_image: NewImage
) -> None:
    new_image(f"{PREFIX}moved:1")
    tag = step("docker.pull.execute", image=f"{PREFIX}moved:1")
    assert tag.before  # the journal; the attempt is then lost
    foreign_image = new_image(f"{PREFIX}moved:1")
    with pytest.raises(OperationError, match="this step has no record"):
        tag.undo()
    assert engine.inspect_image(f"{PREFIX}moved:1")["Id"] == foreign_image


def test_undo_of_tag_leaves_an_image_without_tags(
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


def test_undo_restores_the_pulled_image_after_the_pull_of_another_fails(
    stack: Stack, registry: Registry, step: MakeStep, new_image: NewImage
) -> None:
    ref = f"{registry.host}/{stack.name}:1"
    new_image(ref)
    step("docker.push.execute", image=ref).act()
    second = new_image(ref)
    stack.write(db={"image": ref}, web={"image": f"{registry.host}/{stack.name}:nothing"})
    was = names(stack.engine)
    for operation, params in (("compose.pull.execute", {}), ("compose.up.execute", {"pull": "always"})):
        pull = stack.step(operation, project_dir=str(stack.directory), project=stack.name, **params)
        with pytest.raises(OperationError, match="nothing") as error:
            pull.act()
        assert not isinstance(error.value, Preflight), "the first image was pulled"
        pull.undo()
        assert stack.engine.inspect_image(ref)["Id"] == second
        assert names(stack.engine) == was


def test_pull_by_digest(step: MakeStep, registry: Registry, new_image: NewImage) -> None:
    ref = f"{registry.host}/{PREFIX}{uuid.uuid4().hex[:8]}:1"
    image = new_image(ref)
    digest = step("docker.push.execute", image=ref).act().data["digest"]
    by_digest = f"{ref.rpartition(':')[0]}@{digest}"
    assert step("docker.pull.execute", image=by_digest).act().data["image_id"] == image
    with pytest.raises(Preflight, match="is a digest"):
        step("docker.image-remove.execute", image=by_digest).act()


def test_image_remove_removes_only_the_given_tag(engine: docker.APIClient, step: MakeStep, new_image: NewImage) -> None:
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


def test_image_in_use_is_recognised_under_each_spelling(stack: Stack) -> None:
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


def test_pull_does_not_continue_after_a_cancel(
    engine: docker.APIClient, step: MakeStep, registry: Registry, new_image: NewImage
) -> None:
    # Given a slow registry
    ref_there = f"{registry.host}/{PREFIX}slow:1"
    new_image(ref_there)
    step("docker.push.execute", image=ref_there).act()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", registry.port)) as server:
            request = client.recv(65536)
            if b"/manifests/" in request:
                time.sleep(3)
            server.sendall(request)
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


def test_network_of_a_stopped_container_is_in_use(engine: docker.APIClient, step: MakeStep) -> None:
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
    assert not by_part.act().changed, "a prefix of an id is not a name"
    made.undo()
    create.undo()
    assert engine.networks(names=[name]) == []


# --- projects -----------------------------------------------------------------------------------------


def test_undo_of_down_restores_replicas_with_a_gap_in_their_numbers(stack: Stack) -> None:
    stack.write(web={"deploy": {"replicas": 2}})
    stack.up().act()
    stack.engine.remove_container(f"{stack.name}-web-1", force=True)
    down = stack.other("down")
    down.act()
    down.undo()
    assert stack.running() == {"db", "web"}
    assert len(stack.containers()) == 2
    assert not down.undo().changed


def test_project_name_may_be_an_invalid_repository_name(
    engine: docker.APIClient, compose_project: ComposeProject, step: MakeStep
) -> None:
    odd = ComposeProject(f"{compose_project.name}a_-b___c-", compose_project.directory)
    plan = {"services": {"web": {"image": IMAGE, "init": True, "command": SLEEP}}}
    (odd.directory / "compose.yml").write_text(json.dumps(plan))
    params: dict[str, Any] = {"project_dir": str(odd.directory), "project": odd.name, "min_healthy_time": 0}
    up = step("compose.up.execute", **params)
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


def test_undo_restores_the_state_from_before_the_first_attempt(stack: Stack) -> None:
    stack.up().act()
    was = stack.state()
    stack.write(web={"environment": {"TAG": "2"}})
    up = stack.up()
    up.act()  # without a recorded outcome; then the files change
    stack.write(web={"environment": {"TAG": "3"}})
    stop = {"asked_to_stop": lambda: True}
    with pytest.raises(StepCancelled):
        up.again(2, **stop).act()
    assert up.undo().changed
    assert stack.state() == was


def test_revision_after_a_partial_up_is_the_running_state(stack: Stack) -> None:
    stack.up().act()
    was = stack.state()
    stack.write(web={"environment": {"TAG": "2"}}, db={"environment": {"NEW": "1"}})
    stack.up(services=["web"]).act()  # also recreates db, a dependency of web
    stack.write(web={"environment": {"TAG": "3"}}, db={"environment": {"NEW": "2"}})
    stack.other("rollback", to=1, min_healthy_time=0).act()
    assert stack.state()["containers"] == was["containers"]
    stack.write(web={"environment": {"TAG": "4"}}, db={"environment": {"NEW": "3"}, "depends_on": []})
    stack.up(services=["db"]).act()
    part = stack.state()
    stack.write()
    stack.up().act()
    newest = stack.step("compose.ps.get", project=stack.name).act().data["revisions"][-2]["number"]
    stack.other("rollback", to=newest, min_healthy_time=0).act()
    assert stack.state()["containers"] == part["containers"]


def test_rollback_restores_the_number_of_replicas(stack: Stack) -> None:
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


def test_container_of_a_profile_is_not_an_orphan(stack: Stack) -> None:
    stack.write(debug={"profiles": ["debug"]})
    stack.up(profiles=["debug"]).act()
    up = stack.up(remove_orphans=True)
    assert up.predict().changed is False
    assert not up.act().changed
    assert stack.running() == {"db", "web", "debug"}


def test_env_of_compose_run_is_not_interpolated(stack: Stack) -> None:
    stack.up().act()
    params = {"project_dir": str(stack.directory), "project": stack.name, "service": "web"}
    env = {"HOME": "/wanted", "TAG": "7", "MONEY": "5$ and ${HOME}"}
    run = stack.step("compose.run.execute", **params, command=["sh", "-c", 'echo "$HOME|$TAG|$MONEY"'], env=env)
    assert run.act().data["stdout"] == "/wanted|7|5$ and ${HOME}\n"
    run.undo()


def test_undo_of_stop_does_not_wait_for_a_completed_one_off_service(stack: Stack) -> None:
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
