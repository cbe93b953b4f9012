"""`docker.restart`, `rename`, `update`, `exec`, `list`, `logs`, `wait`, networks and volumes."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import OperationError, Preflight, StepCancelled, Unsuccessful
from longshore.orchestration.operations import find
from tests.docker.conftest import MakeStep
from tests.integration.processes import wait_for
from tests.servers import SOON

if TYPE_CHECKING:
    import docker

pytestmark = pytest.mark.docker
MakeContainer = Callable[..., str]
ReadState = Callable[[], dict[str, Any]]


def started_at(engine: docker.APIClient, name: str) -> str:
    return str(engine.inspect_container(name)["State"]["StartedAt"])


# --- restart, rename, update --------------------------------------------------------------------------


def test_repeated_deliveries_of_restart_restart_once(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container()
    before = started_at(engine, name)
    restart = step("docker.restart.execute", container=name)
    assert restart.predict().changed is True
    assert started_at(engine, name) == before
    assert restart.act().changed
    after = started_at(engine, name)
    assert after != before
    restart.again(2).act()
    assert started_at(engine, name) == after
    restart.undo()
    assert (started_at(engine, name), engine.inspect_container(name)["State"]["Running"]) == (after, True)


def test_next_attempt_or_undo_of_a_killed_restart_starts_the_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    for act in (lambda one: one.again(2).act(), lambda one: one.undo()):
        name = container()
        restart = step("docker.restart.execute", container=name)
        assert restart.before["running"]
        engine.stop(name)
        act(restart)
        assert engine.inspect_container(name)["State"]["Running"]


def test_undo_of_restart_stops_a_container_that_did_not_run(
    step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container(start=False)
    was = engine_state()
    restart = step("docker.restart.execute", container=name)
    restart.act()
    assert engine_state() != was
    assert restart.undo().changed
    assert engine_state() == was


def test_undo_of_rename_restores_the_name(step: MakeStep, container: MakeContainer, engine_state: ReadState) -> None:
    name, other = container(), container()
    was = engine_state()
    rename = step("docker.rename.execute", container=name, name=f"{name}-new")
    assert rename.predict().changed is True
    assert engine_state() == was
    assert rename.act().changed
    again = step("docker.rename.execute", container=name, name=f"{name}-new")
    assert again.predict().changed is False
    assert not again.act().changed
    assert rename.undo().changed
    assert not rename.undo().changed
    assert engine_state() == was
    taken = step("docker.rename.execute", container=name, name=other)
    assert taken.predict().impossible
    with pytest.raises(Preflight, match="belongs to another"):
        taken.act()


def test_undo_of_update_restores_the_limits(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container()
    was = engine_state()
    params = {"container": name, "restart": "on-failure:3", "memory": "64m", "cpus": 0.5, "pids": 50}
    update = step("docker.update.execute", **params)
    prediction = update.predict()
    assert prediction.changed is True
    assert "memory 0 → 67108864" in prediction.action
    assert engine_state() == was
    outcome = update.act()
    assert outcome.data | {"id": ""} == {
        "id": "", "name": name, "restart": "on-failure:3", "memory": 64 * 1024 * 1024, "cpus": 0.5, "pids": 50,
    }  # fmt: skip
    again = step("docker.update.execute", **params)
    assert again.predict().changed is False
    assert not again.act().changed
    host = engine.inspect_container(name)["HostConfig"]
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    smaller = step("docker.update.execute", container=name, memory="32m")
    smaller.act()
    smaller.undo()
    assert engine.inspect_container(name)["HostConfig"]["Memory"] == 64 * 1024 * 1024
    update.undo()
    host = engine.inspect_container(name)["HostConfig"]
    assert host["RestartPolicy"]["Name"] in {"", "no"}
    assert step("docker.update.execute", **params).predict().changed is True


def test_update_without_a_change_is_rejected() -> None:
    with pytest.raises(ValidationError, match="at least one"):
        find("docker.update.execute").params.model_validate({"container": "web"})


# --- exec ---------------------------------------------------------------------------------------------


def test_exec_returns_both_output_streams_and_the_exit_code(step: MakeStep, container: MakeContainer) -> None:
    name = container()
    argv = ["sh", "-c", "echo out; echo err >&2; cat; echo $GIVEN; id -u"]
    done = step(
        "docker.exec.execute", container=name, argv=argv, stdin="in\n", env={"GIVEN": "it"}, user="7", cwd="/bin"
    ).act()
    assert done.changed
    assert (done.data["stdout"], done.data["stderr"]) == ("out\nin\nit\n7\n", "err\n")
    with pytest.raises(Unsuccessful, match="exited with code 3: why") as error:
        step("docker.exec.execute", container=name, argv=["sh", "-c", "echo why >&2; exit 3"]).act()
    assert error.value.data["exit_code"] == 3
    reads = step("docker.exec.execute", container=name, argv=["true"], changes=False)
    assert not reads.act().changed
    there = step("docker.exec.execute", container=name, argv=["true"], creates="/bin/sh")
    assert there.predict().changed is False
    assert not there.act().changed
    checked = step("docker.exec.execute", container=name, argv=["true"], unless="test -e /bin/sh")
    assert not checked.act().changed


def test_exec_that_cannot_start_is_an_error(step: MakeStep, container: MakeContainer) -> None:
    with pytest.raises(Preflight, match=r"lst-nothing.*does not exist"):
        step("docker.exec.execute", container="lst-nothing", argv=["true"]).act()
    with pytest.raises(Preflight, match="not running"):
        step("docker.exec.execute", container=container(start=False), argv=["true"]).act()
    with pytest.raises(Unsuccessful, match="127"):
        step("docker.exec.execute", container=container(), argv=["no-such-program"]).act()


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_cancelled_exec_leaves_no_process(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, how: str
) -> None:
    name = container()
    stop_at = time.monotonic() + 1
    context = {"asked_to_stop": lambda: time.monotonic() > stop_at} if how == "cancel" else {}
    more = {"timeout": 1} if how == "timeout" else {}
    run = step(
        "docker.exec.execute", context, container=name, argv=["sh", "-c", "sleep 987 & sleep 987"], grace=1, **more
    )
    with pytest.raises(StepCancelled if how == "cancel" else OperationError):
        run.act()
    assert time.monotonic() - stop_at < SOON
    # The engine lists a killed process until the kernel has removed it.
    wait_for(
        "the end of the processes",
        lambda: not [row for row in engine.top(name)["Processes"] if "987" in " ".join(row)],
        SOON,
    )


def test_output_of_exec_is_limited(step: MakeStep, container: MakeContainer) -> None:
    run = step("docker.exec.execute", container=container(), argv=["sh", "-c", "yes | head -c 50000000; echo end"])
    data = run.act().data
    assert data["truncated"]
    assert len(data["stdout"]) <= 64 * 1024
    assert data["stdout"].endswith("end\n")


# --- queries ------------------------------------------------------------------------------------------


def test_list_matches_the_engine_and_filters_by_the_whole_name(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name, idle = container(), container(start=False)
    engine.rename(idle, f"{name}0")
    image_id = engine.inspect_container(name)["Image"]

    def listed(**params: Any) -> dict[str, Any]:
        outcome = step("docker.list.get", **params).act()
        assert not outcome.changed
        return {one["name"]: one for one in outcome.data["containers"]}

    # Other processes create containers on the engine, too.
    assert listed(state="all").keys() >= {name, f"{name}0"}
    assert listed(state="all", name=name).keys() == {name}
    assert name in listed()
    assert f"{name}0" not in listed()
    assert listed(state="stopped", name=f"{name}0")[f"{name}0"]["image_id"] == image_id
    assert listed(state="all", label={"no.such": None}) == {}
    data = step("docker.list.get", state="all", limit=1).act().data
    assert data["count"] >= 2
    assert len(data["containers"]) == 1


def test_logs_returns_the_tail_of_each_stream(step: MakeStep, container: MakeContainer) -> None:
    name = container("sh", "-c", "seq 1 50; sleep 0.3; echo err >&2; sleep 600")
    time.sleep(1)
    data = step("docker.logs.get", container=name, tail=3).act().data
    assert data["stderr"] == "err\n"
    assert data["stdout"].endswith("50\n")
    assert len(data["stdout"].split()) <= 3
    assert step("docker.logs.get", container=name, max_bytes=6).act().data["truncated"]
    assert step("docker.logs.get", container=name, since="1h").act().data["stdout"].startswith("1\n")
    mute = container("sh", "-c", "echo x; sleep 600", log_config={"Type": "none"})
    assert step("docker.logs.get", container=mute).act().data["stdout"] == ""
    with pytest.raises(Preflight):
        step("docker.logs.get", container="lst-nothing").act()


def healthy(step: MakeStep, *test: str) -> str:
    """A container with a health check."""
    health = {"test": list(test), "interval": "300ms", "timeout": "2s", "retries": 2}
    made = step("docker.create.execute", image="longshore-test:1", command=["sleep", "600"], health=health)
    name = str(made.act().data["name"])
    step("docker.start.execute", container=name).act()
    return name


def test_wait_requires_a_passed_health_check(step: MakeStep) -> None:
    good = healthy(step, "sh", "-c", "test -e /ready")
    wait = step("docker.wait.get", container=good, healthy_deadline="10s")
    assert "; it is running" in wait.predict().action
    with pytest.raises(OperationError, match="is unhealthy"):
        wait.act()
    step("docker.exec.execute", container=good, argv=["touch", "/ready"]).act()
    deadline = time.monotonic() + 10
    while step("docker.inspect.get", container=good).act().data["health"] != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    data = step("docker.wait.get", container=good).act().data
    assert (data["health"], data["restart_count"]) == ("healthy", 0)


def test_wait_fails_if_the_container_exits_within_min_healthy_time(step: MakeStep, container: MakeContainer) -> None:
    with pytest.raises(OperationError, match="exited with code 3"):
        step("docker.wait.get", container=container("sh", "-c", "sleep 1; exit 3"), min_healthy_time="3s").act()
    steady = step("docker.wait.get", container=container(), min_healthy_time="1s").act()
    assert steady.data["waited_s"] >= 1
    crashing = container("sh", "-c", "exit 1", restart_policy={"Name": "always"})
    with pytest.raises(OperationError, match="restart"):
        step("docker.wait.get", container=crashing, healthy_deadline="3s", min_healthy_time="2s").act()


def test_wait_until_exited_requires_a_started_container(step: MakeStep, container: MakeContainer) -> None:
    with pytest.raises(OperationError, match="has not been started"):
        step("docker.wait.get", container=container(start=False), until="exited", healthy_deadline="1s").act()
    ended = step("docker.wait.get", container=container("sh", "-c", "sleep 0.5"), until="exited").act()
    assert ended.data["exit_code"] == 0
    with pytest.raises(OperationError, match="exited with code 7"):
        step("docker.wait.get", container=container("sh", "-c", "exit 7"), until="exited").act()


def test_cancelled_wait_ends_soon(step: MakeStep, container: MakeContainer) -> None:
    stop_at = time.monotonic() + 1
    context = {"asked_to_stop": lambda: time.monotonic() > stop_at}
    with pytest.raises(StepCancelled):
        step("docker.wait.get", context, container=container(), min_healthy_time="60s").act()
    assert time.monotonic() - stop_at < SOON


# --- networks and volumes -----------------------------------------------------------------------------


@pytest.fixture
def name(engine: docker.APIClient) -> Any:
    name = f"lst-{uuid.uuid4().hex[:8]}"
    yield name
    for network in engine.networks(names=[name]):
        engine.remove_network(network["Id"])
    for volume in engine.volumes()["Volumes"] or []:
        if volume["Name"] == name:
            engine.remove_volume(name)


def test_concurrent_network_creates_make_one_network(
    engine: docker.APIClient, step: MakeStep, engine_state: ReadState, name: str
) -> None:
    was = engine_state()
    create = step("docker.network-create.execute", name=name, internal=True, subnet="10.213.7.0/24", labels={"a": "b"})
    assert create.predict().changed is True
    assert engine_state() == was
    outcomes = create.act_concurrently(4)
    assert len(engine.networks(names=[name])) == 1, "the engine itself allows two networks of one name"
    assert {outcome.changed for outcome in outcomes} == {True}
    inspected = step("docker.network-inspect.get", name=name).act()
    assert not inspected.changed
    assert (inspected.data["internal"], inspected.data["subnets"]) == (True, ["10.213.7.0/24"])
    other = step("docker.network-create.execute", name=name, internal=True)
    assert other.predict().changed is False
    assert not other.act().changed
    other.undo()
    assert engine.networks(names=[name]), "another step has created the network"
    with pytest.raises(Preflight, match="internal: true"):
        step("docker.network-create.execute", name=name).act()
    assert create.undo().changed
    assert engine_state() == was
    assert not step("docker.network-inspect.get", name=name).act().data["exists"]


def test_undo_of_network_remove_restores_the_network(
    engine: docker.APIClient, step: MakeStep, engine_state: ReadState, name: str
) -> None:
    step("docker.network-create.execute", name=name, subnet="10.213.8.0/24").act()
    was = engine_state()
    remove = step("docker.network-remove.execute", name=name)
    assert remove.predict().changed is True
    assert remove.act().changed
    assert not step("docker.network-remove.execute", name=name).act().changed
    assert remove.undo().changed
    assert engine_state() == was
    assert engine.networks(names=[name])[0]["IPAM"]["Config"][0]["Subnet"] == "10.213.8.0/24"
    used = step("docker.create.execute", image="longshore-test:1", networks=[name], command=["sleep", "600"])
    step("docker.start.execute", container=used.act().data["name"]).act()
    with pytest.raises(Preflight, match="is used by"):
        step("docker.network-remove.execute", name=name).act()
    used.undo()


def test_volume_remove_needs_data_loss(
    engine: docker.APIClient, step: MakeStep, engine_state: ReadState, name: str
) -> None:
    was = engine_state()
    create = step("docker.volume-create.execute", name=name, labels={"a": "b"})
    assert create.predict().changed is True
    assert {outcome.changed for outcome in create.act_concurrently(3)} == {True}
    other = step("docker.volume-create.execute", name=name)
    assert not other.act().changed
    assert not other.undo().changed
    assert step("docker.volume-inspect.get", name=name).act().data["labels"]["a"] == "b"
    assert create.undo().changed
    assert engine_state() == was

    step("docker.volume-create.execute", name=name).act()
    kept = step("docker.volume-remove.execute", name=name)
    assert kept.predict().impossible
    with pytest.raises(Preflight, match="data_loss"):
        kept.act()
    assert step("docker.volume-remove.execute", name=name, data_loss=True).act().changed
    assert not step("docker.volume-remove.execute", name=name, data_loss=True).act().changed


# --- files of a one-off container ---------------------------------------------------------------------


def test_files_of_a_container_are_not_in_its_description(engine: docker.APIClient, step: MakeStep) -> None:
    files = {"/run/secrets/db": "correct-horse", "/etc/motd": "hello"}
    command = ["sh", "-c", "cat /run/secrets/db /etc/motd; echo >/etc/motd"]
    run = step("docker.run.execute", image="longshore-test:1", user="1000:1000", command=command, files=files)

    with pytest.raises(Unsuccessful, match="Permission denied") as error:
        run.act()

    assert error.value.data["stdout"] == "correct-horsehello"
    assert "correct-horse" not in json.dumps(engine.inspect_container(error.value.data["id"]))
    assert run.undo().changed


@pytest.mark.parametrize("path", ["motd", "/etc/../motd", "/", "/etc/"])
def test_path_of_a_file_that_is_not_absolute_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="is not the absolute path of a file"):
        find("docker.run.execute").params.model_validate({"image": "x", "files": {path: ""}})
