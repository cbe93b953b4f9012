"""Jobs on a real stack: the order of stops and starts, failures, cancels, and the page about jobs."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from longshore.orchestration import Client
from longshore.orchestration.errors import (
    ImageMissing,
    JobNotFound,
    JobTimeout,
    StartFailed,
    WorkerFailed,
)
from longshore.orchestration.jobs import labels
from longshore.orchestration.jobs.file import read_jobs
from longshore.orchestration.jobs.jobs import Jobs
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.operations.jobs.discovery import workers
from longshore.workers.job_agent import JobWatch
from tests.docker.job_stack import COUNT, RUNNING, SOON, JobStack, module_shop, shop
from tests.integration.conftest import MakeInstallation, module_installation
from tests.integration.processes import Installation, Worker, fork_server, wait_for
from tests.servers import IMAGE, engine_url, remove_project

if TYPE_CHECKING:
    from docker import APIClient

pytestmark = [pytest.mark.docker, pytest.mark.integration, pytest.mark.jobs]
assert shop
assert module_shop
assert module_installation

ROOT = Path(__file__).resolve().parents[2]
HOST = "web1"


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation(docker_host=engine_url(), options={"host": HOST})
    made.client()
    return made


@pytest.fixture
def worker(place: Installation) -> Worker:
    """The worker `one`, which tests share."""
    shared = next((one for one in place.workers if one.node.startswith("one@")), None)
    shared = shared or place.worker("one", "-c", "3")
    if not shared.running:
        shared.start()
    return shared


@pytest.fixture
def client(place: Installation, worker: Worker) -> Client:
    return place.client()


def test_job_stops_the_stack_and_restores_its_state(client: Client, shop: JobStack) -> None:
    shop.up()
    before = {service: shop.started_at(service) for service in [*RUNNING, "extra-1"]}
    log = io.StringIO()

    report = Jobs(client).run(shop.job, log=log)

    assert report.job is not None
    assert (report.exit_code, report.job.result, report.job.restart, report.job.down) == (0, "succeeded", "healthy", [])
    name, first, second = log.getvalue().splitlines()
    assert name == f"{shop.job} {shop.name}"
    assert first == second, "no service wrote during the job"
    assert shop.is_healthy(), "a stopped service stays stopped"
    assert {s for s in before if shop.started_at(s) != before[s]} == set(RUNNING)
    ended = [shop.finished_at(service) for service in ("web-1", "app-1", "db-1")]
    assert ended == sorted(ended), "dependents stop first"
    began = [shop.started_at(service) for service in ("db-1", "app-1", "web-1")]
    assert began == sorted(began), "dependents start last"
    assert max(shop.finished_at("app-1"), shop.finished_at("app-2")) < shop.finished_at("db-1")
    assert shop.runs() == 1
    assert shop.job_containers() == [], "the record has the output"
    assert report.step("work").data["stdout"].splitlines()[0] == name


def test_command_line_lists_shows_and_runs_a_job(place: Installation, worker: Worker, shop: JobStack) -> None:
    shop.up(labels={"schedule": "0 3 * * *", "timezone": "Europe/Berlin", "colour": "red"})

    listed = place.longshore("job", "ls")
    assert listed.code == 0
    assert shop.job in listed.out
    assert "0 3 * * * Europe/Berlin" in listed.out
    assert "warning: container " in listed.err, "an unknown label"
    assert "longshore.job.colour" in listed.err
    assert place.longshore("job", "ls", "--strict").code == 2
    shown = place.longshore("job", "show", shop.job, "-o", "json")
    assert list(shown.json["plan"]["steps"]) == ["image", "worker", "stop", "work", "start", "healthy", "remove"]
    assert shown.json["job"]["stacks"] == [shop.name]

    done = place.longshore("job", "run", shop.job)
    assert done.code == 0, done.err
    assert f"| {shop.job} {shop.name}" in done.out
    assert f"job {shop.job}: succeeded; the stack is up again" in done.out

    unknown = place.longshore("job", "run", "nothing-such")
    assert unknown.code == 2
    assert shop.job in unknown.err, "the error names the known jobs"


def test_stack_is_started_after_a_failed_job_container(place: Installation, worker: Worker, shop: JobStack) -> None:
    shop.up(more="echo no room >&2; exit 7")
    client = place.client()

    with pytest.raises(WorkerFailed, match="exited with code 7: no room") as failed:
        Jobs(client).run(shop.job)

    assert failed.value.exit_code == failed.value.report.exit_code == 1
    assert failed.value.report.job.exit_code == 7
    assert shop.is_healthy()
    assert shop.job_containers() == []

    kept = Jobs(client).run(shop.job, check=False, keep_failed_worker=True)
    assert kept.job is not None
    assert kept.job.result == "failed"
    (container,) = shop.job_containers()
    watch = JobWatch(client.store, HOST, ("docker",))
    watch.finish()
    watch.finish()
    assert shop.job_containers() == [container]
    assert shop.engine.inspect_container(container)["Name"].endswith("--kept")


def test_job_that_exits_with_zero_at_its_timeout_is_timed_out(client: Client, shop: JobStack) -> None:
    shop.up(labels={"worker.command": "sh -c 'trap \"exit 0\" TERM; sleep 60 & wait'"})

    with pytest.raises(JobTimeout) as failed:
        Jobs(client).run(shop.job, timeout="1s")

    report = failed.value.report
    assert (report.job.result, report.job.exit_code, report.exit_code) == ("timed_out", 0, 1)
    assert failed.value.exit_code == 1
    assert shop.is_healthy()


def test_missing_job_image_causes_no_downtime(place: Installation, client: Client, shop: JobStack) -> None:
    shop.up(labels={"worker.image": "longshore-nothing:1", "worker.pull": "never"})
    before = {service: shop.started_at(service) for service in RUNNING}

    dry_run = place.longshore("job", "run", shop.job, "--dry-run")
    assert dry_run.code == 1
    assert "cannot succeed" in dry_run.out
    with pytest.raises(ImageMissing):
        Jobs(client).run(shop.job)

    assert {service: shop.started_at(service) for service in RUNNING} == before


def test_dry_run_of_a_job_names_errors_and_changes_nothing(place: Installation, worker: Worker, shop: JobStack) -> None:
    shop.up()
    before = {service: (shop.inspect(service)["Id"], shop.started_at(service)) for service in RUNNING}
    file = place.folder / "jobs.yaml"
    base = {"image": "longshore-test:1", "host": HOST}
    jobs = {"no-stack": base | {"stacks": ["nothing-such"]}, "no-volume": base | {"mounts": ["nothing-such"]}}
    file.write_text(json.dumps({"jobs": jobs | {"no-image": base | {"image": "longshore-nothing:1"}}}))

    possible = place.longshore("job", "run", shop.job, "--dry-run")
    assert possible.code == 0, possible.err
    assert f"would stop {shop.name}-web-1, then {shop.name}-app-1, {shop.name}-app-2, then {shop.name}-db-1" in (
        possible.out
    )
    for name, why in {
        "no-stack": "stack 'nothing-such' has no containers",
        "no-volume": "volume 'nothing-such' does not exist",
        "no-image": "image 'longshore-nothing:1' is not on the Docker host",
    }.items():
        done = place.longshore("job", "run", name, "--dry-run", "-f", str(file), "-o", "json")
        assert done.code == 1, done.out
        assert why in done.out
    assert {service: (shop.inspect(service)["Id"], shop.started_at(service)) for service in RUNNING} == before
    assert shop.job_containers() == []


def test_stack_is_started_after_a_failed_stop(client: Client, shop: JobStack) -> None:
    shop.up()
    shop.engine.pause(
        f"{shop.name}-app-1"
    )  # a paused container receives SIGTERM only after the pause, so that the stop fails
    report = Jobs(client).run(shop.job, check=False)
    assert report.job is not None
    assert report.job.restart == "healthy"
    assert shop.running() == RUNNING
    assert shop.inspect("app-1")["State"]["Paused"], "the pause is restored"


def test_removed_container_of_the_stack_is_recreated(client: Client, shop: JobStack) -> None:
    shop.up(sleep=2)
    run = Jobs(client).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)
    was = shop.inspect("web-1")["Id"]
    shop.engine.remove_container(was)

    report = run.wait(SOON)

    assert (report.exit_code, report.state) == (0, "succeeded"), report
    assert shop.is_healthy()
    assert shop.inspect("web-1")["Id"] != was


def test_stack_is_recreated_after_a_prune_during_a_job(client: Client, shop: JobStack) -> None:
    # Given a stack without its files
    shop.up(sleep=4)
    was = {service: shop.inspect(service)["Config"]["Labels"] for service in RUNNING}
    file = shop.project.directory / "compose.yml"
    file.rename(file.with_suffix(".gone"))
    try:
        run = Jobs(client).start(shop.job)
        wait_for("the start of the job container", shop.job_is_running)
        shop.engine.prune_containers(filters={"label": f"com.docker.compose.project={shop.name}"})
        assert shop.running() == []

        report = run.wait(90)
    finally:
        file.with_suffix(".gone").rename(file)

    assert (report.exit_code, report.job and report.job.restart) == (0, "healthy"), report
    assert shop.running() == RUNNING
    assert {service: shop.inspect(service)["Config"]["Labels"] for service in RUNNING} == was
    assert shop.runs() == 1
    assert not [tag for i in shop.engine.images() for tag in i["RepoTags"] or [] if run.id in tag]
    shop.compose("up", "--detach", "--no-start")  # restores extra, which was pruned, too
    shop.compose("stop", "--timeout", "1", "extra")


def test_new_job_label_of_an_existing_volume_is_an_error(place: Installation, worker: Worker, shop: JobStack) -> None:
    # Given a label that was added to the file after the volume was created
    shop.up()
    file = shop.project.directory / "compose.yml"
    text = file.read_text()
    described = json.loads(text)
    labels = described["volumes"]["data"]["labels"]
    labels["longshore.job.mount.path"] = "/elsewhere"
    described["volumes"]["data"]["labels"] = [f"{key}={value}" for key, value in labels.items()]
    file.write_text(json.dumps(described))
    try:
        listed = place.longshore("job", "ls")
        dry = place.longshore("--dry-run", "job", "run", shop.job)
        done = place.longshore("job", "run", shop.job)
    finally:
        file.write_text(text)

    why = "declares '/elsewhere', and the existing volume does not have this label"
    assert why in listed.out + listed.err
    assert (dry.code, done.code) == (2, 2)
    assert all(why in each.err and "LONGSHORE_JOBS" in each.err for each in (dry, done))
    assert shop.running() == RUNNING
    assert not shop.job_containers()


def test_report_names_a_container_that_does_not_become_healthy(client: Client, shop: JobStack) -> None:
    shop.up(more=f"{COUNT}; rm /mnt/data/log; mkdir /mnt/data/log", labels={"start-timeout": "2s"})

    with pytest.raises(StartFailed) as failed:
        Jobs(client).run(shop.job)

    report = failed.value.report
    assert failed.value.exit_code == report.exit_code == 3
    assert (report.job.result, report.job.restart) == ("succeeded", "failed")
    assert report.job.down == [f"{shop.name}-db-1"]
    assert report.production[0].startswith(f"{shop.name.upper()} IS DOWN on {IMAGE}: container {shop.name}-db-1 ")
    assert shop.running() == RUNNING, "all other services are started"
    assert len(shop.job_containers()) == 1, "the labels of the job container name the services to start"


def test_keep_stopped_leaves_the_stack_stopped(client: Client, shop: JobStack) -> None:
    shop.up()

    report = Jobs(client).run(shop.job, keep_stopped=True)

    assert report.job is not None
    assert (report.exit_code, report.job.restart) == (0, "kept_stopped")
    assert shop.running() == []
    assert shop.job_containers() == []


# --- cancelled ------------------------------------------------------------------------------------


def test_cancel_stops_the_job_container_and_starts_the_stack(
    place: Installation, client: Client, shop: JobStack
) -> None:
    shop.up(sleep=60)
    run = Jobs(client).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)
    assert f"{HOST}/{shop.name}" in json.dumps(place.longshore("locks", "ls", "-o", "json").json)

    assert place.longshore("runs", "cancel", run.id).code in {0, 1}
    report = run.wait(SOON)

    assert report.job is not None
    assert (report.job.result, report.job.restart, report.exit_code) == ("cancelled", "healthy", 1)
    assert shop.is_healthy()
    assert shop.job_containers() == []


def test_first_ctrl_c_detaches_and_second_ctrl_c_cancels_the_job(
    place: Installation, worker: Worker, shop: JobStack
) -> None:
    shop.up(sleep=60)
    process = place.popen("job", "run", shop.job, "--run-id", f"{shop.job}-c")
    wait_for("the start of the job container", shop.job_is_running)
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert shop.job_is_running()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert f"run {shop.job}-c continues" in err
    assert "cancelling" in err
    report = place.client().get(f"{shop.job}-c").wait(SOON)
    assert report.job is not None
    assert report.job.result == "cancelled"
    assert shop.is_healthy()


# --- a lost job container -------------------------------------------------------------------------


def test_job_fails_if_its_container_is_killed(client: Client, shop: JobStack) -> None:
    shop.up(sleep=60)
    run = Jobs(client).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)
    shop.engine.kill(shop.job_containers()[0])

    report = run.wait(SOON)

    assert shop.is_healthy(), report
    assert report.job is not None
    assert (report.job.result, report.job.exit_code, report.exit_code) == ("failed", 137, 1)


def test_job_fails_if_its_container_is_removed(client: Client, shop: JobStack) -> None:
    shop.up(sleep=60)
    run = Jobs(client).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)
    shop.engine.remove_container(shop.job_containers()[0], force=True)

    report = run.wait(SOON)

    assert shop.is_healthy(), report
    assert report.job is not None
    assert (report.job.result, report.job.restart) == ("failed", "healthy"), "the record has the running services, too"


def test_wait_for_a_job_returns_after_redis_lost_the_run(place: Installation, client: Client, shop: JobStack) -> None:
    shop.up(sleep=3)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(Jobs(client).run, shop.job)
        wait_for("the start of the job container", shop.job_is_running)
        assert place.redis.flushall()
        report = waiting.result(SOON)

    assert report.job is not None
    assert (report.exit_code, report.job.result, report.job.reconstructed) == (0, "succeeded", True)
    assert shop.is_healthy()


def test_job_agent_starts_a_stack_that_a_job_left_down(
    place: Installation, client: Client, shop: JobStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.up(more="rm /mnt/data/log; mkdir /mnt/data/log", labels={"start-timeout": "2s"})
    report = Jobs(client).run(shop.job, run_id=f"{shop.job}-down", check=False)
    assert report.exit_code == 3
    (container,) = shop.job_containers()

    done = shop.engine.exec_create(f"{shop.name}-db-1", ["rmdir", "/data/log"])
    shop.engine.exec_start(done["Id"])

    wait_for("a healthy stack", shop.is_healthy)
    watch = JobWatch(client.store, HOST, ("docker",))
    monkeypatch.setattr("longshore.workers.job_agent._AGAIN", (0.0,))
    watch.finish()
    watch.finish()
    later = client.get(f"{shop.job}-down.again1").wait(SOON)
    assert later.job is not None
    assert later.job.restart == "healthy"
    watch.finish()
    watch.finish()
    assert container not in shop.job_containers()


@pytest.mark.parametrize("policy", ["skip", "cancel-running"])
def test_overlap_policy_skips_or_replaces_a_run(client: Client, shop: JobStack, policy: str) -> None:
    shop.up(sleep=2, labels={"overlap-policy": policy})
    first = Jobs(client).start(shop.job, run_id=f"{shop.job}-1")
    wait_for("the start of the job container", shop.job_is_running)
    second = Jobs(client).start(shop.job, run_id=f"{shop.job}-2")

    results = [run.wait(SOON).job for run in (first, second)]

    expected = ["succeeded", "cancelled"] if policy == "skip" else ["cancelled", "succeeded"]
    assert [job.result for job in results if job] == expected
    assert shop.is_healthy()


def test_job_discovery_works_after_redis_was_flushed(
    place: Installation, worker: Worker, client: Client, shop: JobStack
) -> None:
    shop.up()
    for _ in range(3):
        assert Jobs(client).list().job(shop.job)
    assert place.redis.flushall()
    wait_for("the worker to be registered again", client.hosts)
    assert Jobs(client).list().job(shop.job)


def test_job_agent_leaves_the_job_container_of_a_live_run(client: Client, shop: JobStack) -> None:
    shop.up(sleep=2)
    run = Jobs(client).start(shop.job)
    wait_for("the start of the job container", shop.job_is_running)
    (left,) = [one for one in workers(engine()) if one.run_id == run.id]

    watch = JobWatch(client.store, HOST, ("docker",))
    watch._take_up(left)  # as another worker of the host, which has read a job container without a run

    assert shop.job_is_running()
    assert run.wait(SOON).exit_code == 0


def test_unknown_job_is_an_error(client: Client, shop: JobStack) -> None:
    shop.up()
    with pytest.raises(JobNotFound, match=shop.job) as failed:
        Jobs(client).plan("nothing-such")
    assert failed.value.exit_code == 2


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / "jobs.md").read_text(), re.DOTALL)


def test_commands_and_code_of_the_jobs_page_run(
    engine: APIClient, place: Installation, worker: Worker, tmp_path: Path
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "bin").mkdir()
    fork_server().write_program(tmp_path / "bin" / "longshore")
    path = f"{tmp_path}/bin{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = place.environment | {"IMAGE": IMAGE, "DOCKER_HOST": engine_url(), "PATH": path}
    (shell,), python = blocks("sh"), "\n".join(["from longshore.orchestration import Client", *blocks("python")])
    try:
        for command in (["sh", "-e", "-c", shell], [sys.executable, "-c", python]):
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "/mnt/copies/orders" in done.stdout or "succeeded healthy" in done.stdout
    finally:
        remove_project(engine, "jobs-example")


def test_jobs_page_names_every_label() -> None:
    text = (ROOT / "docs" / "how-to" / "jobs.md").read_text()
    for label in (*labels._OF_CONTAINERS, *labels._OF_VOLUMES):
        assert f"`{label}`" in text or f"`{labels.PREFIX}{label}`" in text, label


def test_file_on_the_page_is_valid(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text(blocks("yaml")[0])
    jobs, findings = read_jobs(tmp_path / "jobs.yaml")
    assert (list(jobs), findings) == (["weekly-dump"], [])
