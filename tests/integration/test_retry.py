"""A call of an unavailable service is a Celery retry with backoff, without options in the plan."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any

import pytest

from longshore.orchestration import Plan, Run
from longshore.orchestration.messaging.canvas import producer
from tests import servers
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation, wait_for

if TYPE_CHECKING:
    import docker

#: Seconds for which the service is unavailable.
AWAY = 3.0


@contextmanager
def task_events(installation: Installation) -> Iterator[list[dict[str, Any]]]:
    """The task events of Celery, as Flower receives them."""
    app = producer(installation.settings)
    found: list[dict[str, Any]] = []
    stop, listening = threading.Event(), threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": found.append})
            with receiver.consumer_context() as (own, _, _):
                listening.set()
                while not stop.is_set():
                    try:
                        own.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(PATIENCE)
    try:
        yield found
        time.sleep(0.3)  # wait for the last events
    finally:
        stop.set()
        thread.join(PATIENCE)
        app.close()


def plan_of(operation: str, **params: Any) -> Plan:
    plan = Plan("patient")
    plan.step("ask", operation, **params)
    return plan


def story(run: Run, event: str) -> list[dict[str, str]]:
    return [dict(found.fields) for found in run.events() if found.name == event]


def check_retries(run: Run) -> None:
    """Check that the last attempt succeeded, and that the delays grew."""
    report = run.wait(PATIENCE)
    assert report.exit_code == 0, report.error
    step = report.step("ask")
    assert 3 <= step.attempts <= 4
    # the delay doubles; jitter subtracts at most one half
    delays = [int(retry["delay_ms"]) / 1000 for retry in story(run, "step_retrying")]
    assert len(delays) == step.attempts - 1
    for number, delay in enumerate(delays):
        assert 0.5 * 2**number <= delay <= 2.0**number
    assert all("does not respond" in retry["error"] for retry in story(run, "step_retrying"))


def retried(events: list[dict[str, Any]], run: Run) -> list[dict[str, Any]]:
    """The retry events of the tasks of a run."""
    own = {event["uuid"] for event in events if event["type"] == "task-received" and event.get("root_id") == run.id}
    return [event for event in events if event["type"] == "task-retried" and event["uuid"] in own]


class _FakeEngine(BaseHTTPRequestHandler):
    """An engine without containers."""

    def do_GET(self) -> None:
        version = {"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "25.0"}
        found = self.path.endswith("/version")
        body = json.dumps(version if found else {"message": "No such container"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls by name
        """Write no log."""


@pytest.fixture
def socket(workers: Installation) -> Iterator[Path]:
    """The path of the engine's socket for the workers; no engine listens there."""
    path = engine_socket(workers)
    assert not path.exists()
    yield path
    path.unlink(missing_ok=True)


def engine_socket(installation: Installation) -> Path:
    return Path(installation.docker_host.removeprefix("unix://"))


def appears(after: float, make: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(after, make)
    timer.start()
    return timer


def test_unavailable_engine_is_a_celery_retry(workers: Installation, socket: Path, short_folder: Path) -> None:
    # given
    with ThreadingUnixStreamServer(str(short_folder / "engine"), _FakeEngine) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with task_events(workers) as events:
                # when
                run = workers.run(plan_of("docker.inspect.get", container="nobody"))
                timer = appears(AWAY, lambda: socket.symlink_to(short_folder / "engine"))
                run.wait(PATIENCE)
                timer.join()
        finally:
            server.shutdown()
            serving.join()

    # then
    check_retries(run)
    assert len(retried(events, run)) == run.report().step("ask").attempts - 1
    assert all("does not respond" in event["exception"] for event in retried(events, run))


@pytest.mark.docker
def test_step_succeeds_when_the_real_engine_returns(
    install: MakeInstallation, short_folder: Path, engine: docker.APIClient
) -> None:
    # given a separate worker, because a worker caches the API version of its engine
    real = servers.engine_url().removeprefix("unix://")
    patient = install(docker_host=f"unix://{short_folder / 'engine'}")
    patient.worker("patient", "--concurrency", "1", "--task-events").start()

    label = {"label": "longshore.run=patient-again"}
    try:
        # when
        with task_events(patient) as events:
            plan = plan_of("docker.run.execute", image=servers.IMAGE, command=["echo", "at last"])
            run = patient.run(plan, "patient-again")
            timer = appears(AWAY, lambda: engine_socket(patient).symlink_to(real))
            run.wait(PATIENCE)
            timer.join()

        # then
        check_retries(run)
        assert retried(events, run)
        assert run.report().step("ask").data["stdout"] == "at last\n"

        # and the ended container is removed with the run
        wait_for("the removal of the container", lambda: not engine.containers(all=True, filters=label))
        assert run.answer(run.undo()) == "done"
        assert run.wait(PATIENCE).state == "undone"
        assert engine.containers(all=True, filters=label) == []
    finally:
        for row in engine.containers(all=True, filters=label):
            engine.remove_container(row["Id"], force=True)


def test_permanent_failure_is_not_retried(workers: Installation) -> None:
    # when
    run = workers.run(plan_of("command.exec.execute", argv=["false"], changes=False))

    # then
    assert run.wait(PATIENCE).step("ask").attempts == 1
    assert story(run, "step_retrying") == []


def test_plan_can_retry_any_failure(workers: Installation, tmp_path: Path) -> None:
    # given a command that succeeds at the third attempt
    count = f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n + 1)) > {tmp_path}/n; test $n -ge 2"
    plan = Plan("stubborn")
    plan.step("ask", "command.shell.execute", command=count).retry(2, initial=0.1)

    # when
    report = workers.run(plan).wait(PATIENCE)

    # then
    assert (report.exit_code, report.step("ask").attempts) == (0, 3)
    assert len(report.step("ask").task_ids) == 3
