"""A Compose project of three services and one that somebody has stopped, with a job described in its labels."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ComposeProject, get
from tests.servers import IMAGE, engine_url, remove_project, require_compose

if TYPE_CHECKING:
    import docker

#: What the work does: it says how much there is in the volume, twice, and that it was there.
WORK = "echo $LONGSHORE_JOB_NAME $LONGSHORE_STACK; wc -c </mnt/data/log; sleep {sleep}; wc -c </mnt/data/log; {more}"
COUNT = "echo run >>/mnt/data/runs"
RUNNING = ["app-1", "app-2", "db-1", "web-1"]


class JobStack:
    """`db` writes ten times a second; `app`, twice, waits until it is healthy; `web` needs `app`; `extra` stands."""

    def __init__(self, engine: docker.APIClient, project: ComposeProject) -> None:
        self.engine = engine
        self.project = project
        self.name = project.name
        self.job = f"job-{project.name}"

    def write(self, *, sleep: float = 0.3, more: str = COUNT, labels: dict[str, str] | None = None) -> None:
        said = {"enabled": "true", "name": self.job, "worker.image": IMAGE, "stop-timeout": "5s", "grace": "1s"}
        said["worker.command"] = f"sh -c '{WORK.format(sleep=sleep, more=more)}'".replace("$", "$$")
        said |= labels or {}
        service = {"image": IMAGE, "init": True, "command": ["sleep", "9999"], "stop_grace_period": "1s"}
        test = ["CMD", "test", "-f", "/data/log"]
        services: dict[str, dict[str, Any]] = {
            "db": service
            | {
                "command": ["sh", "-c", "while true; do date >>/data/log; sleep 0.1; done"],
                "volumes": ["data:/data"],
                "healthcheck": {"test": test, "interval": "500ms", "retries": 60},
                "labels": {f"longshore.job.{key}": value for key, value in said.items() if value},
            },
            "app": service | {"deploy": {"replicas": 2}, "depends_on": {"db": {"condition": "service_healthy"}}},
            "web": service | {"depends_on": ["app"]},
            "extra": service | {"depends_on": ["db"]},
        }
        volume = {"longshore.job.attach": self.job, "longshore.job.mount.path": "/mnt/data"}
        volume["longshore.job.mount.mode"] = "rw"
        text = json.dumps({"services": services, "volumes": {"data": {"labels": volume}}})
        (self.project.directory / "compose.yml").write_text(text)

    def up(self, **said: Any) -> None:
        """Have it run, but for `extra`, which somebody stops."""
        self.write(**said)
        self.compose("up", "--detach", "--wait")
        self.compose("stop", "--timeout", "1", "extra")

    def compose(self, *words: str) -> None:
        command = ["docker", "compose", "-p", self.name, "-f", str(self.project.directory / "compose.yml"), *words]
        environment = os.environ | {"DOCKER_HOST": engine_url()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.inspect_container(f"{self.name}-{service}")
        return found

    def running(self) -> list[str]:
        filters = {"label": f"com.docker.compose.project={self.name}"}
        names = [row["Names"][0].removeprefix(f"/{self.name}-") for row in self.engine.containers(filters=filters)]
        return sorted(names)

    def started_at(self, service: str) -> str:
        return str(self.inspect(service)["State"]["StartedAt"])

    def finished_at(self, service: str) -> str:
        return str(self.inspect(service)["State"]["FinishedAt"])

    def is_well(self) -> bool:
        return self.running() == RUNNING and self.inspect("db-1")["State"]["Health"]["Status"] == "healthy"

    def workers(self) -> list[str]:
        filters = {"label": f"longshore.job.run-of={self.job}"}
        return [row["Id"] for row in self.engine.containers(all=True, filters=filters)]

    def worker_is_running(self) -> bool:
        filters = {"label": f"longshore.job.run-of={self.job}"}
        return bool(self.engine.containers(filters=filters))

    def runs(self) -> int:
        """How often the work was done."""
        done = self.engine.exec_create(f"{self.name}-db-1", ["cat", "/data/runs"])
        text: bytes = self.engine.exec_start(done["Id"])
        return text.count(b"run\n")

    def clear(self) -> None:
        for worker in self.workers():
            self.engine.remove_container(worker, force=True)


@pytest.fixture
def shop(engine: docker.APIClient, tmp_path: Path) -> Iterator[JobStack]:
    get(require_compose)
    # Other tests look at all that is called as theirs are.
    stack = JobStack(engine, ComposeProject(f"ljs-{uuid.uuid4().hex[:8]}", tmp_path))
    yield stack
    stack.clear()
    remove_project(engine, stack.name)
