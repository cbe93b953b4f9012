"""The operations `compose.*`: changes, compensation, repeated deliveries and predictions."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, Transient
from longshore.orchestration.operations import find
from longshore.tasks.host.engine.factory import close_engine
from tests.docker.conftest import Step
from tests.docker.stack import SLEEP, Stack, stack, trio
from tests.servers import SOON

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.docker

assert stack
assert trio

# --- up -----------------------------------------------------------------------------------------------


def test_first_up_starts_the_stack_and_its_undo_removes_all_but_volumes(stack: Stack) -> None:
    was = stack.state()
    up = stack.up()
    prediction = up.predict()
    assert (prediction.changed, prediction.impossible) == (True, None)
    assert "web: missing" in prediction.action
    assert stack.state() == was

    outcome = up.act()

    assert outcome.changed
    assert len(outcome.data["created"]) == 2
    assert stack.running() == {"db", "web"}
    second = stack.up()
    assert second.predict().changed is False
    ids = stack.ids()
    assert not second.act().changed
    assert not second.undo().changed
    assert stack.ids() == ids

    assert up.undo().changed
    assert stack.state() == was | {"volumes": [f"{stack.name}_data"]}
    assert not up.undo().changed


def test_undo_of_a_release_restores_configuration_images_and_running_services(trio: Stack) -> None:
    # Given a stack with a stopped service, and a change of its file and its image
    trio.up().act()
    trio.engine.stop(trio.container("jobs"))
    was, ids = trio.state(), trio.ids()
    image = trio.new_image()
    tags = trio.state()["tags"]
    trio.write(web={"environment": {"TAG": "2"}}, extra={"command": SLEEP})

    # When the release runs
    up = trio.up()
    prediction = up.predict()
    assert prediction.undo == "restore the former configuration and images"
    outcome = up.act()

    # Then all containers are new
    assert outcome.changed
    assert len(outcome.data["recreated"]) == 3
    assert outcome.data["created"] == [f"{trio.name}-extra-1"]
    assert {row["ImageID"] for row in trio.containers()} == {image}
    assert not ids & trio.ids()

    # And its undo restores the containers, and the tags from before the step
    assert up.undo().changed
    assert trio.state() == was | {"tags": tags}
    assert not up.undo().changed


def test_prediction_of_up_names_the_change_of_each_service(trio: Stack) -> None:
    trio.up().act()
    trio.write(web={"environment": {"TAG": "2"}})
    trio.engine.stop(trio.container("jobs"))
    was = trio.ids()

    prediction = trio.up().predict()

    assert prediction.changed is True
    assert "web: configuration changed" in prediction.action
    assert "jobs: not running" in prediction.action
    assert " db:" not in prediction.action
    assert trio.ids() == was


def test_up_changes_only_the_named_services_and_their_dependencies(stack: Stack) -> None:
    up = stack.up(services=["web"])
    up.act()
    assert stack.running() == {"web", "db"}
    assert up.undo().changed
    assert stack.running() == set()


def test_concurrent_deliveries_of_up_create_one_stack(stack: Stack) -> None:
    up = stack.up()
    outcomes = up.act_concurrently()
    assert all(outcome.changed for outcome in outcomes)
    assert len(stack.containers()) == 2
    assert stack.state()["networks"] == [f"{stack.name}_default"]


def test_next_attempt_completes_a_killed_up(stack: Stack) -> None:
    stack.up().act()
    was = stack.state()
    stack.write(web={"command": ["sleep", "601"]}, db={"command": ["sleep", "601"]})
    up = stack.up()
    _kill_during_recreate(stack, up)

    assert up.again(2).act().changed
    assert stack.running() == {"db", "web"}
    assert up.undo().changed
    assert stack.state() == was


def test_undo_of_a_killed_up_restores_the_stack(stack: Stack) -> None:
    stack.up().act()
    was = stack.state()
    stack.write(web={"command": ["sleep", "601"]}, db={"command": ["sleep", "601"]})
    up = stack.up()
    _kill_during_recreate(stack, up)

    assert up.undo().changed
    assert stack.state() == was


def _kill_during_recreate(stack: Stack, up: Step) -> None:
    """Kill Compose as soon as the first old container is removed or renamed."""
    old = stack.ids()
    _ = up.before

    def act() -> None:
        with pytest.raises(OperationError):
            up.act()
        close_engine()

    worker = threading.Thread(target=act)
    worker.start()
    while stack.ids() == old:
        time.sleep(0.002)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"up" in words and stack.name.encode() in words:
            os.kill(int(folder.name), 9)
    worker.join()


def test_service_that_exits_within_min_healthy_time_fails_the_step(stack: Stack) -> None:
    stack.write(web={"command": ["sh", "-c", "sleep 1; echo out of luck >&2; exit 4"]})
    with pytest.raises(OperationError, match=r"web-1 exited with code 4: out of luck"):
        stack.up(min_healthy_time="2s").act()


def test_crash_loop_fails_at_the_healthy_deadline(stack: Stack) -> None:
    stack.write(web={"command": ["false"], "restart": "always"})
    with pytest.raises(OperationError, match=r"not healthy after 2 s.*web-1"):
        stack.up(healthy_deadline="2s", min_healthy_time="1s").act()


def test_up_accepts_a_completed_dependency(stack: Stack) -> None:
    done = {"migrate": {"condition": "service_completed_successfully"}}
    stack.write(migrate={"command": ["true"]}, web={"depends_on": done})
    up = stack.up()
    assert up.act().changed
    ended = stack.engine.inspect_container(stack.container("migrate"))["State"]["FinishedAt"]
    second = stack.up()
    assert second.predict().changed is False
    assert not second.act().changed
    assert stack.engine.inspect_container(stack.container("migrate"))["State"]["FinishedAt"] == ended


def test_cancelled_up_ends_soon(stack: Stack) -> None:
    check = {"test": ["CMD", "false"], "interval": "60s"}
    stack.write(web={"healthcheck": check})
    stop_at = time.monotonic() + 2
    up = stack.up(context={"asked_to_stop": lambda: time.monotonic() > stop_at})
    with pytest.raises(StepCancelled):
        up.act()
    assert time.monotonic() - stop_at < SOON
    up.again(1, asked_to_stop=lambda: False).undo()
    assert stack.containers() == []


def test_undo_refuses_a_service_that_was_changed_outside_of_the_run(stack: Stack) -> None:
    stack.up().act()
    stack.write(web={"environment": {"TAG": "2"}})
    up = stack.up()
    up.act()
    stack.write(web={"environment": {"TAG": "by hand"}})
    stack.up(services=["web"]).act()
    ids = stack.ids()

    with pytest.raises(OperationError, match=r"service web of project .* was changed outside of this run"):
        up.undo()
    assert stack.ids() == ids


def test_undo_restores_a_manually_started_stack_from_its_files(stack: Stack) -> None:
    environment = os.environ | {"DOCKER_HOST": os.environ["LONGSHORE_DOCKER_HOST"]}
    command = ["docker", "compose", "-p", stack.name, "up", "-d"]
    subprocess.run(command, cwd=stack.directory, env=environment, check=True, capture_output=True)
    was = stack.state()
    stack.new_image()
    tags = stack.state()["tags"]

    up = stack.step("compose.up.execute", project=stack.name, min_healthy_time=0)
    assert len(up.act().data["recreated"]) == 2
    assert up.undo().changed
    assert stack.state() == was | {"tags": tags}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"compose.yml": "services: {web: {image: '${NOWHERE}'}}"}, "NOWHERE"),
        ({"compose.yml": "services: [\n"}, "compose config"),
        ({"compose.yml": "services: {web: {imago: x}}"}, "imago"),
        ({"compose.yml": "services: {web: {image: longshore-nowhere:1}}"}, "longshore-nowhere:1"),
        ({}, "compose config"),
    ],
)
def test_invalid_files_fail_before_the_first_change(stack: Stack, files: dict[str, str], why: str) -> None:
    for path in stack.directory.iterdir():
        path.unlink()
    for name, text in files.items():
        (stack.directory / name).write_text(text)
    up = stack.up()
    assert why in str(up.predict().impossible)
    with pytest.raises(Preflight, match=why) as caught:
        up.act()
    assert "\n" not in str(caught.value)
    assert stack.containers() == []
    later = stack.up(context={"has_upstream": True}).predict()
    assert (later.changed, later.impossible) == (None, None)


def test_error_of_an_unknown_service_names_the_known_services(stack: Stack) -> None:
    with pytest.raises(Preflight, match=r"has no service 'wob'.*db, web"):
        _ = stack.up(services=["wob"]).before


def test_revision_file_is_readable_only_by_the_worker(stack: Stack) -> None:
    revision = Path(stack.up().act().data["revision"])
    assert revision.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "params", [{}, {"project_dir": "here"}, {"project": "Shop"}, {"project": "shop", "colour": "red"}]
)
def test_invalid_parameters_of_up_are_rejected(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find("compose.up.execute").params.model_validate(params)


# --- down ---------------------------------------------------------------------------------------------


def test_down_removes_the_stack_and_its_undo_restores_the_running_services(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("jobs"))
    was = trio.state()
    down = trio.other("down")
    assert down.predict().changed is True
    assert trio.state() == was

    assert down.act().changed
    assert trio.containers() == []
    assert trio.state()["volumes"] == was["volumes"]
    assert down.again().act().changed
    second = trio.other("down")
    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed

    (trio.directory / "compose.yml").unlink()
    assert down.undo().changed
    assert trio.state() == was
    assert not down.undo().changed


def test_up_after_an_undo_reads_the_project_files(stack: Stack) -> None:
    stack.up().act()
    down = stack.other("down")
    down.act()
    down.undo()
    stack.write(web={"environment": {"TAG": "2"}})

    prediction = stack.step("compose.up.execute", project=stack.name).predict()

    assert "web: configuration changed" in prediction.action


# --- stop and start -----------------------------------------------------------------------------------


def test_undo_of_stop_starts_only_the_stopped_services(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("jobs"))
    was, ids = trio.state(), trio.ids()
    stop = trio.other("stop")
    assert stop.predict().changed is True
    assert trio.state() == was

    outcomes = stop.act_concurrently()
    assert all(outcome.changed for outcome in outcomes)
    assert outcomes[0].data["stopped"] == [trio.container("db"), trio.container("web")]
    assert trio.running() == set()
    second = trio.other("stop")
    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed

    assert stop.undo().changed
    assert trio.state() == was
    assert trio.ids() == ids
    assert not stop.undo().changed


def test_undo_of_a_cancelled_stop_waits_for_the_engine_and_starts_the_services(stack: Stack) -> None:
    stack.write(web={"init": False})  # ignores SIGTERM, so that the engine kills the container after the grace period
    stack.up().act()
    stop = stack.other("stop", services=["web"])
    cancelled = stop.again(1, asked_to_stop=lambda: stack.was_signalled("web"))

    with pytest.raises((StepCancelled, Transient)):
        cancelled.act()

    assert "web" in stack.running(), "the grace period is not over"
    assert stop.undo().changed
    time.sleep(2.5)  # longer than the grace period: the container is not stopped later
    assert stack.running() == {"db", "web"}


def test_stop_of_some_services_leaves_the_others_running(trio: Stack) -> None:
    trio.up().act()
    stop = trio.other("stop", services=["web", "jobs"], grace="1s")
    stop.act()
    assert trio.running() == {"db"}
    stop.undo()
    assert trio.running() == {"db", "web", "jobs"}


def test_undo_of_stop_starts_recreated_containers(stack: Stack) -> None:
    stack.up().act()
    was = stack.state()
    stop = stack.other("stop")
    stop.act()
    stack.write(web={"environment": {"TAG": "2"}})
    up = stack.up()
    up.act()
    up.undo()

    assert stack.running() == set()
    assert stop.undo().changed
    assert stack.state() == was


def test_undo_of_start_stops_only_the_started_services(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("web"))
    trio.engine.stop(trio.container("jobs"))
    was, ids = trio.state(), trio.ids()
    start = trio.other("start", services=["web"], min_healthy_time="300ms")
    assert start.predict().changed is True
    assert trio.state() == was

    outcomes = start.act_concurrently()
    assert all(outcome.changed for outcome in outcomes)
    assert trio.running() == {"db", "web"}
    second = trio.other("start", services=["web"])
    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed

    assert start.undo().changed
    assert trio.state() == was
    assert trio.ids() == ids
    assert not start.undo().changed


def test_start_starts_the_dependencies_of_a_service(stack: Stack) -> None:
    stack.up().act()
    stack.other("stop").act()
    stack.other("start", services=["web"], min_healthy_time=0).act()
    assert stack.running() == {"db", "web"}


@pytest.mark.parametrize("verb", ["stop", "start"])
def test_unknown_project_or_service_is_an_error(stack: Stack, verb: str) -> None:
    nothing = stack.other(verb)
    assert nothing.predict().impossible
    with pytest.raises(Preflight, match=f"project {stack.name} has no containers"):
        _ = nothing.before
    stack.up(services=["db"]).act()
    with pytest.raises(Preflight, match="no container of service 'web'"):
        _ = stack.other(verb, services=["web"]).before


def test_stop_of_a_stack_without_containers_changes_nothing(stack: Stack) -> None:
    stop = stack.step("compose.stop.execute", project_dir=str(stack.directory), project=stack.name)
    assert stop.predict().changed is False
    assert not stop.act().changed
