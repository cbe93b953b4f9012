"""The steps of a job on an in-memory engine: stops and starts, their order, and failures."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration.errors import Delayed, OperationError, Preflight, Transient, Unsuccessful
from longshore.orchestration.settings import get_settings
from longshore.orchestration.states import StepState
from longshore.tasks.crash_points import JOB_POINTS
from longshore.tasks.host.engine import factory
from longshore.tasks.operations import jobs
from longshore.tasks.operations.docker.run import captured_output
from longshore.tasks.operations.jobs.discovery import described, workers
from longshore.tasks.operations.jobs.snapshot import ContainerSnapshot, in_order
from longshore.tasks.simulation.engine import MemoryEngine
from tests.unit.tasks.operations.fake_step import Doing

assert jobs
#: The containers of the stack, in the order in which they may be started.
STACK = {"db": "", "app": "db:service_healthy:false", "web": "app:service_started:true"}


class RefusingEngine(MemoryEngine):
    """An engine that refuses some stops and starts."""

    def __init__(self) -> None:
        super().__init__(exit_codes={"work:1": 0})
        self.refuses: dict[str, OperationError] = {}
        self.calls: list[str] = []

    def _ask(self, verb: str, container: str) -> None:
        found = self.inspect(container)
        name = found.name if found else container
        if f"{verb} {name}" in self.refuses:
            raise self.refuses[f"{verb} {name}"]
        self.calls.append(f"{verb} {name}")

    def stop(self, container: str, grace: float | None = None) -> bool:
        self._ask("stop", container)
        return super().stop(container, grace)

    def start(self, container: str) -> bool:
        self._ask("start", container)
        return super().start(container)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingEngine]:
    monkeypatch.setenv("LONGSHORE_STATE_DIR", str(tmp_path))
    get_settings.cache_clear()
    made = RefusingEngine()
    for image in ("shop:1", "work:1"):
        made.add_image(image)
    before = factory._factory
    factory.use_engines(lambda _url: made)
    for service, depends_on in STACK.items():
        add(made, f"shop-{service}-1", service, depends_on)
    made.calls.clear()
    yield made
    factory.use_engines(before)
    get_settings.cache_clear()


def add(docker: MemoryEngine, name: str, service: str = "", depends_on: str = "", **host: Any) -> None:
    label = "com.docker.compose."
    labels = (
        {f"{label}project": "shop", f"{label}service": service, f"{label}depends_on": depends_on} if service else {}
    )
    docker.create(name, {"Image": "shop:1", "Labels": labels, "HostConfig": host})
    docker.start(name)


def step(verb: str, run_id: str = "r1", results: dict[str, Any] | None = None, **params: Any) -> Doing:
    context = {"run_id": run_id, "step": verb.partition(".")[0], "results": results or {}}
    return Doing(f"job.{verb}", context, job="backup", **{"stacks": ["shop"]} | params)


def worker(run_id: str = "r1", **params: Any) -> Doing:
    made = step("worker.execute", run_id, image="work:1", **params)
    made.act()
    return made


def running(docker: MemoryEngine) -> set[str]:
    return {row["Names"][0].removeprefix("/") for row in docker.rows({}, all_of_them=False)}


def test_job_stops_and_restarts_exactly_the_running_containers(docker: RefusingEngine) -> None:
    add(docker, "shop-app-2", "app", STACK["app"])
    add(docker, "shop-extra-1", "extra", "db")
    docker.stop("shop-extra-1")
    docker.calls.clear()

    made = worker()
    assert docker.calls == [], "the creation of the job container changed the stack"
    stopped = step("stop.execute").act()
    step("work.execute").act()
    started = step("start.execute").act()

    calls = [call for call in docker.calls if "job" not in call]
    calls[1:3], calls[5:7] = sorted(calls[1:3]), sorted(calls[5:7])  # containers of one level stop at the same time
    assert calls == [
        *("stop shop-web-1", "stop shop-app-1", "stop shop-app-2", "stop shop-db-1"),
        # A second stop before the work, in case a container has started.
        *("stop shop-web-1", "stop shop-app-1", "stop shop-app-2", "stop shop-db-1"),
        *("start shop-db-1", "start shop-app-1", "start shop-app-2", "start shop-web-1"),
    ]
    assert stopped.data["stopped"] == ["shop-web-1", "shop-app-1", "shop-app-2", "shop-db-1"]
    assert started.data["started"] == ["shop-db-1", "shop-app-1", "shop-app-2", "shop-web-1"]
    assert made.outcome is not None
    assert "shop-extra-1" not in running(docker)
    assert not step("stop.execute").act().changed, "the stack was stopped again after the work"
    assert running(docker) >= {"shop-db-1", "shop-app-1"}
    docker.calls.clear()
    assert not step("stop.execute").act().changed, "a repeated stop reported a change"


def test_containers_sharing_the_network_namespace_are_stopped_too(docker: RefusingEngine) -> None:
    db = docker.inspect("shop-db-1")
    assert db is not None
    add(docker, "sidecar", NetworkMode=f"container:{db.id}")
    add(docker, "bystander")
    docker.calls.clear()

    worker()
    step("stop.execute").act()
    assert docker.calls.index("stop sidecar") < docker.calls.index("stop shop-db-1")
    step("start.execute").act()

    assert docker.calls.index("start shop-db-1") < docker.calls.index("start sidecar")
    assert not [call for call in docker.calls if "bystander" in call]


def test_failed_stop_keeps_dependencies_and_restarts_all(docker: RefusingEngine) -> None:
    docker.refuses["stop shop-app-1"] = OperationError("will not")
    worker()

    with pytest.raises(OperationError, match="not stopped: shop-app-1: will not") as failed:
        step("stop.execute").act()

    assert not isinstance(failed.value, Transient)
    assert "shop-db-1" in running(docker), "a dependency of a running container was stopped"
    assert "shop-web-1" not in running(docker)
    assert step("start.execute").act().data["started"] == ["shop-web-1"]
    docker.refuses["stop shop-app-1"] = Transient("busy")
    with pytest.raises(Transient):
        step("stop.execute").act()


def test_failed_start_does_not_block_other_containers(docker: RefusingEngine) -> None:
    worker()
    step("stop.execute").act()
    docker.refuses["start shop-app-1"] = OperationError("port is already allocated")

    with pytest.raises(
        Unsuccessful, match="1 of 3 containers not started: shop-app-1: port is already allocated"
    ) as failed:
        step("start.execute").act()

    assert failed.value.data["down"] == ["shop-app-1"]
    assert running(docker) >= {"shop-db-1", "shop-web-1"}
    with pytest.raises(Unsuccessful, match="1 of 3 containers not healthy: shop-app-1 exited with code 0"):
        step("healthy.get", timeout="200ms").act()


def test_running_worker_is_stopped_before_the_stack_restarts(docker: RefusingEngine) -> None:
    docker.exit_codes.clear()
    made = worker()
    assert made.outcome is not None
    step("stop.execute").act()
    docker.start(made.outcome.data["id"])
    docker.calls.clear()

    step("start.execute").act()

    assert docker.calls[0] == f"stop {made.outcome.data['name']}"


def test_redelivery_repeats_no_effect(docker: RefusingEngine) -> None:
    first, second = worker(), worker()
    assert first.outcome is not None
    assert second.outcome is not None
    assert first.outcome.data["id"] == second.outcome.data["id"]
    assert not second.outcome.changed
    step("work.execute").act()
    step("work.execute").act()
    assert docker.calls.count(f"start {first.outcome.data['name']}") == 1


class Killed(BaseException):
    """The process of a step is killed at a point."""


@pytest.mark.parametrize("point", JOB_POINTS)
def test_next_attempt_completes_a_step_killed_at_any_point(
    docker: RefusingEngine, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    passed: list[str] = []

    def reach_point(name: str, variable: str, _signal: int) -> None:
        if variable == "LONGSHORE_CRASH_AT":
            passed.append(name)
            if name == point and passed.count(point) == 1:
                raise Killed

    monkeypatch.setenv("LONGSHORE_CRASH_AT", point)
    monkeypatch.setattr("longshore.tasks.crash_points._signal_at", reach_point)
    up = running(docker)
    kills = 0

    for verb, params in {"worker": {"image": "work:1"}, "stop": {}, "work": {}, "start": {}, "remove": {}}.items():
        doing = step(f"{verb}.execute", **params)
        try:
            doing.act()
        except Killed:
            kills += 1
            doing.act()
        if verb == "work":
            assert not running(docker) & up, "the stack was running during the work"

    assert kills == 1, passed
    assert running(docker) == up
    assert workers(docker) == []
    starts = [event["Actor"]["ID"] for event in docker.events(["start"], 0.0, time.time() + 1)]
    stack = {row["Id"] for row in docker.rows({}, all_of_them=True)}
    assert len([one for one in starts if one not in stack]) == 1, "the job container was started more than once"


def test_recreated_container_is_stopped_too(docker: RefusingEngine) -> None:
    worker()
    web = docker.inspect("shop-web-1")
    assert web is not None
    docker.stop(web.id)
    docker.remove(web.id)
    add(docker, "shop-web-1", "web", STACK["web"])

    step("stop.execute").act()

    assert running(docker) == set()


def test_auto_remove_container_is_not_stopped(docker: RefusingEngine) -> None:
    add(docker, "loose", AutoRemove=True)
    with pytest.raises(Preflight, match="the engine would delete container loose"):
        step("worker.execute", image="work:1", stacks=[], containers=["loose"]).act()
    assert workers(docker) == []


def test_removed_worker_is_not_recreated(docker: RefusingEngine) -> None:
    with pytest.raises(OperationError, match="removed outside of this run"):
        step("worker.execute", image="work:1", make=False).act()


def test_containers_of_other_stacks_are_untouched(docker: RefusingEngine) -> None:
    label = "com.docker.compose."
    labels = {f"{label}project": "shop", f"{label}service": "blue", "longshore.stack": "blue"}
    docker.create("shop-blue-1", {"Image": "shop:1", "Labels": labels})
    docker.start("shop-blue-1")
    worker()
    step("stop.execute").act()
    assert running(docker) == {"shop-blue-1"}


def test_paused_container_is_paused_again_after_restart(docker: RefusingEngine) -> None:
    docker.pause("shop-app-1")
    worker()
    step("stop.execute").act()
    step("start.execute").act()
    app = docker.inspect("shop-app-1")
    assert app is not None
    assert app.paused
    step("healthy.get", timeout="200ms").act()


def test_unreachable_engine_is_retried(docker: RefusingEngine) -> None:
    worker()
    step("stop.execute").act()
    docker.refuses = {f"start shop-{service}-1": Transient("it does not answer") for service in STACK}
    with pytest.raises(Transient):
        step("start.execute").act()
    docker.refuses.clear()
    assert len(step("start.execute").act().data["started"]) == 3


def test_container_ended_by_an_interrupted_stop_is_restarted(docker: RefusingEngine) -> None:
    worker()
    late = iter(["shop-web-1"])

    class Ending(dict[str, Any]):
        """An engine whose containers end with a delay."""

        def __getitem__(self, name: str) -> Any:
            if name == "stop":
                docker.stop(next(late, "shop-app-1"))
            return super().__getitem__(name)

    results = Ending(stop=SimpleNamespace(status=StepState.CANCELLED, data={}))
    started = step("start.execute", results=results, stop_timeout="300ms").act()
    assert started.data["started"] == ["shop-web-1"]
    assert running(docker) >= {"shop-web-1", "shop-app-1", "shop-db-1"}


def test_late_attempt_does_not_begin(docker: RefusingEngine) -> None:
    made = worker()
    assert made.outcome is not None
    with pytest.raises(Preflight, match="requested too long ago"):
        step("work.execute", begin=False).act()
    assert f"start {made.outcome.data['name']}" not in docker.calls


def test_preflight_fails_before_any_effect(docker: RefusingEngine) -> None:
    wrong = {
        "stack 'other' has no containers": {"stacks": ["other"]},
        "container 'unknown' does not exist": {"containers": ["unknown"]},
        "volume 'data' does not exist": {"mounts": [{"volume": "data", "path": "/mnt"}]},
        "image 'none:1' is not on the Docker host": {"image": "none:1"},
    }
    for why, params in wrong.items():
        doing = step("worker.execute", **{"image": "work:1"} | params)
        with pytest.raises(Preflight, match=why):
            doing.act()
    assert workers(docker) == []
    prediction = step("worker.execute", image="work:1", stacks=["other"]).predict()
    assert prediction.impossible is not None


def test_worker_container_is_kept_until_the_stack_is_up(docker: RefusingEngine) -> None:
    def results(start: StepState, work: StepState = StepState.CHANGED) -> dict[str, Any]:
        states = {"start": start, "healthy": StepState.UNCHANGED, "work": work}
        return {name: SimpleNamespace(status=status, data={}) for name, status in states.items()}

    worker()
    step("work.execute").act()
    kept = step("remove.execute", results=results(StepState.FAILED)).act()
    assert kept.data == {"removed": False, "kept": "the stack is not up"}
    failed = results(StepState.CHANGED, StepState.FAILED)
    assert step("remove.execute", results=failed, keep_failed=True).act().data["kept"] == "the worker failed"
    (left,) = workers(docker)
    assert left.is_kept
    assert step("remove.execute", results=failed).act().data == {"removed": True}
    assert not step("remove.execute", results=failed).act().changed


def test_snapshot_is_read_from_the_record_without_the_worker(docker: RefusingEngine) -> None:
    made = worker()
    assert made.outcome is not None
    step("stop.execute").act()
    docker.remove(made.outcome.data["id"])

    record = {"worker": SimpleNamespace(data=json.loads(json.dumps(made.outcome.data)))}
    assert len(step("start.execute", results=record).act().data["started"]) == 3


def test_two_installations_on_one_engine_serialise_jobs(
    docker: RefusingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_record = {"stacks": ["shop"], "targets": [], "loose": [], "name": "backup", "image": "i", "scope": "stack"}
    plan_record |= {"host": "", "overlap": "queue", "stop_timeout": 1, "start_timeout": 1, "timeout": 1, "grace": 1}
    params = json.dumps(plan_record | {"keep_stopped": False, "keep_failed_worker": False})
    docker.exit_codes.clear()
    first = worker("theirs", plan_record=params)
    assert first.outcome is not None
    docker.start(first.outcome.data["id"])
    monkeypatch.setenv("LONGSHORE_NAMESPACE", "another")
    get_settings.cache_clear()

    with pytest.raises(Delayed, match="another installation uses these stacks: worker longshore-job-backup-"):
        worker("ours", plan_record=params)
    docker.remove(first.outcome.data["id"])
    mine = worker("ours", plan_record=params)
    assert mine.outcome is not None

    # A job container of this installation belongs to a run that Redis has lost: this run must not wait for that
    # run with its locks.
    with pytest.raises(Transient, match="run ours still uses these stacks"):
        worker("next", plan_record=params)
    assert len(workers(docker)) == 1


def test_discovery_lists_only_described_jobs(docker: RefusingEngine) -> None:
    docker.create("target", {"Image": "shop:1", "Labels": {"longshore.job.enabled": "true", "secret": "x"}})
    worker()
    _, stacks, entities = described(docker)
    assert stacks == ("shop",)
    assert [(entity.name, dict(entity.labels)) for entity in entities] == [
        ("target", {"longshore.job.enabled": "true"})
    ]


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=12))
def test_containers_are_ordered_by_dependencies(edges: list[list[int]]) -> None:
    kept = [
        ContainerSnapshot(
            f"id{n}", f"c{n}", "p", f"s{n}", depends_on={f"s{m}": "service_started" for m in needs if m < n}
        )
        for n, needs in enumerate(edges)
    ]
    levels = in_order(kept)
    assert sorted(one.id for level in levels for one in level) == sorted(one.id for one in kept)
    place = {one.service: n for n, level in enumerate(levels) for one in level}
    for one in kept:
        assert all(place[other] < place[one.service] for other in one.depends_on)


def test_dependency_cycle_shares_one_level() -> None:
    one = ContainerSnapshot("a", "a", "p", "a", depends_on={"b": "service_started"})
    other = ContainerSnapshot("b", "b", "p", "b", depends_on={"a": "service_started"})
    assert in_order([one, other]) == [[one, other]]


def test_oom_state_is_read_after_a_delay(docker: RefusingEngine) -> None:
    docker.create("eater", {"Image": "shop:1"})
    docker.start("eater")
    found = docker.inspect("eater")
    assert found is not None
    docker._put(found, running=False, status="exited", exit_code=137, oom_killed=True)
    assert captured_output(docker, dataclasses.replace(found, exit_code=137)).oom_killed
    assert not captured_output(docker, dataclasses.replace(found, exit_code=1)).oom_killed, (
        "the exit code 1 was reported as out of memory"
    )
