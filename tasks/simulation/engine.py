"""An in-memory Docker engine: containers, images, networks and volumes without processes.

The engine behaves like a real one, as far as the port shows; one contract suite tests both.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import posixpath
import re
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO

from longshore.tasks.host.engine.port import (
    Check,
    Conflict,
    Container,
    Execution,
    Image,
    Login,
    NotThere,
    OnOutput,
    Output,
    in_stream,
)

_NEVER = "0001-01-01T00:00:00Z"


@dataclass
class MemoryEngine:
    """A Docker engine in memory.

    * `exit_codes` – by image: a container of this image exits at its start, with this code
    * `outputs` – by image: the output of its containers
    * `registry` – by name: the id of the image that a pull returns; with the id '', the pull fails half way
    """

    url: str = "memory://"
    exit_codes: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    registry: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._execs: dict[str, tuple[str, Mapping[str, Any], Execution]] = {}
        self._files: dict[tuple[str, str], bytes] = {}
        self._images: dict[str, str] = {}
        self._tagged_at: dict[str, str] = {}
        self._containers: dict[str, Container] = {}
        self._networks: dict[str, tuple[str, dict[str, str]]] = {}
        self._volumes: dict[str, dict[str, str]] = {}
        self._times = itertools.count(1)
        self._limits: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, tuple[str, ...]] = {}
        self._details: dict[str, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []

    # --- preparation ------------------------------------------------------------------------------

    def add_image(self, ref: str) -> str:
        """Add an image of that name; return its id."""
        image_id = f"sha256:{_digest(ref)}"
        self._images[_tagged(ref)] = image_id
        return image_id

    def run(self, name: str, image: str, **config: Any) -> str:
        """Create and start a container of that name; return its id."""
        if self.image_id(image) is None:
            self.add_image(image)
        container_id, _ = self.create(name, {"Image": image, **config})
        self.start(container_id)
        return container_id

    def info(self) -> dict[str, Any]:
        return {"ID": self.url, "NCPU": 2, "MemTotal": 4 * 1024**3}

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

    def raw(self, container: str) -> dict[str, Any] | None:
        found = self._find(container)
        if found is None:
            return None
        state = {"Status": found.status, "Running": found.running, "Paused": found.paused, "Restarting": False}
        state |= {"ExitCode": found.exit_code, "OOMKilled": found.oom_killed, "Error": found.error, "Pid": 0}
        state |= {"StartedAt": found.started_at or _NEVER, "FinishedAt": found.finished_at or _NEVER}
        host = {"RestartPolicy": found.restart_policy, "AutoRemove": found.auto_remove} | self._limits.get(found.id, {})
        return {
            "Id": found.id,
            "Name": f"/{found.name}",
            "Image": found.image_id,
            "State": state,
            "RestartCount": found.restart_count,
            "Config": {"Image": found.image, "Labels": dict(found.labels), "Tty": False, "Env": []},
            "HostConfig": host,
            "NetworkSettings": {"Networks": {name: {} for name in found.networks}},
            "Mounts": [],
        }

    def rows(self, filters: Mapping[str, list[str]], *, all_of_them: bool) -> list[dict[str, Any]]:
        names = [re.compile(pattern) for pattern in filters.get("name", [])]
        labels = dict(text.split("=", 1) for text in filters.get("label", []) if "=" in text)
        keys = {text for text in filters.get("label", []) if "=" not in text}
        wanted = filters.get("status", [])
        return [
            {"Id": one.id, "Names": [f"/{one.name}"], "Image": one.image, "ImageID": one.image_id, "State": one.status}
            | {"Status": _status(one), "Labels": dict(one.labels), "Created": 0, "Ports": []}
            | {"HostConfig": {"NetworkMode": one.network_mode}, "Mounts": [], "NetworkSettings": {"Networks": {}}}
            for one in self._containers.values()
            if (all_of_them or wanted or one.running)
            and (not wanted or one.status in wanted)
            and (not names or any(name.search(f"/{one.name}") for name in names))
            and _has(one.labels, labels)
            and keys <= one.labels.keys()
            and self._uses(one, filters)
        ]

    def _uses(self, one: Container, filters: Mapping[str, list[str]]) -> bool:
        """Report whether a container matches the filters for images and networks; containers have no volumes."""
        networks = {key: name for key, (name, _) in self._networks.items()}
        images = [self.image_id(ref) for ref in filters.get("ancestor", [])]
        wanted = {networks.get(key, key) for key in filters.get("network", [])}
        return (
            (not images or one.image_id in images)
            and (not wanted or bool(wanted & set(one.networks)))
            and not filters.get("volume")
        )

    def update(self, container: str, body: Mapping[str, Any]) -> None:
        found = self._need(container)
        if policy := body.get("RestartPolicy"):
            self._put(found, restart_policy=dict(policy))
        limits = {key: value for key, value in body.items() if key != "RestartPolicy"}
        self._limits[found.id] = self._limits.get(found.id, {}) | limits

    # --- programs and files inside ----------------------------------------------------------------

    def create_exec(self, container: str, body: Mapping[str, Any]) -> str:
        found = self._need(container)
        if not found.running:
            raise Conflict(f"Container {found.id} is not running")
        key = _digest(f"exec {next(self._times)}")
        self._execs[key] = (found.id, body, Execution(running=False, exit_code=None))
        return key

    def start_exec(self, execution: str, stdin: bytes | None, on_output: OnOutput, check: Check) -> None:
        if execution not in self._execs:
            raise NotThere(f"No such exec instance: {execution}")
        container, body, _ = self._execs[execution]
        check()
        if body["Cmd"][:1] == ["echo"]:
            on_output(1, " ".join(body["Cmd"][1:]).encode() + b"\n")
        elif body["Cmd"] == ["cat"]:
            on_output(1, stdin or b"")
        code = 1 if body["Cmd"] == ["false"] else 0
        self._execs[execution] = (container, body, Execution(running=False, exit_code=code))

    def execution(self, execution: str) -> Execution | None:
        found = self._execs.get(execution)
        return found[2] if found is not None else None

    def has_path(self, container: str, path: str) -> bool:
        found = self._find(container)
        return found is not None and (found.id, path) in self._files

    def read_archive(self, container: str, path: str, limit: int) -> bytes | None:
        found = self._need(container)
        return self._files.get((found.id, path))

    def write_archive(self, container: str, folder: str, archive: bytes) -> None:
        found = self._need(container)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                single = io.BytesIO()
                with tarfile.open(fileobj=single, mode="w") as one:
                    one.addfile(member, tar.extractfile(member) if member.isfile() else None)
                self._files[found.id, posixpath.join(folder, member.name)] = single.getvalue()

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
            network_mode=str(host.get("NetworkMode") or ""),
        )
        return container_id, []

    def start(self, container: str) -> bool:
        found = self._need(container)
        if found.running:
            return False
        self._put(found, status="running", running=True, paused=False, exit_code=0, started_at=self._now())
        self._happened(found, "start")
        code = self.exit_codes.get(found.image)
        if code is not None:
            self._end(self._need(found.id), code)
        return True

    def _end(self, container: Container, code: int) -> None:
        ended = self._put(
            container, status="exited", running=False, paused=False, exit_code=code, finished_at=self._now()
        )
        self._happened(container, "die")
        if ended.auto_remove:
            del self._containers[ended.id]

    def stop(self, container: str, grace: float | None = None) -> bool:
        found = self._need(container)
        if not found.running:
            return False
        self._end(found, 0)
        self._happened(found, "stop")
        return True

    def _happened(self, container: Container, what: str) -> None:
        self._events.append({"Action": what, "Actor": {"ID": container.id}, "time": int(time.time())})

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

    def logs(
        self,
        container: str,
        limit: int,
        *,
        tail: int | None = None,
        since: float | None = None,
        redact: Callable[[str], str] = lambda text: text,
    ) -> Output:
        found = self._find(container)
        return self.outputs.get(found.image, Output()) if found else Output()

    def follow(
        self, container: str, on_output: OnOutput, ended: Callable[[], bool], *, since: float | None = None
    ) -> None:
        output = self.logs(container, 0)
        for stream, text in ((1, output.stdout), (2, output.stderr)):
            if text:
                on_output(stream, text.encode())

    # --- images, networks, volumes ----------------------------------------------------------------

    def image_id(self, ref: str) -> str | None:
        return ref if ref in self._images.values() else self._images.get(_tagged(ref))

    def tag(self, image_id: str, ref: str) -> None:
        found = self.image_id(image_id)
        if found is None:
            raise NotThere(f"No such image: {image_id}")
        self._images[_tagged(ref)] = found
        self._tagged_at[found] = datetime.now(UTC).isoformat()

    def tagged_at(self, image_id: str) -> str:
        return self._tagged_at.get(image_id, "")

    def untag(self, ref: str) -> bool:
        return self._images.pop(_tagged(ref), None) is not None

    def images(self) -> list[Image]:
        refs: dict[str, list[str]] = {}
        for ref, image_id in self._images.items():
            refs.setdefault(image_id, []).append(ref)
        return [Image(image_id, tuple(names)) for image_id, names in refs.items()]

    def events(self, names: Sequence[str], since: float, until: float) -> list[dict[str, Any]]:
        return [one for one in self._events if one["Action"] in names and since <= one["time"] <= until]

    def image(self, ref: str) -> Image | None:
        found = self.image_id(ref)
        if found is None:
            return None
        tags = tuple(sorted(name for name, image_id in self._images.items() if image_id == found))
        return Image(found, tags, self._digests.get(found, ()), 0, "amd64", "linux")

    def pull(self, ref: str, *, login: Login | None, platform: str | None, check: Check) -> None:
        check()
        there = self.registry.get(_tagged(ref))
        if there is None:
            raise NotThere(f"manifest for {ref} not found: manifest unknown: manifest unknown")
        if not there:
            raise in_stream("blob unknown to registry: unexpected EOF")
        self._images[_tagged(ref)] = there
        self._digests[there] = (f"{_tagged(ref).rpartition(':')[0]}@{there}",)

    def push(self, ref: str, *, login: Login | None, check: Check) -> None:
        check()
        found = self.image_id(ref)
        if found is None:
            raise in_stream(f"An image does not exist locally with the tag: {ref.rpartition(':')[0]}")
        self.registry[_tagged(ref)] = found
        self._digests[found] = (f"{_tagged(ref).rpartition(':')[0]}@{found}",)

    def build(self, context: BinaryIO, params: Mapping[str, Any], on_text: Callable[[str], None], check: Check) -> str:
        check()
        built = f"sha256:{_digest(repr(context.read()))}"
        on_text("Successfully built\n")
        self._images[_tagged(str(params["t"]))] = built
        return built

    def remote_digest(self, ref: str, *, login: Login | None) -> str:
        there = self.registry.get(_tagged(ref))
        if there is None:
            raise NotThere(f"manifest for {ref} not found")
        return there

    def network(self, name: str) -> dict[str, Any] | None:
        for key, (own, labels) in self._networks.items():
            if name in {key, own}:
                return {"Id": key, "Name": own, "Labels": dict(labels), "Containers": {}} | self._details[key]
        return None

    def create_network(self, body: Mapping[str, Any]) -> str:
        if self.network(body["Name"]) is not None:
            raise Conflict(f"network with name {body['Name']} already exists")
        key = _digest(f"network {next(self._times)}")
        self._networks[key] = (body["Name"], dict(body.get("Labels") or {}))
        details = {"Driver": body.get("Driver", "bridge"), "Internal": body.get("Internal", False)}
        self._details[key] = details | {"Options": dict(body.get("Options") or {}), "IPAM": body.get("IPAM") or {}}
        return key

    def volume(self, name: str) -> dict[str, Any] | None:
        if name not in self._volumes:
            return None
        return {"Name": name, "Labels": dict(self._volumes[name]), "Mountpoint": ""} | self._details[name]

    def create_volume(self, body: Mapping[str, Any]) -> None:
        if body["Name"] not in self._volumes:
            self._volumes[body["Name"]] = dict(body.get("Labels") or {})
            options = dict(body.get("DriverOpts") or {})
            self._details[body["Name"]] = {"Driver": body.get("Driver", "local"), "Options": options or None}

    def networks(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {key: name for key, (name, own) in self._networks.items() if _has(own, labels)}

    def connect(self, network: str, container: str, aliases: list[str], endpoint: Any = None) -> None:
        found = self._need(container)
        self._put(found, networks=(*found.networks, network))

    def remove_network(self, network: str) -> bool:
        return self._networks.pop(network, None) is not None

    def volumes(self, labels: Mapping[str, str]) -> list[str]:
        return [name for name, own in self._volumes.items() if _has(own, labels)]

    def labelled_volumes(self, label: str) -> dict[str, dict[str, str]]:
        return {name: dict(own) for name, own in self._volumes.items() if label in own}

    def remove_volume(self, name: str) -> bool:
        return self._volumes.pop(name, None) is not None

    def close(self) -> None:
        """Do nothing: no connection is open."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tagged(ref: str) -> str:
    return ref if ":" in ref.rpartition("/")[2] or "@" in ref else f"{ref}:latest"


def _has(own: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(own.get(key) == value for key, value in wanted.items())


def _status(container: Container) -> str:
    """A container's status as `docker ps` shows it."""
    if container.status == "exited":
        return f"Exited ({container.exit_code}) 1 second ago"
    return "Up 1 second" if container.running else container.status.capitalize()
