"""Jobs whose worker, Redis or engine fails in the middle: a real stack, and workers that each test starts itself."""

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
#: A worker dies while it stops the stack, while the work is done, and while it starts the stack. The other points are
#: tried on an engine in memory, and two more below.
POINTS = ("job.half_stopped", "job.running", "job.half_started")


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    return module_installation(docker_host=engine_url(), options={"host": HOST})


@pytest.fixture
def alone(place: Installation) -> Installation:
    """Without any worker that another test has left."""
    for one in place.workers:
        one.kill()
    return place


def test_secret_of_a_job_file_is_masked_everywhere(alone: Installation, shop: JobStack) -> None:
    shop.up()
    secret, file = f"s3cret-{shop.name}", alone.folder / "secret.yaml"
    command = ["sh", "-c", 'echo "has $TOKEN"; test -n "$TOKEN"']
    described = {
        "image": IMAGE,
        "stacks": [shop.name],
        "command": command,
        "env": {"TOKEN": "{{ secret('env:LONGSHORE_SECRET_LST') }}"},
    }
    file.write_text(json.dumps({"jobs": {f"{shop.job}-s": described}}))

    with alone.worker("knows", "-c", "2", LONGSHORE_SECRET_LST=secret):
        done = alone.longshore("job", "run", f"{shop.job}-s", "-f", str(file), "--run-id", f"{shop.job}-s")

    assert done.code == 0, done.err
    assert "| has " in done.out
    kept = [alone.redis.dump(key) or b"" for key in alone.redis.scan_iter("*")]
    assert not [text for text in [done.out.encode(), done.err.encode(), *kept] if secret.encode() in text]
    assert alone.client().get(f"{shop.job}-s").report().step("work").data["stdout"].startswith("has ***")


class RefusingStop(EngineProxy):
    """Stops everything but one container."""

    spared = ""

    def answer(self, request: bytes) -> bytes:
        if self.spared and re.match(rf"POST \S*/containers/{self.spared}/stop", request.decode(errors="replace")):
            return refusal("cannot stop container: tried to kill container, but did not receive an exit event")
        return b""


def test_partial_stop_is_reverted(alone: Installation, shop: JobStack, short_folder: Path) -> None:
    shop.up()
    before = {name: shop.started_at(name) for name in ("db-1", "app-1", "app-2")}
    engine = RefusingStop(short_folder)
    engine.spared = f"(?:{shop.inspect('app-1')['Id']}|{shop.name}-app-1)"
    with alone.worker("behind", "-c", "2", LONGSHORE_DOCKER_HOST=engine.url), pytest.raises(StopFailed) as failed:
        Jobs(alone.client()).run(shop.job)
    engine.close()

    report = failed.value.report
    assert report.job is not None
    assert (report.exit_code, report.job.result, report.job.restart) == (1, "failed", "healthy")
    assert "did not receive an exit event" in str(report.step("stop").error)
    assert report.step("work").status == "not_run"
    assert shop.is_healthy()
    assert shop.started_at("web-1") > max(before.values()), "it was stopped, and is started again"
    assert {name: shop.started_at(name) for name in ("db-1", "app-1")}.items() <= before.items(), "never stopped"
    assert shop.workers() == []


def recovered(run: Run, shop: JobStack) -> Any:
    report = run.wait(SOON)
    assert shop.is_healthy(), report
    return report


@pytest.mark.parametrize("point", POINTS)
def test_job_runs_once_and_the_stack_is_healthy_after_a_kill(
    alone: Installation, shop: JobStack, tmp_path: Path, point: str
) -> None:
    shop.up(sleep=0.5)
    client, marker = alone.client(), tmp_path / "killed"
    doomed = alone.worker("doomed", "-c", "2", LONGSHORE_CRASH_AT=f"{point}:{marker}")
    doomed.start()
    run = Jobs(client).start(shop.job, run_id=f"{shop.job}-k")
    wait_for(f"it to be killed at {point}", marker.exists)
    doomed.kill()

    with alone.worker("healer", "-c", "2"):
        report = recovered(run, shop)

    assert (report.state, report.job.result, report.job.restart) == ("succeeded", "succeeded", "healthy")
    assert shop.runs() == 1
    assert shop.workers() == []


def test_worker_completes_its_job_before_shutdown(alone: Installation, shop: JobStack) -> None:
    shop.up(sleep=2)
    client = alone.client()
    polite = alone.worker("polite", "-c", "2")
    polite.start()
    run = Jobs(client).start(shop.job)
    wait_for("the worker to be at work", shop.job_is_running)
    polite.stop()

    with alone.worker("healer", "-c", "2"):
        report = recovered(run, shop)

    assert report.job.result == "succeeded"
    assert shop.runs() == 1


def test_job_is_completed_from_labels_after_redis_lost_the_run(alone: Installation, shop: JobStack) -> None:
    shop.up(sleep=3)
    client = alone.client()
    with alone.worker("first", "-c", "2"):
        run = Jobs(client).start(shop.job, run_id=f"{shop.job}-lost")
        wait_for("the worker to be at work", shop.job_is_running)
    assert alone.redis.flushall()

    with alone.worker("healer", "-c", "2"):
        wait_for("the stack to be up", shop.is_healthy, SOON)
        wait_for("the run to be known again", lambda: client.store.body(run.id))
        report = client.get(run.id).wait(SOON)

    assert report.job is not None
    assert (report.job.result, report.job.restart, report.job.reconstructed) == ("succeeded", "healthy", True)
    assert shop.runs() == 1
    assert shop.workers() == []


@pytest.mark.parametrize("point", ["job.created", "job.recorded"])
def test_job_is_completed_from_labels_after_a_kill_and_a_lost_run(
    alone: Installation, shop: JobStack, tmp_path: Path, point: str
) -> None:
    shop.up(sleep=1)
    client, marker = alone.client(), tmp_path / "killed"
    doomed = alone.worker("doomed", "-c", "2", LONGSHORE_CRASH_AT=f"{point}:{marker}")
    doomed.start()
    run = Jobs(client).start(shop.job, run_id=f"{shop.job}-kl")
    wait_for(f"it to be killed at {point}", marker.exists)
    doomed.kill()
    began = shop.started_at("db-1") if point == "job.recorded" else ""
    assert alone.redis.flushall()

    with alone.worker("healer", "-c", "2"):
        wait_for("the run to be known again", lambda: client.store.body(run.id))
        report = client.get(run.id).wait(SOON)

    assert report.job is not None
    assert (report.job.result, report.job.restart, report.job.reconstructed) == ("succeeded", "healthy", True)
    assert shop.is_healthy()
    assert shop.runs() == 1
    assert shop.workers() == []
    if began:
        assert shop.started_at("db-1") == began, "it was up again, and is not stopped another time"


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
    wait_for("the worker to be at work", shop.job_is_running)

    server.stop(signal.SIGKILL)
    time.sleep(1)
    server.start()

    def over() -> bool:
        worker.keep_alive()
        return run.state() in TERMINAL

    wait_for("it to end", over, SOON)
    report = run.report()
    assert report.job is not None
    assert (report.exit_code, report.job.result, report.job.restart) == (0, "succeeded", "healthy")
    assert shop.runs() == 1
