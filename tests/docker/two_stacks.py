"""Compose projects of three services, and their state on the engine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from tests.servers import IMAGE, engine_url, remove_project

if TYPE_CHECKING:
    import docker

LABEL = "com.docker.compose."


class Project:
    """The services `db`, `web` and `jobs`, each with its own tag. `web` depends on `db` and mounts a file."""

    def __init__(self, engine: docker.APIClient, folder: Path, name: str) -> None:
        self.engine = engine
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.file = self.folder / "site.conf"
        self.file.write_text("one\n")
        for service in ("db", "web", "jobs"):
            engine.tag(IMAGE, name, service)

    def ref(self, service: str) -> str:
        return f"{self.name}:{service}"

    def write(self, **changes: dict[str, Any]) -> None:
        # Without a network, the start of a container takes half of the processor time.
        base = {"init": True, "command": ["sleep", "9999"], "stop_grace_period": "1s", "network_mode": "none"}
        services: dict[str, Any] = {name: base | {"image": self.ref(name)} for name in ("db", "web", "jobs")}
        services["web"] |= {"depends_on": ["db"], "volumes": ["./site.conf:/etc/site.conf"]}
        for name, change in changes.items():
            services[name] = services.get(name, base | {"image": IMAGE}) | change
        (self.folder / "compose.yml").write_text(json.dumps({"services": services}))

    def up(self, **changes: dict[str, Any]) -> None:
        self.write(**changes)
        self.compose("up", "--detach")

    def compose(self, *words: str) -> str:
        command = ["docker", "compose", "-p", self.name, "-f", str(self.folder / "compose.yml"), *words]
        environment = os.environ | {"DOCKER_HOST": engine_url()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def container(self, service: str, number: int = 1) -> str:
        return f"{self.name}-{service}-{number}"

    def state(self) -> dict[str, tuple[str, str, str, str]]:
        """The id, image id, start time and status of each container."""
        found = {}
        for row in self.engine.containers(all=True, filters={"label": f"{LABEL}project={self.name}"}):
            try:
                raw = self.engine.inspect_container(row["Id"])
            except NotFound:  # replaced since the listing
                continue
            name = raw["Name"].removeprefix(f"/{self.name}-")
            found[name] = (raw["Id"], raw["Image"], raw["State"]["StartedAt"], raw["State"]["Status"])
        return found

    def move_image(self, service: str, *, command: list[str] | None = None) -> str:
        """Move the tag of a service to a new image, and return the id of the image."""
        made = self.engine.create_container(IMAGE, ["true"])["Id"]
        try:
            changes = [f"ENV MOVED={os.urandom(8).hex()}"]
            changes += [f"HEALTHCHECK --interval=300ms --retries=1 CMD {json.dumps(command)}"] if command else []
            done = self.engine.commit(made, self.name, service, changes=changes)
        finally:
            self.engine.remove_container(made)
        return str(self.engine.inspect_image(done["Id"])["Id"])

    def content(self) -> str:
        """The content of the mounted file in the container of `web`."""
        done = self.engine.exec_create(self.container("web"), ["cat", "/etc/site.conf"])
        text: bytes = self.engine.exec_start(done["Id"])
        return text.decode()

    def clear(self) -> None:
        remove_project(self.engine, self.name)
        for image in self.engine.images():
            for tag in image["RepoTags"] or []:
                if self.name in tag:
                    with contextlib.suppress(NotFound):
                        self.engine.remove_image(tag, force=True)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The names of containers that differ between two states."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}
