"""Runs with a real engine: concurrent runs, locks, cancels, killed workers, and the undo command."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Plan, Run
from tests.docker.stack import Stack, stack
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.processes import Installation, wait_for
from tests.servers import IMAGE, SOON, engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration]
assert stack
assert module_installation


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    """An installation with one worker."""
    made = module_installation(docker_host=engine_url(), options={"host": "web1"})
    made.worker("one", "-c", "3").start()
    return made


def up(stack: Stack, **params: Any) -> Plan:
    plan = Plan("up")
    base = {"project_dir": str(stack.directory), "project": stack.name, "min_healthy_time": 0.5}
    plan.step("up", "compose.up.execute", **base | params)
    return plan


def wait_until_running(run: Run, step: str = "up") -> None:
    def is_running() -> bool:
        found = run.report()
        assert not found.ended, found
        return found.step(step).status == "running"

    wait_for(f"the start of {step}", is_running)


def assert_ends_soon_after_cancel(run: Run, step: str) -> None:
    """Cancel a run. The step ends soon, and then the run is undone."""
    began = time.monotonic()
    run.cancel()
    wait_for("the end of the step", lambda: run.report().step(step).status in {"cancelled", "failed", "changed"})
    assert time.monotonic() - began < SOON
    assert run.wait(60).state in {"undone", "failed"}


def test_concurrent_runs_of_a_new_stack_run_one_at_a_time(place: Installation, stack: Stack) -> None:
    client = place.client()
    one, two = client.start(up(stack)), client.start(up(stack))

    reports = [one.wait(90), two.wait(90)]

    assert [report.state for report in reports] == ["succeeded", "succeeded"]
    filters = {"label": [f"com.docker.compose.project={stack.name}"], "type": ["container"], "event": ["create"]}
    events = stack.engine.events(since=0, until=time.time(), filters=filters, decode=True)
    created = sorted(event["Actor"]["Attributes"]["name"] for event in events)
    assert created == [stack.container("db"), stack.container("web")], "each container was created once"
    assert stack.running() == {"db", "web"}
    assert len(stack.state()["networks"]) == 1
    assert len(stack.containers()) == 2
    assert place.longshore("locks", "ls", "-o", "json").json == []


def test_held_lock_is_listed(place: Installation, stack: Stack) -> None:
    stack.write(web={"healthcheck": {"test": ["CMD", "false"], "interval": "60s", "retries": 9}})
    run = place.client().start(up(stack, healthy_deadline=60))
    wait_for("the start of all services", lambda: stack.running() == {"db", "web"})
    (held,) = place.longshore("locks", "ls", "-o", "json").json
    assert (held["what"], held["run"], held["step"], held["why"]) == (
        f"project {stack.name}", run.id, "up", "compose.up.execute",
    )  # fmt: skip
    assert f"project {stack.name}  held for" in place.longshore("locks", "ls").out
    assert_ends_soon_after_cancel(run, "up")
    assert stack.containers() == []
    assert stack.state()["networks"] == []


def test_long_steps_end_soon_after_a_cancel(place: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        image = f"127.0.0.1:{silent.getsockname()[1]}/lst-silent:1"
        for operation, params in (
            ("docker.pull.execute", {"image": image}),
            ("docker.run.execute", {"image": IMAGE, "command": ["sleep", "600"]}),
            ("network.http.get", {"url": "http://127.0.0.1:1/", "deadline": "10m"}),
        ):
            run = place.client().run_operation(operation, **params)
            wait_until_running(run, "do")
            time.sleep(0.7)
            assert_ends_soon_after_cancel(run, "do")


def test_services_run_after_a_kill_during_a_recreate(place: Installation, stack: Stack) -> None:
    # Given a running stack whose containers stop slowly
    stack.write(web={"init": False})  # ignores SIGTERM, so that the recreate takes longer
    assert place.client().start(up(stack)).wait(90).exit_code == 0
    stack.new_image()

    # When
    run = place.client().start(up(stack))
    wait_until_running(run)
    time.sleep(random.uniform(0.3, 1.5))
    place.workers[0].kill()
    place.workers[0].start()
    report = run.wait(120)

    # Then the run has completed or undone the release
    assert report.state in {"succeeded", "undone"}
    assert report.left_over == []
    assert stack.running() == {"db", "web"}
    assert len(stack.containers()) == 2
    images = {stack.engine.inspect_container(row["Id"])["Image"] for row in stack.containers()}
    assert len(images) == 1


def test_undo_command_restores_the_stack(place: Installation, stack: Stack, tmp_path: Path) -> None:
    assert place.client().start(up(stack)).wait(90).exit_code == 0
    was = stack.state()
    stack.new_image()
    run = place.client().start(up(stack), run_id=f"release-{stack.name}")
    assert run.wait(90).step("up").status == "changed"
    assert place.longshore("runs", "undo", run.id).code == 0
    assert stack.state()["containers"] == was["containers"]
    shown = place.longshore("ops", "run", "compose.ps.get", f"project={stack.name}", "-o", "json").json
    assert [revision["number"] for revision in shown["steps"][0]["data"]["revisions"]] == [1, 2]
    back = place.longshore("ops", "run", "compose.rollback.execute", f"project={stack.name}", "to=2", "--dry-run")
    assert f"project {stack.name} to revision 2" in back.out
    assert json.dumps(stack.state()["containers"]) == json.dumps(was["containers"])
