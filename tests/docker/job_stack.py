"""A Compose project of three running services and a stopped one, and jobs that labels describe.

The project is started once per module. Each test has its own job, described by the labels of a container that is never
started. Before each test, the project is in its first state.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ComposeProject, get
from tests.servers import IMAGE, engine_url, remove_project, require_compose

if TYPE_CHECKING:
    import docker

#: The command of a job: it prints the size of a file in the volume twice.
WORK = "echo $LONGSHORE_JOB_NAME $LONGSHORE_STACK; wc -c </mnt/data/log; sleep {sleep}; wc -c </mnt/data/log; {more}"
COUNT = "echo run >>/mnt/data/runs"
RUNNING = ["app-1", "app-2", "db-1", "web-1"]
#: Seconds within which a worker has to start the stack again.
SOON = 60.0
#: The labels of the volume name the jobs that mount it, and cannot change.
_MOST_JOBS = 60
_PROJECT = "com.docker.compose.project"


class JobStack:
    """`db` writes a log. Two replicas of `app` need a healthy `db`, and `web` needs `app`. `extra` is stopped."""

    def __init__(self, engine: docker.APIClient, project: ComposeProject) -> None:
        self.engine = engine
        self.project = project
        self.name = project.name
        self._numbers = iter(range(1, _MOST_JOBS + 1))
        self.job = ""

    def begin(self) -> None:
        """Start all services, and stop `extra`."""
        service = {"image": IMAGE, "init": True, "command": ["sleep", "9999"], "stop_grace_period": "1s"}
        test = ["CMD", "test", "-f", "/data/log"]
        services: dict[str, dict[str, Any]] = {
            "db": service
            | {
                "command": ["sh", "-c", "while true; do echo written >>/data/log; sleep 0.1; done"],
                "volumes": ["data:/data"],
                # Each check costs processor time, as long as the tests of the module run.
                "healthcheck": {"test": test, "interval": "1s", "retries": 60},
            },
            # Without a network, the start of a container takes half of the processor time.
            "app": service
            | {
                "deploy": {"replicas": 2},
                "depends_on": {"db": {"condition": "service_healthy"}},
                "network_mode": "none",
            },
            "web": service | {"depends_on": ["app"]},
            "extra": service | {"depends_on": ["db"]},
        }
        jobs = ",".join(self._job(number) for number in range(1, _MOST_JOBS + 1))
        volume = {"longshore.job.attach": jobs, "longshore.job.mount.path": "/mnt/data"}
        volume["longshore.job.mount.mode"] = "rw"
        text = json.dumps({"services": services, "volumes": {"data": {"labels": volume}}})
        (self.project.directory / "compose.yml").write_text(text)
        self._restore()

    def next_job(self) -> None:
        self.job = self._job(next(self._numbers))

    def _job(self, number: int) -> str:
        return f"job-{self.name}-{number}"

    def up(self, **options: Any) -> None:
        """Restore the first state of the stack, and describe the job."""
        for service in RUNNING:
            if self._exists(service) and self.inspect(service)["State"]["Paused"]:
                self.engine.unpause(f"{self.name}-{service}")
        if "db-1" in self.running():
            self.exec_in_db("sh", "-c", "rm -rf /data/runs; test -f /data/log || rm -rf /data/log")
        if not self.is_healthy():
            self._restore()
        self.describe(**options)

    def describe(self, *, sleep: float = 0.3, more: str = COUNT, labels: dict[str, str] | None = None) -> None:
        """Replace the description of the job."""
        values = {"enabled": "true", "name": self.job, "worker.image": IMAGE, "stop-timeout": "5s", "grace": "1s"}
        values["worker.command"] = f"sh -c '{WORK.format(sleep=sleep, more=more)}'"
        values |= labels or {}
        described = {f"longshore.job.{key}": value for key, value in values.items() if value}
        self._remove_description()
        # Without the label of one-off containers, Compose ignores the container.
        labels = described | {_PROJECT: self.name}
        self.engine.create_container(IMAGE, ["true"], name=f"{self.job}-description", labels=labels)

    def _remove_description(self) -> None:
        for row in self.engine.containers(all=True, filters={"label": f"{_PROJECT}={self.name}"}):
            if row["Names"] and row["Names"][0].endswith("-description"):
                self.engine.remove_container(row["Id"], force=True)

    def _restore(self) -> None:
        self.compose("up", "--detach", "--wait")
        self.compose("stop", "--timeout", "1", "extra")

    def _exists(self, service: str) -> bool:
        return bool(self.engine.containers(all=True, filters={"name": f"^/{self.name}-{service}$"}))

    def exec_in_db(self, *command: str) -> bytes:
        done = self.engine.exec_create(f"{self.name}-db-1", list(command))
        text: bytes = self.engine.exec_start(done["Id"])
        return text

    def compose(self, *words: str) -> None:
        command = ["docker", "compose", "-p", self.name, "-f", str(self.project.directory / "compose.yml"), *words]
        environment = os.environ | {"DOCKER_HOST": engine_url()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.inspect_container(f"{self.name}-{service}")
        return found

    def running(self) -> list[str]:
        filters = {"label": f"{_PROJECT}={self.name}"}
        names = [row["Names"][0].removeprefix(f"/{self.name}-") for row in self.engine.containers(filters=filters)]
        return sorted(names)

    def started_at(self, service: str) -> str:
        return str(self.inspect(service)["State"]["StartedAt"])

    def finished_at(self, service: str) -> str:
        return str(self.inspect(service)["State"]["FinishedAt"])

    def is_healthy(self) -> bool:
        return self.running() == RUNNING and self.inspect("db-1")["State"]["Health"]["Status"] == "healthy"

    def job_containers(self) -> list[str]:
        filters = {"label": f"longshore.job.run-of={self.job}"}
        return [row["Id"] for row in self.engine.containers(all=True, filters=filters)]

    def job_is_running(self) -> bool:
        filters = {"label": f"longshore.job.run-of={self.job}"}
        return bool(self.engine.containers(filters=filters))

    def runs(self) -> int:
        """The number of executions of the job's command."""
        return self.exec_in_db("cat", "/data/runs").count(b"run\n")

    def clear(self) -> None:
        """Remove the containers of the job."""
        for container in self.job_containers():
            self.engine.remove_container(container, force=True)
        self._remove_description()


@pytest.fixture(scope="module")
def module_shop(engine: docker.APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStack]:
    get(require_compose)
    # Without PREFIX in the name: other tests compare all objects with PREFIX.
    stack = JobStack(engine, ComposeProject(f"ljs-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("shop")))
    try:
        stack.begin()
        yield stack
    finally:
        remove_project(engine, stack.name)


@pytest.fixture
def shop(module_shop: JobStack) -> Iterator[JobStack]:
    module_shop.next_job()
    yield module_shop
    module_shop.clear()
