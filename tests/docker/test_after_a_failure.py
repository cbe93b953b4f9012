"""Reports of failed releases: the evidence of the containers, and the version in production."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from longshore.orchestration import Plan
from longshore.orchestration.runs.report import Report
from tests.docker.stack import Stack, stack
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.processes import Installation, wait_for
from tests.servers import IMAGE, engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration]
assert stack
assert module_installation

REASON = {"test": ["CMD-SHELL", "echo cannot reach the database; exit 3"], "interval": "200ms", "retries": 1}
TRACEBACK = "seq 1 60; echo 'Traceback (most recent call last):' >&2; echo 'KeyError: DB_URL' >&2; exit 7"


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation(docker_host=engine_url(), options={"host": "web1", "lease": "1s"})
    made.worker("one", "-c", "2").start()
    return made


def up(stack: Stack, **params: Any) -> Plan:
    plan = Plan("release")
    given = {"project_dir": str(stack.directory), "min_healthy_time": 0.5, "healthy_deadline": 20, "grace": 0}
    plan.step("up", "compose.up.execute", **given | params)
    return plan


def release(place: Installation, plan: Plan) -> Report:
    return place.client().start(plan).wait(90)


def test_evidence_of_a_failed_health_check_and_of_a_crash_loop_is_recorded(place: Installation, stack: Stack) -> None:
    assert release(place, up(stack)).exit_code == 0
    was = stack.state()["containers"]

    # When a health check fails with an output
    stack.write(web={"healthcheck": REASON, "command": ["sh", "-c", "echo listening; exec sleep 600"]})
    unwell = release(place, up(stack))
    # and a container is in a crash loop
    stack.write(web={"command": ["sh", "-c", TRACEBACK], "restart": "always"})
    crashed = release(place, up(stack, healthy_deadline=4))

    assert stack.state()["containers"] == was
    assert (unwell.state, unwell.exit_code, unwell.left_over) == ("undone", 1, [])
    assert unwell.error is not None
    assert "web-1 is unhealthy: cannot reach the database" in unwell.error.message.splitlines()[0]
    (found,) = unwell.step("up").data["evidence"]
    assert [check["exit_code"] for check in found["health"]][-1:] == [3]
    assert found["health"][-1]["output"] == ["cannot reach the database"]
    assert crashed.error is not None
    assert "KeyError: DB_URL" in crashed.error.message.splitlines()[0]
    (found,) = crashed.step("up").data["evidence"]
    assert (found["exit_code"], found["oom_killed"]) == (7, False)
    assert found["restart_count"] >= 1
    assert found["reason"] == "KeyError: DB_URL"
    logs = place.longshore("runs", "logs", crashed.run_id, "up")
    lines = (logs.out + logs.err).splitlines()
    assert sum(" | " in line for line in lines) == 50
    assert any("exit code 7" in line and "restarted" in line for line in lines)
    assert any("cannot reach the database" in line
               for line in place.longshore("runs", "logs", unwell.run_id, "up").out.splitlines())  # fmt: skip


@pytest.mark.parametrize("reverts", [True, False])
def test_report_begins_with_the_running_version(place: Installation, stack: Stack, reverts: bool) -> None:
    assert release(place, up(stack)).exit_code == 0
    stack.write(web={"healthcheck": REASON})
    (plan := Path(stack.directory, "plan.yaml")).write_text(yaml.safe_dump(up(stack, auto_revert=reverts).to_dict()))

    done = place.longshore("run", str(plan))

    assert done.code == 1
    sentence = f"{stack.name} is back on revision 1 ({stack.ref}), healthy after"
    assert sentence in done.out + done.err
    (run, *_) = place.client().runs(1)
    report = run.report()
    assert [line[: len(sentence)] for line in report.production] == [sentence]
    step = report.step("up")
    assert step.undo is not None
    stated = [*step.undo.standing, *step.data["standing"]][0]
    assert (stated["revision"], stated["healthy"]) == (1, True)
    assert stated["services"]["web"]["image_id"] == stack.v1


def test_report_names_a_version_that_is_down_and_the_rollback_command(place: Installation, stack: Stack) -> None:
    assert release(place, up(stack)).exit_code == 0
    stack.write(web={"healthcheck": REASON})
    plan = up(stack)
    plan.on_failure = "keep"

    report = release(place, plan)

    assert report.exit_code
    (line,) = report.production
    down = f"{stack.name.upper()} IS DOWN on {stack.ref}: container {stack.name}-web-1 is unhealthy: cannot reach"
    assert line.startswith(down)
    command = f"longshore ops run compose.rollback.execute project={stack.name} to=1"
    assert line.endswith(f"; to bring back revision 1: {command}")
    assert place.longshore(*command.split()[1:], "min_healthy_time=0").code == 0
    assert stack.running() == {"db", "web"}


def test_report_names_the_version_that_remains_after_a_later_failure(place: Installation, stack: Stack) -> None:
    plan = up(stack)
    plan.step("smoke", "command.exec.execute", argv=["false"]).after("up").undo("none")
    plan.on_failure = "keep"

    report = release(place, plan)

    assert report.exit_code
    assert report.production == [f"{stack.name} runs revision 1 ({stack.ref}), healthy"]


def migration(stack: Stack, **params: Any) -> Plan:
    """A release that builds an image, runs a migration with this image, and starts the stack."""
    plan = Plan("release")
    image = f"{stack.name}:2"
    build = plan.step("build", "docker.build.execute", context=str(stack.directory), image=image)
    given = {"image": image, "command": ["sh", "-c", "echo no such table; exit 4"], "env": {"STAGE": "release"}}
    migrate = plan.step("migrate", "docker.run.execute", **given | params).after(build).undo("none")
    plan.step("up", "compose.up.execute", project_dir=str(stack.directory)).after(migrate)
    return plan


def test_failed_migration_leaves_no_change_of_the_run(place: Installation, stack: Stack) -> None:
    assert release(place, up(stack)).exit_code == 0
    was = stack.state()["containers"]
    (stack.directory / "Dockerfile").write_text(f"FROM {IMAGE}\nENV RELEASE=2\n")
    images = images_of(stack)

    report = release(place, migration(stack))

    assert (report.state, report.exit_code) == ("undone", 1), report
    assert report.step("migrate").data["stdout"] == "no such table\n"
    assert stack.state()["containers"] == was
    assert images_of(stack) == images
    wait_for("the container of the migration to be removed", lambda: not one_off_containers(stack, report.run_id))


def test_migration_containers_are_removed_at_the_end_of_the_run(place: Installation, stack: Stack) -> None:
    (stack.directory / "Dockerfile").write_text(f"FROM {IMAGE}\nENV RELEASE=2\n")
    succeeds = release(place, migration(stack, command=["true"]))
    assert succeeds.exit_code == 0
    kept = release(place, migration(stack, keep_failed=True))
    assert (kept.state, kept.exit_code) == ("undone", 1), kept

    wait_for("the container of the migration to be removed", lambda: not one_off_containers(stack, succeeds.run_id))
    assert len(one_off_containers(stack, kept.run_id)) == 1
    stack.engine.remove_container(one_off_containers(stack, kept.run_id)[0], force=True)


def images_of(stack: Stack) -> set[str]:
    """The images of this stack, by tag or by Compose's label. Other tests share the engine."""

    def is_ours(image: dict[str, Any]) -> bool:
        labelled = (image.get("Labels") or {}).get("com.docker.compose.project") == stack.name
        return labelled or any(stack.name in tag for tag in image.get("RepoTags") or ())

    return {image["Id"] for image in stack.engine.images() if is_ours(image)}


def one_off_containers(stack: Stack, run: str) -> list[str]:
    return [row["Id"] for row in stack.engine.containers(all=True, filters={"label": f"longshore.run={run}"})]
