"""`compose.*`: what each changes, takes back, recognises and foretells."""

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


def test_the_first_up_brings_the_stack_up_and_its_undo_takes_it_down_but_for_volumes(stack: Stack) -> None:
    was = stack.look()
    up = stack.up()
    foretold = up.predict()
    assert (foretold.changed, foretold.impossible) == (True, None)
    assert "web: missing" in foretold.action
    assert stack.look() == was

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
    assert stack.look() == was | {"volumes": [f"{stack.name}_data"]}
    assert not up.undo().changed


def test_the_undo_of_a_release_brings_back_configuration_images_and_what_ran(trio: Stack) -> None:
    # Given a stack on its first image, one service of which is stopped, its file changed since
    trio.up().act()
    trio.engine.stop(trio.container("jobs"))
    was, ids = trio.look(), trio.ids()
    image = trio.new_image()
    tags = trio.look()["tags"]
    trio.write(web={"environment": {"TAG": "2"}}, extra={"command": SLEEP})

    # When the release is made
    up = trio.up()
    foretold = up.predict()
    assert foretold.undo == "restore the former configuration and images"
    outcome = up.act()

    # Then all is new
    assert outcome.changed
    assert len(outcome.data["recreated"]) == 3
    assert outcome.data["created"] == [f"{trio.name}-extra-1"]
    assert {row["ImageID"] for row in trio.containers()} == {image}
    assert not ids & trio.ids()

    # And its undo brings back what was, and the names of the images as the step had found them
    assert up.undo().changed
    assert trio.look() == was | {"tags": tags}
    assert not up.undo().changed


def test_up_is_told_apart_by_what_it_would_do(trio: Stack) -> None:
    trio.up().act()
    trio.write(web={"environment": {"TAG": "2"}})
    trio.engine.stop(trio.container("jobs"))
    was = trio.ids()

    foretold = trio.up().predict()

    assert foretold.changed is True
    assert "web: configuration changed" in foretold.action
    assert "jobs: not running" in foretold.action
    assert " db:" not in foretold.action
    assert trio.ids() == was


def test_only_the_named_services_and_what_they_need_are_touched(stack: Stack) -> None:
    up = stack.up(services=["web"])
    up.act()
    assert stack.running() == {"web", "db"}
    assert up.undo().changed
    assert stack.running() == set()


def test_two_deliveries_of_up_at_once_bring_one_stack_up(stack: Stack) -> None:
    up = stack.up()
    outcomes = up.act_at_once()
    assert all(outcome.changed for outcome in outcomes)
    assert len(stack.containers()) == 2
    assert stack.look()["networks"] == [f"{stack.name}_default"]


def test_an_up_that_was_killed_in_the_middle_is_finished_by_the_next_attempt(stack: Stack) -> None:
    stack.up().act()
    was = stack.look()
    stack.write(web={"command": ["sleep", "601"]}, db={"command": ["sleep", "601"]})
    up = stack.up()
    _kill_in_the_middle(stack, up)

    assert up.again(2).act().changed
    assert stack.running() == {"db", "web"}
    assert up.undo().changed
    assert stack.look() == was


def test_the_undo_of_an_up_that_was_killed_in_the_middle_heals_it(stack: Stack) -> None:
    stack.up().act()
    was = stack.look()
    stack.write(web={"command": ["sleep", "601"]}, db={"command": ["sleep", "601"]})
    up = stack.up()
    _kill_in_the_middle(stack, up)

    assert up.undo().changed
    assert stack.look() == was


def _kill_in_the_middle(stack: Stack, up: Step) -> None:
    """SIGKILL to Compose as soon as the first old container is gone or put aside."""
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


def test_a_service_that_does_not_get_well_fails_the_step_and_the_undo_heals(stack: Stack) -> None:
    stack.up().act()
    was = stack.look()
    check = {"test": ["CMD", "false"], "interval": "200ms", "retries": 1}
    stack.write(web={"healthcheck": check})
    up = stack.up()
    with pytest.raises(OperationError, match=f"container {stack.container('web')} is unhealthy"):
        up.act()
    assert up.undo().changed
    assert stack.look() == was


def test_a_service_that_dies_a_moment_later_is_not_taken_for_well(stack: Stack) -> None:
    stack.write(web={"command": ["sh", "-c", "sleep 1; echo out of luck >&2; exit 4"]})
    with pytest.raises(OperationError, match=r"web-1 exited with code 4: out of luck"):
        stack.up(min_healthy_time="2s").act()


def test_a_service_that_keeps_crashing_fails_at_the_deadline(stack: Stack) -> None:
    stack.write(web={"command": ["false"], "restart": "always"})
    with pytest.raises(OperationError, match=r"not healthy after 2 s.*web-1"):
        stack.up(healthy_deadline="2s", min_healthy_time="1s").act()


def test_a_job_that_others_wait_for_may_end(stack: Stack) -> None:
    done = {"migrate": {"condition": "service_completed_successfully"}}
    stack.write(migrate={"command": ["true"]}, web={"depends_on": done})
    up = stack.up()
    assert up.act().changed
    ended = stack.engine.inspect_container(stack.container("migrate"))["State"]["FinishedAt"]
    second = stack.up()
    assert second.predict().changed is False
    assert not second.act().changed
    assert stack.engine.inspect_container(stack.container("migrate"))["State"]["FinishedAt"] == ended


def test_a_cancelled_up_ends_soon(stack: Stack) -> None:
    check = {"test": ["CMD", "false"], "interval": "60s"}
    stack.write(web={"healthcheck": check})
    stop_at = time.monotonic() + 2
    up = stack.up(context={"asked_to_stop": lambda: time.monotonic() > stop_at})
    with pytest.raises(StepCancelled):
        up.act()
    assert time.monotonic() - stop_at < SOON
    up.again(1, asked_to_stop=lambda: False).undo()
    assert stack.containers() == []


def test_undo_leaves_what_somebody_else_has_changed_since(stack: Stack) -> None:
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


def test_a_stack_brought_up_by_hand_can_be_brought_back_while_its_files_tell_of_it(stack: Stack) -> None:
    environment = os.environ | {"DOCKER_HOST": os.environ["LONGSHORE_DOCKER_HOST"]}
    command = ["docker", "compose", "-p", stack.name, "up", "-d"]
    subprocess.run(command, cwd=stack.directory, env=environment, check=True, capture_output=True)
    was = stack.look()
    stack.new_image()
    tags = stack.look()["tags"]

    up = stack.step("compose.up.execute", project=stack.name, min_healthy_time=0)
    assert len(up.act().data["recreated"]) == 2
    assert up.undo().changed
    assert stack.look() == was | {"tags": tags}


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
def test_files_that_cannot_work_fail_before_anything_is_touched(stack: Stack, files: dict[str, str], why: str) -> None:
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


def test_a_service_that_is_not_there_is_named_with_those_that_are(stack: Stack) -> None:
    with pytest.raises(Preflight, match=r"has no service 'wob'.*db, web"):
        _ = stack.up(services=["wob"]).before


def test_the_kept_file_is_for_the_worker_alone(stack: Stack) -> None:
    revision = Path(stack.up().act().data["revision"])
    assert revision.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "said", [{}, {"project_dir": "here"}, {"project": "Shop"}, {"project": "shop", "colour": "red"}]
)
def test_parameters_that_make_no_sense_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find("compose.up.execute").params.model_validate(said)


# --- down ---------------------------------------------------------------------------------------------


def test_down_takes_the_stack_down_and_its_undo_brings_back_what_ran(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("jobs"))
    was = trio.look()
    down = trio.other("down")
    assert down.predict().changed is True
    assert trio.look() == was

    assert down.act().changed
    assert trio.containers() == []
    assert trio.look()["volumes"] == was["volumes"]
    assert down.again().act().changed
    second = trio.other("down")
    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed

    (trio.directory / "compose.yml").unlink()
    assert down.undo().changed
    assert trio.look() == was
    assert not down.undo().changed


def test_after_an_undo_the_projects_own_files_count_again(stack: Stack) -> None:
    stack.up().act()
    down = stack.other("down")
    down.act()
    down.undo()
    stack.write(web={"environment": {"TAG": "2"}})

    foretold = stack.step("compose.up.execute", project=stack.name).predict()

    assert "web: configuration changed" in foretold.action


# --- stop and start -----------------------------------------------------------------------------------


def test_stop_stops_what_runs_and_its_undo_starts_only_that(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("jobs"))
    was, ids = trio.look(), trio.ids()
    stop = trio.other("stop")
    assert stop.predict().changed is True
    assert trio.look() == was

    outcomes = stop.act_at_once()
    assert all(outcome.changed for outcome in outcomes)
    assert outcomes[0].data["stopped"] == [trio.container("db"), trio.container("web")]
    assert trio.running() == set()
    second = trio.other("stop")
    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed

    assert stop.undo().changed
    assert trio.look() == was
    assert trio.ids() == ids
    assert not stop.undo().changed


def test_the_undo_of_a_stop_that_was_cancelled_waits_for_the_engine_and_starts(stack: Stack) -> None:
    stack.write(web={"init": False})  # ignores TERM, so the engine kills it at the end of its grace
    stack.up().act()
    stop = stack.other("stop", services=["web"])
    cancelled = stop.again(1, asked_to_stop=lambda: stack.was_told_to_end("web"))

    with pytest.raises((StepCancelled, Transient)):
        cancelled.act()

    assert "web" in stack.running(), "its grace is not over"
    assert stop.undo().changed
    time.sleep(2.5)  # longer than the grace: no stop comes later
    assert stack.running() == {"db", "web"}


def test_stop_of_some_services_leaves_the_others_alone(trio: Stack) -> None:
    trio.up().act()
    stop = trio.other("stop", services=["web", "jobs"], grace="1s")
    stop.act()
    assert trio.running() == {"db"}
    stop.undo()
    assert trio.running() == {"db", "web", "jobs"}


def test_the_undo_of_stop_starts_what_was_made_again_in_between(stack: Stack) -> None:
    stack.up().act()
    was = stack.look()
    stop = stack.other("stop")
    stop.act()
    stack.write(web={"environment": {"TAG": "2"}})
    up = stack.up()
    up.act()
    up.undo()

    assert stack.running() == set()
    assert stop.undo().changed
    assert stack.look() == was


def test_start_starts_what_is_stopped_and_its_undo_stops_exactly_that(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("web"))
    trio.engine.stop(trio.container("jobs"))
    was, ids = trio.look(), trio.ids()
    start = trio.other("start", services=["web"], min_healthy_time="300ms")
    assert start.predict().changed is True
    assert trio.look() == was

    outcomes = start.act_at_once()
    assert all(outcome.changed for outcome in outcomes)
    assert trio.running() == {"db", "web"}
    second = trio.other("start", services=["web"])
    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed

    assert start.undo().changed
    assert trio.look() == was
    assert trio.ids() == ids
    assert not start.undo().changed


def test_start_starts_what_a_service_depends_on_too(stack: Stack) -> None:
    stack.up().act()
    stack.other("stop").act()
    stack.other("start", services=["web"], min_healthy_time=0).act()
    assert stack.running() == {"db", "web"}


@pytest.mark.parametrize("verb", ["stop", "start"])
def test_a_project_or_a_service_that_is_not_there_is_one_clear_error(stack: Stack, verb: str) -> None:
    nothing = stack.other(verb)
    assert nothing.predict().impossible
    with pytest.raises(Preflight, match=f"project {stack.name} has no containers"):
        _ = nothing.before
    stack.up(services=["db"]).act()
    with pytest.raises(Preflight, match="no container of service 'web'"):
        _ = stack.other(verb, services=["web"]).before


def test_stop_of_a_stack_that_is_not_up_yet_changes_nothing(stack: Stack) -> None:
    stop = stack.step("compose.stop.execute", project_dir=str(stack.directory), project=stack.name)
    assert stop.predict().changed is False
    assert not stop.act().changed
