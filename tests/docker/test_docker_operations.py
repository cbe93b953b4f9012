"""The operations `docker.*`: changes, compensation, repeated deliveries and predictions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import (
    OperationError,
    Preflight,
    StepCancelled,
    StepTimeout,
    Transient,
)
from longshore.orchestration.operations import find
from longshore.tasks.host.engine.factory import close_engine, engine_url
from tests.docker.conftest import MakeStep
from tests.servers import SOON

if TYPE_CHECKING:
    import docker

pytestmark = pytest.mark.docker

IMAGE = "longshore-test:1"
ReadState = Callable[[], dict[str, Any]]
MakeContainer = Callable[..., str]


def running(engine: docker.APIClient, name: str) -> bool:
    return bool(engine.inspect_container(name)["State"]["Running"])


# --- create -------------------------------------------------------------------------------------------


def test_create_applies_all_options_and_its_undo_removes_the_container(
    engine: docker.APIClient, step: MakeStep, engine_state: ReadState
) -> None:
    was = engine_state()
    create = step(
        "docker.create.execute",
        image=IMAGE,
        name="lst-created",
        command=["sleep", 600],
        env={"PORT": 80},
        volumes=["lst-data:/data", "/usr/share/zoneinfo:/host-share:ro"],
        ports=["127.0.0.1::80"],
        memory="64m",
        cpus=0.5,
        restart="on-failure:3",
        labels={"team": "blue"},
    )

    outcome = create.act()

    raw = engine.inspect_container("lst-created")
    assert outcome.changed
    assert outcome.data["id"] == raw["Id"]
    assert raw["Config"]["Cmd"] == ["sleep", "600"]
    assert "PORT=80" in raw["Config"]["Env"]
    assert raw["Config"]["Labels"]["team"] == "blue"
    assert raw["HostConfig"]["Init"] is True
    assert raw["HostConfig"]["Memory"] == 64 * 1024 * 1024
    assert raw["HostConfig"]["NanoCpus"] == 500_000_000
    assert raw["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert raw["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert {(m["Type"], m["Destination"], m["RW"]) for m in raw["Mounts"]} == {
        ("volume", "/data", True),
        ("bind", "/host-share", False),
    }
    assert create.undo().changed
    assert engine_state() == was
    assert not create.undo().changed


def test_create_without_a_name_uses_the_id_of_the_step(step: MakeStep, engine: docker.APIClient) -> None:
    create = step("docker.create.execute", image=IMAGE)
    assert create.act().data["name"] == f"longshore-{create.ctx.op_id}"


def test_repeated_deliveries_of_create_make_one_container(engine: docker.APIClient, step: MakeStep) -> None:
    create = step("docker.create.execute", image=IMAGE)

    outcomes = create.act_concurrently(6)
    later = create.again().act()

    assert len({outcome.data["id"] for outcome in [*outcomes, later]}) == 1
    assert all(outcome.changed for outcome in [*outcomes, later])
    assert len(engine.containers(all=True, filters={"label": f"longshore.op={create.ctx.op_id}"})) == 1


def test_create_of_an_equal_container_of_another_run_changes_nothing(step: MakeStep, engine_state: ReadState) -> None:
    first = step("docker.create.execute", image=IMAGE, name="lst-same", command=["sleep", "9"])
    first.act()
    was = engine_state()
    second = step("docker.create.execute", image=IMAGE, name="lst-same", command=["sleep", "9"])

    assert second.predict().changed is False
    assert not second.act().changed
    assert not second.undo().changed
    assert engine_state() == was


def test_create_refuses_the_name_of_a_foreign_container(
    step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container()
    was = engine_state()
    create = step("docker.create.execute", image=IMAGE, name=name)

    assert create.predict().impossible
    with pytest.raises(Preflight, match="belongs to another container"):
        create.act()
    assert not create.undo().changed
    assert engine_state() == was


def test_create_with_a_missing_image_fails_before_the_first_change(step: MakeStep) -> None:
    create = step("docker.create.execute", image="longshore-nowhere:1")
    assert str(create.predict().impossible).startswith("image 'longshore-nowhere:1' is not on the Docker host")
    with pytest.raises(Preflight, match=r"longshore-nowhere:1.*pull or build it"):
        _ = create.before
    after_a_pull = step("docker.create.execute", {"has_upstream": True}, image="longshore-nowhere:1")
    assert (after_a_pull.predict().changed, after_a_pull.predict().impossible) == (None, None)


def test_create_joins_each_network(engine: docker.APIClient, step: MakeStep) -> None:
    networks = [engine.create_network(f"lst-net-{n}")["Id"] for n in "ab"]
    try:
        create = step("docker.create.execute", image=IMAGE, networks=["lst-net-a", "lst-net-b"])
        made = engine.inspect_container(create.act().data["id"])
        assert set(made["NetworkSettings"]["Networks"]) == {"lst-net-a", "lst-net-b"}
        assert create.undo().changed
    finally:
        for network in networks:
            engine.remove_network(network)


def test_dry_run_of_create_changes_nothing(step: MakeStep, engine_state: ReadState) -> None:
    was = engine_state()
    prediction = step("docker.create.execute", image=IMAGE, name="lst-dry").predict()
    assert prediction.changed is True
    assert prediction.undo == "remove lst-dry"
    assert engine_state() == was


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"volumes": ["/data"]}, "is not source:target"),
        ({"volumes": ["./here:/data"]}, "neither an absolute path nor a volume name"),
        ({"ports": ["eighty"]}, "is not a port"),
        ({"ports": ["70000:80"]}, "is not a port"),
        ({"memory": "lots"}, "is not a size"),
        ({"env": {"DEBUG": True}}, "put it in quotes"),
        ({"restart": "sometimes"}, "is not no, always"),
        ({"labels": {"longshore.op": "x"}}, "longshore.op.*is reserved"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_create_rejects_invalid_parameters(params: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        find("docker.create.execute").params.model_validate({"image": IMAGE} | params)


def test_bind_mount_of_a_missing_path_is_an_error(step: MakeStep, engine_state: ReadState) -> None:
    was = engine_state()
    create = step("docker.create.execute", image=IMAGE, volumes=["/nowhere/at/all:/x"])
    with pytest.raises(OperationError, match="/nowhere/at/all"):
        create.act()
    create.undo()
    assert engine_state() == was


# --- start and stop -----------------------------------------------------------------------------------


def test_concurrent_starts_start_once_and_the_undo_stops_the_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container(start=False)
    start = step("docker.start.execute", container=name)
    assert start.predict().changed is True
    assert not running(engine, name)

    assert all(outcome.changed for outcome in start.act_concurrently())
    assert running(engine, name)
    assert not step("docker.start.execute", container=name).act().changed

    assert start.undo().changed
    assert not running(engine, name)
    assert not start.undo().changed


def test_start_of_a_running_container_and_its_undo_change_nothing(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container()
    start = step("docker.start.execute", container=name)
    assert start.predict().changed is False
    assert not start.act().changed
    assert not start.undo().changed
    assert running(engine, name)


def test_second_attempt_does_not_restart_an_ended_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container("true", start=False)
    start = step("docker.start.execute", container=name)
    start.act()
    engine.wait(name)
    began = engine.inspect_container(name)["State"]["StartedAt"]

    assert start.again().act().changed
    assert engine.inspect_container(name)["State"]["StartedAt"] == began


def test_start_of_a_missing_program_is_not_retried(step: MakeStep, container: MakeContainer) -> None:
    start = step("docker.start.execute", container=container("/no/such/program", start=False, init=False))
    with pytest.raises(OperationError) as caught:
        start.act()
    assert not isinstance(caught.value, Transient)
    assert not start.undo().changed


def test_concurrent_stops_stop_once_and_the_undo_starts_the_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container()
    was = engine_state()
    stop = step("docker.stop.execute", container=name, grace="3s")
    assert stop.predict().changed is True
    assert engine_state() == was

    outcomes = stop.act_concurrently()
    assert all(outcome.changed for outcome in outcomes)
    assert outcomes[0].data["killed"] is False
    assert not running(engine, name)
    again = step("docker.stop.execute", container=name)
    assert again.predict().changed is False
    assert not again.act().changed
    assert not again.undo().changed

    assert stop.undo().changed
    assert engine_state() == was
    assert not stop.undo().changed


def test_stop_reports_a_kill_after_the_grace_period(step: MakeStep, container: MakeContainer) -> None:
    name = container("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    time.sleep(0.3)
    data = step("docker.stop.execute", container=name, grace=0).act().data
    assert (data["exit_code"], data["killed"]) == (137, True)


def test_undo_of_stop_restores_the_pause(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container()
    engine.pause(name)
    was = engine_state()
    stop = step("docker.stop.execute", container=name, grace=1)
    assert stop.act().changed
    assert stop.undo().changed
    assert engine_state() == was
    engine.unpause(name)


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_start_and_stop_of_a_missing_container_are_errors(step: MakeStep, verb: str) -> None:
    missing = step(f"docker.{verb}.execute", container="lst-nobody")
    assert str(missing.predict().impossible).startswith("container 'lst-nobody' does not exist")
    with pytest.raises(Preflight, match="container 'lst-nobody' does not exist"):
        _ = missing.before
    later = step(f"docker.{verb}.execute", {"has_upstream": True}, container="lst-nobody").predict()
    assert (later.changed, later.impossible) == (None, None)


def test_stop_refuses_an_auto_removed_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container(auto_remove=True)
    with pytest.raises(Preflight, match="--rm"):
        _ = step("docker.stop.execute", container=name).before
    assert running(engine, name)


# --- remove -------------------------------------------------------------------------------------------


def test_remove_renames_the_container_and_its_undo_restores_it(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container(restart_policy={"Name": "always"})
    was = engine_state()
    remove = step("docker.remove.execute", container=name, force=True)
    assert remove.predict().changed is True
    assert engine_state() == was

    assert all(outcome.changed for outcome in remove.act_concurrently())
    kept = engine.inspect_container(f"{name}--longshore-{remove.ctx.op_id}")
    assert kept["State"]["Running"] is False
    assert kept["HostConfig"]["RestartPolicy"]["Name"] == "no"
    second = step("docker.remove.execute", container=name)
    assert second.predict().changed is False
    assert not second.act().changed
    assert remove.again().act().changed

    assert remove.undo().changed
    assert engine_state() == was
    assert not remove.undo().changed


def test_remove_of_a_running_container_needs_force(step: MakeStep, container: MakeContainer) -> None:
    remove = step("docker.remove.execute", container=container())
    assert remove.predict().impossible
    with pytest.raises(Preflight, match="is running"):
        _ = remove.before


def test_undo_of_remove_refuses_a_name_in_use(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container(start=False)
    remove = step("docker.remove.execute", container=name)
    remove.act()
    new = step("docker.create.execute", image=IMAGE, name=name)
    new.act()

    with pytest.raises(OperationError, match="another container has taken the name"):
        remove.undo()
    new.undo()
    assert remove.undo().changed


def test_undo_of_an_interrupted_remove_restores_the_container(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer, engine_state: ReadState
) -> None:
    name = container(restart_policy={"Name": "unless-stopped"})
    was = engine_state()
    remove = step("docker.remove.execute", container=name, force=True)
    _ = remove.before
    engine.update_container(name, restart_policy={"Name": "no"})
    engine.stop(name)

    assert remove.undo().changed
    assert engine_state() == was


# --- inspect ------------------------------------------------------------------------------------------


def test_inspect_returns_the_state_of_the_engine(
    engine: docker.APIClient, step: MakeStep, container: MakeContainer
) -> None:
    name = container("sh", "-c", "exit 3")
    engine.wait(name)
    outcome = step("docker.inspect.get", container=name).act()
    raw = engine.inspect_container(name)
    assert not outcome.changed
    assert outcome.data["exists"] is True
    assert outcome.data["id"] == raw["Id"]
    assert outcome.data["exit_code"] == 3
    assert outcome.data["status"] == "exited"
    assert outcome.data["started_at"] == raw["State"]["StartedAt"]


def test_inspect_of_a_missing_container_succeeds(step: MakeStep) -> None:
    assert step("docker.inspect.get", container="lst-nobody").act().data["exists"] is False


# --- run ----------------------------------------------------------------------------------------------


def test_repeated_deliveries_of_run_start_one_container(
    engine: docker.APIClient, step: MakeStep, engine_state: ReadState
) -> None:
    was = engine_state()
    run = step(
        "docker.run.execute",
        image=IMAGE,
        command=["sh", "-c", "echo one; echo two >&2; exit 7"],
        ok_codes=[7],
    )
    assert run.predict().changed is True
    assert engine_state() == was

    outcomes = [*run.act_concurrently(5), run.again().act()]

    assert {outcome.data["id"] for outcome in outcomes} == {outcomes[0].data["id"]}
    assert {outcome.data["started_at"] for outcome in outcomes} == {outcomes[0].data["started_at"]}
    assert all(outcome.changed for outcome in outcomes)
    assert outcomes[0].data["stdout"] == "one\n"
    assert outcomes[0].data["stderr"] == "two\n"
    assert outcomes[0].data["exit_code"] == 7
    assert run.undo().changed
    assert engine_state() == was
    assert not run.undo().changed


def test_next_attempt_waits_for_the_container_of_the_lost_attempt(engine: docker.APIClient, step: MakeStep) -> None:
    run = step("docker.run.execute", image=IMAGE, command=["sh", "-c", "sleep 1; echo $RANDOM"])
    other = threading.Thread(target=_act_and_close, args=(run.act,), daemon=True)
    other.start()
    while not engine.containers(filters={"label": f"longshore.op={run.ctx.op_id}"}):
        time.sleep(0.02)

    assert run.again().act().data["exit_code"] == 0
    other.join()
    assert len(engine.containers(all=True, filters={"label": f"longshore.op={run.ctx.op_id}"})) == 1


def _act_and_close(act: Callable[[], object]) -> None:
    try:
        act()
    finally:
        close_engine()


def test_failed_run_reports_its_output_and_only_a_retry_starts_a_new_container(step: MakeStep) -> None:
    run = step("docker.run.execute", image=IMAGE, command=["sh", "-c", "echo no space >&2; exit 3"])
    with pytest.raises(OperationError, match="exited with code 3: no space") as first:
        run.act()
    with pytest.raises(OperationError, match="exited with code 3") as late:
        run.act()
    with pytest.raises(OperationError, match="exited with code 3") as retried:
        run.again().act()

    assert late.value.data["id"] == first.value.data["id"]
    assert retried.value.data["id"] != first.value.data["id"]
    assert run.undo().changed


def test_timeout_stops_the_container_of_a_run(engine: docker.APIClient, step: MakeStep) -> None:
    deadline = time.monotonic() + 0.5
    run = step("docker.run.execute", {"deadline": deadline}, image=IMAGE, command=["sleep", "60"])
    with pytest.raises(StepTimeout, match="exceeded its timeout"):
        run.act()
    assert not engine.containers(filters={"label": f"longshore.op={run.ctx.op_id}"})


def test_cancel_stops_the_container_of_a_run(engine: docker.APIClient, step: MakeStep) -> None:
    stop_at = time.monotonic() + 0.5
    run = step(
        "docker.run.execute",
        {"asked_to_stop": lambda: time.monotonic() > stop_at},
        image=IMAGE,
        command=["sleep", "60"],
    )
    with pytest.raises(StepCancelled):
        run.act()
    assert time.monotonic() - stop_at < SOON
    assert not engine.containers(filters={"label": f"longshore.op={run.ctx.op_id}"})


def test_output_of_a_run_is_limited(step: MakeStep) -> None:
    run = step("docker.run.execute", image=IMAGE, command=["sh", "-c", "yes 0123456789 | head -c 300000; echo end"])
    data = run.act().data
    assert len(data["stdout"]) == 64 * 1024
    assert data["stdout"].endswith("end\n")
    assert data["truncated"] is True


def test_run_reports_that_the_container_ran_out_of_memory(step: MakeStep) -> None:
    errors = []
    for _ in range(3):  # on a busy machine, the cgroup may end before the engine reads its out-of-memory event
        run = step(
            "docker.run.execute",
            image=IMAGE,
            init=False,
            memory="8m",
            command=["sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"],
        )
        with pytest.raises(OperationError) as ended:
            run.act()
        errors.append(str(ended.value))
        if "ran out of memory" in errors[-1]:
            return
    pytest.fail(f"no error names the memory: {errors}")


def test_undo_of_a_run_leaves_and_names_its_volumes(engine: docker.APIClient, step: MakeStep) -> None:
    run = step("docker.run.execute", image=IMAGE, volumes=["lst-kept:/d"], command=["touch", "/d/x"])
    run.act()
    assert run.undo().data == {"left_volumes": ["lst-kept"]}
    engine.inspect_volume("lst-kept")


# --- the engine ---------------------------------------------------------------------------------------


def test_unavailable_engine_is_a_temporary_error(step: MakeStep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSHORE_DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(Transient, match=r"unix:///nowhere/docker.sock does not respond: start the engine"):
        step("docker.inspect.get", container="lst-nobody").act()


def test_unknown_docker_context_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGSHORE_DOCKER_HOST")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "lst-nowhere")
    with pytest.raises(OperationError, match="Docker context 'lst-nowhere' does not exist"):
        engine_url()
