"""Jobs during which a worker, Redis or the engine fails. Each test starts its own workers."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Run
from longshore.orchestration.errors import StopFailed
from longshore.orchestration.jobs.jobs import Jobs
from longshore.orchestration.states import TERMINAL
from tests.docker.engine_proxy import EngineProxy, refusal
from tests.docker.job_stack import SOON, JobStack, module_shop, shop
from tests.integration.conftest import QUICK, MakeInstallation, module_installation, short_folder
from tests.integration.processes import Installation, wait_for
from tests.servers import IMAGE, RedisServer, engine_url

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.jobs]
assert shop
assert module_shop
assert module_installation
assert short_folder

HOST = "web1"
#: Crashes while the worker stops the stack, and while the worker starts the stack. A test below has two more crash
#: points, and `test_next_attempt_completes_a_step_killed_at_any_point` has all points, with an engine in memory.
POINTS = ("job.half_stopped", "job.half_started")


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    return module_installation(docker_host=engine_url(), options={"host": HOST})


@pytest.fixture
def installation(place: Installation) -> Installation:
    """The installation without workers of earlier tests."""
    for one in place.workers:
        one.kill()
    return place


def test_secret_of_a_job_file_is_masked_everywhere(installation: Installation, shop: JobStack) -> None:
    shop.up()
    secret, file = f"s3cret-{shop.name}", installation.folder / "secret.yaml"
    command = ["sh", "-c", 'echo "has $TOKEN"; test -n "$TOKEN"']
    described = {
        "image": IMAGE,
        "stacks": [shop.name],
        "command": command,
        "env": {"TOKEN": "{{ secret('env:LONGSHORE_SECRET_LST') }}"},
    }
    file.write_text(json.dumps({"jobs": {f"{shop.job}-s": described}}))

    with installation.worker("knows", "-c", "2", LONGSHORE_SECRET_LST=secret):
        done = installation.longshore("job", "run", f"{shop.job}-s", "-f", str(file), "--run-id", f"{shop.job}-s")

    assert done.code == 0, done.err
    assert "| has " in done.out
    kept = [installation.redis.dump(key) or b"" for key in installation.redis.scan_iter("*")]
    assert not [text for text in [done.out.encode(), done.err.encode(), *kept] if secret.encode() in text]
    assert installation.client().get(f"{shop.job}-s").report().step("work").data["stdout"].startswith("has ***")


class RefusingStop(EngineProxy):
    """Refuses to stop one container."""

    refused = ""

    def answer(self, request: bytes) -> bytes:
        if self.refused and re.match(rf"POST \S*/containers/{self.refused}/stop", request.decode(errors="replace")):
            return refusal("cannot stop container: tried to kill container, but did not receive an exit event")
        return b""


def test_partial_stop_is_reverted(installation: Installation, shop: JobStack, short_folder: Path) -> None:
    shop.up()
    before = {name: shop.started_at(name) for name in ("db-1", "app-1", "app-2")}
    engine = RefusingStop(short_folder)
    engine.refused = f"(?:{shop.inspect('app-1')['Id']}|{shop.name}-app-1)"
    with (
        installation.worker("behind", "-c", "2", LONGSHORE_DOCKER_HOST=engine.url),
        pytest.raises(StopFailed) as failed,
    ):
        Jobs(installation.client()).run(shop.job)
    engine.close()

    report = failed.value.report
    assert report.job is not None
    assert (report.exit_code, report.job.result, report.job.restart) == (1, "failed", "healthy")
    assert "did not receive an exit event" in str(report.step("stop").error)
    assert report.step("work").status == "not_run"
    assert shop.is_healthy()
    assert shop.started_at("web-1") > max(before.values()), "web-1 was stopped and started"
    assert {name: shop.started_at(name) for name in ("db-1", "app-1")}.items() <= before.items(), "never stopped"
    assert shop.job_containers() == []


def recovered(run: Run, shop: JobStack) -> Any:
    report = run.wait(SOON)
    assert shop.is_healthy(), report
    return report


@pytest.mark.parametrize("point", POINTS)
def test_job_runs_once_and_the_stack_is_healthy_after_a_kill(
    installation: Installation, shop: JobStack, tmp_path: Path, point: str
) -> None:
    shop.up(sleep=0.5)
    client, marker = installation.client(), tmp_path / "killed"
    crashing = installation.worker("crashing", "-c", "2", LONGSHORE_CRASH_AT=f"{point}:{marker}")
    crashing.start()
    run = Jobs(client).start(shop.job, run_id=f"{shop.job}-k")
    wait_for(f"the crash at {point}", marker.exists)
    crashing.kill()

    with installation.worker("second", "-c", "2"):
        report = recovered(run, shop)

    assert (report.state, report.job.result, report.job.restart) == ("succeeded", "succeeded", "healthy")
    assert shop.runs() == 1
    assert shop.job_containers() == []


def test_worker_completes_its_job_before_shutdown(installation: Installation, shop: JobStack) -> None:
    shop.up(sleep=2)
    client = installation.client()
    terminated = installation.worker("terminated", "-c", "2")
    terminated.start()
    run = Jobs(client).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)
    terminated.stop()

    with installation.worker("second", "-c", "2"):
        report = recovered(run, shop)

    assert report.job.result == "succeeded"
    assert shop.runs() == 1


@pytest.mark.parametrize("point", ["job.created", "job.recorded"])
def test_job_is_completed_from_labels_after_a_kill_and_a_lost_run(
    installation: Installation, shop: JobStack, tmp_path: Path, point: str
) -> None:
    shop.up(sleep=1)
    client, marker = installation.client(), tmp_path / "killed"
    crashing = installation.worker("crashing", "-c", "2", LONGSHORE_CRASH_AT=f"{point}:{marker}")
    crashing.start()
    run = Jobs(client).start(shop.job, run_id=f"{shop.job}-kl")
    wait_for(f"the crash at {point}", marker.exists)
    crashing.kill()
    began = shop.started_at("db-1") if point == "job.recorded" else ""
    assert installation.redis.flushall()

    with installation.worker("second", "-c", "2"):
        wait_for("the reconstructed run", lambda: client.store.body(run.id))
        report = client.get(run.id).wait(SOON)

    assert report.job is not None
    assert (report.job.result, report.job.restart, report.job.reconstructed) == ("succeeded", "healthy", True)
    assert shop.is_healthy()
    assert shop.runs() == 1
    assert shop.job_containers() == []
    if began:
        assert shop.started_at("db-1") == began, "the stack is not stopped a second time"


def test_job_succeeds_during_a_restart_of_redis(shop: JobStack, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server = RedisServer()
    server.start()
    made = Installation(server.url, tmp_path, docker_host=engine_url(), options=QUICK | {"host": HOST})
    request.addfinalizer(server.close)
    request.addfinalizer(made.close)
    worker = made.worker("one", "-c", "2")
    worker.start()
    shop.up(sleep=2)
    run = Jobs(made.client()).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)

    server.stop(signal.SIGKILL)
    time.sleep(1)
    server.start()

    def over() -> bool:
        worker.keep_alive()
        return run.state() in TERMINAL

    wait_for("the end of the run", over, SOON)
    report = run.report()
    assert report.job is not None
    assert (report.exit_code, report.job.result, report.job.restart) == (0, "succeeded", "healthy")
    assert shop.runs() == 1
