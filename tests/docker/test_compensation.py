"""A failed undo of `up` in `env → build → up → smoke`: the dependencies of the running version remain."""

from __future__ import annotations

import pytest

from longshore.orchestration import Plan
from tests.docker.stack import Stack, stack
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.processes import PATIENCE, Installation
from tests.servers import engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration]
assert stack
assert module_installation


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation(docker_host=engine_url(), options={"host": "web1"})
    made.worker("one", "-c", "2").start()
    return made


def test_failed_undo_of_up_leaves_its_image_name_and_environment(place: Installation, stack: Stack) -> None:
    # given a running stack, and a release with a failing undo of `up`
    params = {"project_dir": str(stack.directory), "project": stack.name, "min_healthy_time": 0.5}
    assert place.client().run_operation("compose.up.execute", **params).wait(PATIENCE).exit_code == 0
    new = stack.new_image()
    stack.engine.tag(stack.v1, stack.name, "app")
    release = Plan("release", sequential=True)
    release.step("env", "file.deploy.execute", path=f"{stack.directory}/.env", content="TAG=2\n")
    release.step("build", "docker.tag.execute", image=new, name=stack.ref)
    release.step("up", "compose.up.execute", **params).undo("command.exec.execute", argv=["false"])
    release.step("smoke", "command.exec.execute", argv=["false"], changes=False)

    # when
    report = place.client().start(release).wait(PATIENCE)

    # then the new version runs, with its tag and its file
    running = {row["Image"]: row["ImageID"] for row in stack.containers()}
    assert set(running.values()) == {new}
    assert stack.engine.inspect_image(stack.ref)["Id"] == new
    assert (stack.directory / ".env").read_text() == "TAG=2\n"
    # and the report names the three steps and the reason
    assert (report.state, report.exit_code) == ("undo_failed", 3)
    assert report.left_over == ["env", "build", "up"]
    undos = {step.name: (step.undo.status, step.undo.error) for step in report.steps if step.undo}
    why = "up depends on it, and its undo failed"
    assert undos["env"] == undos["build"] == ("held_back", why)
    assert undos["up"][0] == "undo_failed"
    shown = place.longshore("runs", "show", report.run_id)
    assert shown.code == 3
    assert shown.out.count(f"held back  {why}") == 2
    assert "left over: env, build, up" in shown.out
