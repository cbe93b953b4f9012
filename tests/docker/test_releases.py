"""The operations `compose.*` of releases: revisions, rollback, health waits, images, commands and locks."""

from __future__ import annotations

import json
import stat
import time

import pytest

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, Transient, Unsuccessful
from longshore.tasks.operations.compose import revisions
from tests.docker.conftest import MakeStep, Step, prune_own_images
from tests.docker.stack import Stack, stack, trio
from tests.docker.test_images import NewImage
from tests.servers import SOON, Registry

pytestmark = pytest.mark.docker
assert stack
assert trio

UNHEALTHY = {"healthcheck": {"test": ["CMD", "false"], "interval": "300ms", "retries": 1}}


# --- revisions ----------------------------------------------------------------------------------------


def test_number_of_stored_revisions_and_backups_is_limited(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given smaller limits
    assert revisions.RETAINED == 5
    monkeypatch.setattr(revisions, "RETAINED", 2)
    monkeypatch.setattr(revisions, "_STEPS", 2)
    for number in range(4):
        stack.new_image()
        stack.write(web={"environment": {"TAG": str(number)}})
        stack.up(services=["web"], grace=0).act()

    kept = revisions.history(stack.name)
    assert [revision.number for revision in kept] == [3, 4]
    assert all(stat.S_IMODE(revision.path(stack.name).stat().st_mode) == 0o600 for revision in kept)
    assert not (revisions.folder(stack.name) / "r2.yml").exists()
    tags = [tag for image in stack.engine.images() for tag in image["RepoTags"] or [] if f"{stack.name}:r" in tag]
    assert {tag.rpartition(":")[2].partition("-")[0] for tag in tags} == {"r3", "r4"}
    files = [path.name for path in revisions.folder(stack.name).glob("*.yml")]
    assert len({name.partition(".step.")[0] for name in files if ".step." in name}) <= 3
    tags = [tag for image in stack.engine.images() for tag in image["RepoTags"] or [] if stack.name in tag]
    assert len([tag for tag in tags if ":k-" in tag]) <= 3
    stack.up(services=["web"]).act()
    assert len(revisions.history(stack.name)) == 2, "an up without changes stores no revision"
    listed = stack.step("compose.ps.get", project=stack.name).act().data
    assert [revision["number"] for revision in listed["revisions"]] == [3, 4]
    assert {one["service"] for one in listed["containers"]} == {"db", "web"}


def test_rollback_restores_configuration_and_images(trio: Stack) -> None:
    # Given a release with another image and another configuration
    trio.up().act()
    first = trio.state()
    trio.new_image()
    trio.write(web={"environment": {"TAG": "2"}})
    trio.up().act()
    second = trio.state()
    rollback = trio.other("rollback", min_healthy_time=0)
    prediction = rollback.predict()
    assert prediction.changed is True
    assert "revision 1" in prediction.action
    assert trio.state() == second

    outcome = rollback.act()

    assert outcome.changed
    assert trio.state()["containers"] == first["containers"]
    again = trio.other("rollback", to=1, min_healthy_time=0)
    assert again.predict().changed is False
    assert not again.act().changed
    assert rollback.undo().changed
    assert trio.state() == second
    with pytest.raises(Preflight, match=r"no revision 9.*1, 2"):
        trio.other("rollback", to=9).act()
    with pytest.raises(Preflight, match="no stored revision"):
        trio.step("compose.rollback.execute", project="lst-nothing").act()


def test_max_parallel_stops_the_rollout_at_an_unhealthy_service(trio: Stack) -> None:
    trio.up().act()
    ids = {row["Labels"]["com.docker.compose.service"]: row["Id"] for row in trio.containers()}
    trio.new_image()
    trio.write(jobs=UNHEALTHY)  # the order of the rollout: db, a dependency, then jobs and web by name

    with pytest.raises(OperationError, match="jobs-1 is unhealthy"):
        trio.up(max_parallel=1, healthy_deadline=20).act()

    now = {row["Labels"]["com.docker.compose.service"]: row["Id"] for row in trio.containers()}
    assert now["db"] != ids["db"]
    assert now["jobs"] != ids["jobs"]
    assert now["web"] == ids["web"], "the rollout ended before web"
    trio.write()
    assert trio.up(max_parallel=2).act().changed
    assert trio.running() == {"db", "web", "jobs"}


def test_undo_restores_the_name_of_a_half_recreated_container(trio: Stack) -> None:
    trio.up().act()
    was = trio.state()
    trio.new_image()
    trio.write(web={"environment": {"A": "b"}})
    up = trio.up()
    up.act()
    up.undo()
    # given the temporary name of a container that Compose was recreating when it was killed
    web = next(row for row in trio.containers() if row["Labels"]["com.docker.compose.service"] == "web")
    trio.engine.rename(web["Id"], f"0123456789ab_{trio.name}-web-1")

    assert up.undo().changed

    assert [row[0] for row in trio.state()["containers"]] == [row[0] for row in was["containers"]]


# --- restart ------------------------------------------------------------------------------------------


def test_restart_restarts_running_services_once(trio: Stack) -> None:
    trio.up().act()
    trio.engine.stop(trio.container("jobs"), timeout=0)

    def starts() -> dict[str, str]:
        found = (trio.engine.inspect_container(row["Id"]) for row in trio.containers())
        return {raw["Name"]: raw["State"]["StartedAt"] for raw in found}

    was, state = starts(), trio.state()
    restart = trio.other("restart", min_healthy_time=0)
    assert restart.predict().changed is True
    assert starts() == was
    outcome = restart.act()
    assert sorted(outcome.data["restarted"]) == [trio.container("db"), trio.container("web")]
    now = starts()
    assert now[f"/{trio.container('jobs')}"] == was[f"/{trio.container('jobs')}"]
    assert all(now[f"/{trio.container(name)}"] != was[f"/{trio.container(name)}"] for name in ("db", "web"))
    restart.again(2).act()
    assert starts() == now
    restart.undo()
    assert trio.state()["containers"] == state["containers"]

    broken = trio.other("restart")
    assert broken.before
    trio.engine.stop(trio.container("web"), timeout=0)
    broken.undo()
    assert trio.state()["containers"] == state["containers"]


# --- images -------------------------------------------------------------------------------------------


def test_undo_of_compose_pull_restores_the_tags(
    stack: Stack, registry: Registry, step: MakeStep, new_image: NewImage
) -> None:
    ref = f"{registry.host}/{stack.name}:1"
    first = new_image(ref)
    step("docker.push.execute", image=ref).act()
    second = new_image(ref)
    stack.write(web={"image": ref})
    params = {"project_dir": str(stack.directory), "project": stack.name, "services": ["web"]}
    pull = stack.step("compose.pull.execute", **params)
    assert pull.predict().changed is True
    assert stack.engine.inspect_image(ref)["Id"] == second

    outcome = pull.act()

    assert outcome.data["images"] == {ref: {"before": second, "after": first}}
    again = stack.step("compose.pull.execute", **params)
    assert again.predict().changed is False
    assert not again.act().changed
    prune_own_images(stack.engine)
    assert pull.undo().changed
    assert stack.engine.inspect_image(ref)["Id"] == second
    registry_broken = f"{registry.host}/{stack.name}:nothing"
    stack.write(web={"image": registry_broken})
    with pytest.raises(OperationError, match="nothing"):
        stack.step("compose.pull.execute", **params).act()


def test_undo_of_up_with_pull_restores_the_earlier_image(
    stack: Stack, registry: Registry, step: MakeStep, new_image: NewImage
) -> None:
    ref = f"{registry.host}/{stack.name}:1"
    newer = new_image(ref)
    step("docker.push.execute", image=ref).act()
    older = new_image(ref)
    stack.write(web={"image": ref}, db={"image": ref})
    stack.up().act()
    was = stack.state()
    up = stack.up(pull="always")
    assert up.act().changed
    images = {one["service"]: one["image_id"] for one in up.outcome.data["containers"]} if up.outcome else {}
    assert images["web"] == newer
    assert up.undo().changed
    assert stack.state() == was
    assert stack.engine.inspect_image(ref)["Id"] == older


def test_compose_build_builds_services_with_a_build_section(stack: Stack) -> None:
    (stack.directory / "Dockerfile").write_text("FROM longshore-test:1\nRUN echo built >/built\n")
    stack.write(web={"build": ".", "image": f"{stack.name}:web"})
    params = {"project_dir": str(stack.directory), "project": stack.name}
    build = stack.step("compose.build.execute", **params)
    assert build.predict().changed is None
    outcome = build.act()
    assert outcome.changed
    assert list(outcome.data["images"]) == [f"{stack.name}:web"]
    assert not stack.step("compose.build.execute", **params).act().changed
    assert build.undo().changed
    assert not [i for i in stack.engine.images() for tag in i["RepoTags"] or [] if tag == f"{stack.name}:web"]
    stack.write()
    with pytest.raises(Preflight, match="has a build"):
        stack.step("compose.build.execute", **params).act()


# --- commands -----------------------------------------------------------------------------------------


def test_config_returns_services_without_values_of_variables(stack: Stack) -> None:
    stack.write(web={"environment": {"PASSWORD": "correct-horse"}})
    outcome = stack.step("compose.config.get", project_dir=str(stack.directory), project=stack.name).act()
    assert not outcome.changed
    assert outcome.data["services"]["web"]["depends_on"] == ["db"]
    assert "correct-horse" not in json.dumps(outcome.data)
    stack.up().act()
    hashes = {row["Labels"]["com.docker.compose.config-hash"] for row in stack.containers()}
    assert {service["hash"] for service in outcome.data["services"].values()} == hashes


def test_compose_exec_runs_in_the_container_of_a_service(stack: Stack) -> None:
    stack.up().act()
    done = stack.other("exec", service="web", argv=["sh", "-c", "echo $TAG; hostname"]).act()
    assert done.data["stdout"].startswith("1\n")
    with pytest.raises(Unsuccessful):
        stack.other("exec", service="web", argv=["false"]).act()
    with pytest.raises(Preflight, match="no container 1 of service 'nothing'"):
        stack.other("exec", service="nothing", argv=["true"]).act()


def test_compose_run_runs_once_with_volumes_and_environment(stack: Stack) -> None:
    stack.up().act()
    ids = stack.ids()
    params = {
        "project_dir": str(stack.directory),
        "project": stack.name,
        "service": "db",
        "command": ["sh", "-c", "echo $GIVEN; echo x >>/data/log; cat /data/log"],
        "env": {"GIVEN": "it"},
    }
    run = stack.step("compose.run.execute", **params)
    assert run.predict().changed is True
    outcomes = run.act_concurrently(2)
    assert {outcome.data["stdout"] for outcome in outcomes} == {"it\nx\n"}
    assert run.again(2).act().data["stdout"] == "it\nx\n"
    assert run.undo().changed
    assert stack.ids() == ids
    failing = stack.step("compose.run.execute", **params | {"command": ["sh", "-c", "echo no >&2; exit 4"]})
    with pytest.raises(Unsuccessful, match="exited with code 4: no"):
        failing.act()
    failing.undo()
    with pytest.raises(OperationError, match="no service 'nothing'"):
        stack.step("compose.run.execute", **params | {"service": "nothing"}).act()


def undo_with_retries(step: Step) -> None:
    """Undo a step, and retry after temporary errors, as a run does."""
    for _ in range(5):
        try:
            step.undo()
        except Transient:
            time.sleep(1)
        else:
            return
    step.undo()


# --- cancel -------------------------------------------------------------------------------------------


def test_cancelled_release_ends_soon_and_is_undone(stack: Stack) -> None:
    stack.up().act()
    was = stack.state()
    stack.new_image()
    stop_at = time.monotonic() + 0.4
    up = stack.up(context={"asked_to_stop": lambda: time.monotonic() > stop_at}, min_healthy_time=5)

    with pytest.raises((StepCancelled, Transient)):
        up.act()

    assert time.monotonic() - stop_at < SOON
    undo_with_retries(up.again(1, asked_to_stop=lambda: False))
    assert stack.state()["containers"] == was["containers"]


def test_undo_waits_for_a_container_that_stops_after_the_cancel(stack: Stack) -> None:
    stack.write(web={"init": False})  # ignores SIGTERM, so that the engine kills the container after the grace period
    stack.up().act()
    was = stack.state()
    stack.new_image()
    up = stack.up(context={"asked_to_stop": lambda: stack.was_signalled("web")}, min_healthy_time=5)

    with pytest.raises((StepCancelled, Transient)):
        up.act()

    assert "web" in stack.running(), "the grace period is not over"
    undo_with_retries(up.again(1, asked_to_stop=lambda: False))
    assert stack.state()["containers"] == was["containers"]
    time.sleep(2.5)  # longer than the grace period: the container is not stopped later
    assert stack.state()["containers"] == was["containers"]
