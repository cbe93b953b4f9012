"""An engine in memory: containers, images and networks as the operations see them, and no process behind them.

It keeps to what the real one does as far as the port shows it; one suite of tests holds both to that.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from longshore.tasks.engine import Conflict, Container, NotThere, Output


@dataclass
class MemoryEngine:
    """`images` are names of images by what they are called; `exit_codes` end a container at once, by image."""

    url: str = "memory://"
    exit_codes: dict[str, int] = field(default_factory=dict)
    said: dict[str, Output] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images: dict[str, str] = {}
        self._containers: dict[str, Container] = {}
        self._networks: dict[str, tuple[str, dict[str, str]]] = {}
        self._volumes: dict[str, dict[str, str]] = {}
        self._times = itertools.count(1)

    # --- for whoever prepares it ------------------------------------------------------------------

    def add_image(self, ref: str) -> str:
        """Have an image of that name; returns its id."""
        image_id = f"sha256:{_digest(ref)}"
        self._images[_tagged(ref)] = image_id
        return image_id

    def run(self, name: str, image: str, **config: Any) -> str:
        """Have a container of that name running."""
        if self.image_id(image) is None:
            self.add_image(image)
        container_id, _ = self.create(name, {"Image": image, **config})
        self.start(container_id)
        return container_id

    # --- containers -------------------------------------------------------------------------------

    def _find(self, container: str) -> Container | None:
        by_name = (found for found in self._containers.values() if found.name == container)
        prefix = (
            found for key, found in self._containers.items() if len(container) >= 12 and key.startswith(container)
        )
        return self._containers.get(container) or next(by_name, None) or next(prefix, None)

    def _need(self, container: str) -> Container:
        found = self._find(container)
        if found is None:
            raise NotThere(f"No such container: {container}")
        return found

    def _put(self, container: Container, **changes: Any) -> Container:
        self._containers[container.id] = changed = replace(container, **changes)
        return changed

    def _now(self) -> str:
        return f"2000-01-01T00:00:00.{next(self._times):09}Z"

    def inspect(self, container: str) -> Container | None:
        return self._find(container)

    def containers(self, labels: Mapping[str, str]) -> list[Container]:
        return [found for found in self._containers.values() if _has(found.labels, labels)]

    def create(self, name: str, body: Mapping[str, Any]) -> tuple[str, list[str]]:
        image_id = self.image_id(body["Image"])
        if image_id is None:
            raise NotThere(f"No such image: {body['Image']}")
        if any(found.name == name for found in self._containers.values()):
            raise Conflict(f'The container name "/{name}" is already in use')
        host = body.get("HostConfig") or {}
        container_id = _digest(f"{name}{next(self._times)}")
        self._containers[container_id] = Container(
            id=container_id,
            name=name,
            image=body["Image"],
            image_id=image_id,
            labels=dict(body.get("Labels") or {}),
            status="created",
            exit_code=0,
            restart_policy=dict(host.get("RestartPolicy") or {"Name": "no", "MaximumRetryCount": 0}),
            auto_remove=bool(host.get("AutoRemove")),
            stop_timeout=body.get("StopTimeout"),
        )
        return container_id, []

    def start(self, container: str) -> bool:
        found = self._need(container)
        if found.running:
            return False
        self._put(found, status="running", running=True, paused=False, exit_code=0, started_at=self._now())
        code = self.exit_codes.get(found.image)
        if code is not None:
            self._end(self._need(found.id), code)
        return True

    def _end(self, container: Container, code: int) -> None:
        ended = self._put(
            container, status="exited", running=False, paused=False, exit_code=code, finished_at=self._now()
        )
        if ended.auto_remove:
            del self._containers[ended.id]

    def stop(self, container: str, grace: float | None = None) -> bool:
        found = self._need(container)
        if not found.running:
            return False
        self._end(found, 0)
        return True

    def pause(self, container: str) -> None:
        found = self._need(container)
        if not found.running or found.paused:
            raise Conflict(f"Container {container} is not running, or paused already")
        self._put(found, paused=True, status="paused")

    def rename(self, container: str, name: str) -> None:
        found = self._need(container)
        if any(other.name == name for other in self._containers.values()):
            raise Conflict(f'The container name "/{name}" is already in use')
        self._put(found, name=name)

    def set_restart(self, container: str, policy: Mapping[str, Any]) -> None:
        self._put(self._need(container), restart_policy=dict(policy))

    def remove(self, container: str) -> bool:
        found = self._find(container)
        return found is not None and self._containers.pop(found.id, None) is not None

    def logs(self, container: str, limit: int) -> Output:
        found = self._find(container)
        return self.said.get(found.image, Output()) if found else Output()

    # --- images, networks, volumes ----------------------------------------------------------------

    def image_id(self, ref: str) -> str | None:
        return ref if ref in self._images.values() else self._images.get(_tagged(ref))

    def tag(self, image_id: str, ref: str) -> None:
        found = self.image_id(image_id)
        if found is None:
            raise NotThere(f"No such image: {image_id}")
        self._images[_tagged(ref)] = found

    def untag(self, ref: str) -> bool:
        return self._images.pop(_tagged(ref), None) is not None

    def networks(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {key: name for key, (name, own) in self._networks.items() if _has(own, labels)}

    def connect(self, network: str, container: str, aliases: list[str]) -> None:
        found = self._need(container)
        self._put(found, networks=(*found.networks, network))

    def remove_network(self, network: str) -> bool:
        return self._networks.pop(network, None) is not None

    def volumes(self, labels: Mapping[str, str]) -> list[str]:
        return [name for name, own in self._volumes.items() if _has(own, labels)]

    def remove_volume(self, name: str) -> bool:
        return self._volumes.pop(name, None) is not None

    def close(self) -> None:
        """Nothing is open."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tagged(ref: str) -> str:
    return ref if ":" in ref.rpartition("/")[2] or "@" in ref else f"{ref}:latest"


def _has(own: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(own.get(key) == value for key, value in wanted.items())
