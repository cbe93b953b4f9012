"""A Compose project of two or three services, and its state on the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ComposeProject
from tests.docker.conftest import OWN_LABEL, MakeStep, Step

if TYPE_CHECKING:
    import docker

IMAGE = "longshore-test:1"
SLEEP = ["sleep", "600"]


class Stack:
    """A stack of two or three services, and its state on the engine."""

    def __init__(self, engine: docker.APIClient, project: ComposeProject, step: MakeStep) -> None:
        self.engine = engine
        self.name = project.name
        self.directory = project.directory
        self.step = step
        self.v1 = engine.inspect_image(IMAGE)["Id"]
        self.ref = f"{project.name}:app"
        self.with_jobs = False
        engine.tag(IMAGE, project.name, "app")
        self.write()

    def write(self, **changes: dict[str, Any]) -> None:
        service = {"image": self.ref, "init": True, "command": SLEEP, "stop_grace_period": "2s"}
        services: dict[str, Any] = {
            "db": service | {"volumes": ["data:/data"]},
            "web": service | {"depends_on": ["db"], "environment": {"TAG": "${TAG}"}},
        }
        if self.with_jobs:
            services["jobs"] = service | {"depends_on": ["db"]}
        for name, change in changes.items():
            services[name] = services.get(name, service) | change
        text = json.dumps({"services": services, "volumes": {"data": {}}})
        (self.directory / "compose.yml").write_text(text)
        (self.directory / ".env").write_text("TAG=1\n")

    def up(self, **params: Any) -> Step:
        context = params.pop("context", None)
        base = {"project_dir": str(self.directory), "project": self.name, "min_healthy_time": 0}
        return self.step("compose.up.execute", context, **base | params)

    def other(self, verb: str, **params: Any) -> Step:
        return self.step(f"compose.{verb}.execute", project=self.name, **params)

    def state(self) -> dict[str, Any]:
        """The state that a rollback restores: hashes, images, volumes and states of containers, without ids."""
        rows = [self.engine.inspect_container(row["Id"]) for row in self.containers()]
        label = "com.docker.compose."
        filters = {"label": f"{label}project={self.name}"}
        images = self.engine.images()
        return {
            "containers": sorted(
                (
                    raw["Name"],
                    raw["Config"]["Labels"][label + "config-hash"],
                    raw["Image"],
                    raw["State"]["Running"],
                    raw["State"]["Paused"],
                )
                for raw in rows
            ),
            "networks": sorted(network["Name"] for network in self.engine.networks(filters=filters)),
            "volumes": sorted(volume["Name"] for volume in self.engine.volumes(filters=filters)["Volumes"] or []),
            "tags": sorted(
                (t, i["Id"]) for i in images for t in i["RepoTags"] or [] if self.name in t and ":r" not in t
            ),
        }

    def owns(self, tag: str) -> bool:
        """Whether a tag is the project's and not of a revision, which remains after the undo of its step."""
        return self.name in tag and ":r" not in tag

    def containers(self) -> list[dict[str, Any]]:
        filters = {"label": f"com.docker.compose.project={self.name}"}
        found: list[dict[str, Any]] = self.engine.containers(all=True, filters=filters)
        return found

    def ids(self) -> set[str]:
        return {row["Id"] for row in self.containers()}

    def running(self) -> set[str]:
        label = "com.docker.compose.service"
        return {row["Labels"][label] for row in self.containers() if row["State"] == "running"}

    def container(self, service: str) -> str:
        return f"{self.name}-{service}-1"

    def was_signalled(self, service: str) -> bool:
        """Whether the events of the engine contain a signal to the container."""
        filters = {"container": [self.container(service)], "event": ["kill"]}
        return bool(list(self.engine.events(since=0, until=time.time(), filters=filters)))

    def new_image(self) -> str:
        """Move the tag of the stack to a new image."""
        made = self.engine.create_container(IMAGE, ["true"])["Id"]
        try:
            commit = self.engine.commit(made, self.name, "app", changes=f"ENV NEW={time.time_ns()}\n{OWN_LABEL}")
        finally:
            self.engine.remove_container(made)
        return str(self.engine.inspect_image(commit["Id"])["Id"])


@pytest.fixture
def stack(engine: docker.APIClient, compose_project: ComposeProject, step: MakeStep) -> Iterator[Stack]:
    stack = Stack(engine, compose_project, step)
    yield stack
    for row in stack.containers():
        engine.remove_container(row["Id"], force=True, v=True)
    for image in engine.images():
        for tag in image["RepoTags"] or []:
            if compose_project.name in tag:
                engine.remove_image(tag, force=True)


@pytest.fixture
def trio(stack: Stack) -> Stack:
    """The stack with a third service, `jobs`."""
    stack.with_jobs = True
    stack.write()
    return stack
