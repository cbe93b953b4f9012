"""The port's way to a real engine: docker-py's low-level client. Nothing else imports docker."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from longshore.orchestration.errors import OperationError, Transient
from longshore.tasks.engine import Conflict, Container, EngineTimeout, NotThere, Output, classified

_CALL_TIMEOUT = 60.0
#: The engine's own grace where neither call nor container has one.
_STOP_TIMEOUT = 10.0


def raw_client(url: str) -> Any:
    """docker-py's own client, for functions of an application's."""
    try:
        import docker  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise OperationError("the Docker SDK is missing", remedy="pip install 'longshore[docker]'") from error
    return docker.DockerClient(base_url=url, version="auto", timeout=int(_CALL_TIMEOUT), tls=_tls(url))


class DockerEngine:
    """The engine over docker-py's low-level client, whose version is negotiated at the first call."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: Any = None

    @property
    def _api(self) -> Any:
        if self._made is None:
            try:
                import docker  # noqa: PLC0415 - an extra; and nothing else of Longshore needs it
            except ImportError as error:
                raise OperationError("the Docker SDK is missing", remedy="pip install 'longshore[docker]'") from error
            path = self.url.removeprefix("unix://")
            if path != self.url and not os.path.exists(path):
                raise self._away(FileNotFoundError(path))
            try:
                self._made = docker.APIClient(
                    base_url=self.url, version="auto", timeout=int(_CALL_TIMEOUT), tls=_tls(self.url)
                )
            except Exception as error:
                raise self._away(error) from error
        return self._made

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def inspect(self, container: str) -> Container | None:
        raw = self._get(f"/containers/{_quoted(container)}/json")
        return None if raw is None else Container.of(raw)

    def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """All with these labels, stopped ones too."""
        rows = self._get("/containers/json", all=1, filters=_filters(labels)) or []
        # One may be gone by the time it is looked at.
        return [found for row in rows if (found := self.inspect(row["Id"])) is not None]

    def create(self, name: str, body: Mapping[str, Any]) -> tuple[str, list[str]]:
        made = self._call("POST", "/containers/create", params={"name": name}, body=body).json()
        return made["Id"], list(made.get("Warnings") or [])

    def start(self, container: str) -> bool:
        """Whether this call started it (False: it ran)."""
        path = f"/containers/{_quoted(container)}/start"
        try:
            return bool(self._call("POST", path).status_code == 204)
        except OperationError as error:
            # The port's last holder may have ended a moment ago.
            if "port is already allocated" not in error.message:
                raise
        time.sleep(1.0)
        return bool(self._call("POST", path).status_code == 204)

    def stop(self, container: str, grace: float | None = None) -> bool:
        """Whether this call stopped it. Comes back when it has ended."""
        params = {} if grace is None else {"t": max(0, round(grace))}
        if grace is None:
            found = self.inspect(container)
            grace = found.stop_timeout if found and found.stop_timeout is not None else _STOP_TIMEOUT
        path = f"/containers/{_quoted(container)}/stop"
        try:
            return bool(self._call("POST", path, params=params, timeout=grace + _CALL_TIMEOUT).status_code == 204)
        except EngineTimeout:
            found = self.inspect(container)
            if found is not None and found.running:
                raise
            return True

    def pause(self, container: str) -> None:
        self._call("POST", f"/containers/{_quoted(container)}/pause")

    def rename(self, container: str, name: str) -> None:
        self._call("POST", f"/containers/{_quoted(container)}/rename", params={"name": name})

    def set_restart(self, container: str, policy: Mapping[str, Any]) -> None:
        self._call("POST", f"/containers/{_quoted(container)}/update", body={"RestartPolicy": dict(policy)})

    def remove(self, container: str) -> bool:
        """Remove a stopped container with its anonymous volumes. False if it is not there."""
        try:
            self._call("DELETE", f"/containers/{_quoted(container)}", params={"v": 1, "force": 1})
        except NotThere:
            return False
        except Transient as error:
            if "already in progress" not in error.message:
                raise
            return self._gone(container)
        return True

    def _gone(self, container: str) -> bool:
        end = time.monotonic() + _STOP_TIMEOUT
        while self.inspect(container) is not None:
            if time.monotonic() >= end:
                raise Transient(f"container {container} is being removed and does not go")
            time.sleep(0.1)
        return True

    def logs(self, container: str, limit: int) -> Output:
        path = f"/containers/{_quoted(container)}"
        raw = self._get(f"{path}/json")
        if raw is None:
            return Output()
        out, err = _Tail(limit), _Tail(limit)
        try:
            response = self._call("GET", f"{path}/logs", params={"stdout": 1, "stderr": 1}, stream=True)
        except OperationError as error:
            if "logging driver" not in error.message.lower():
                raise
            return Output()  # what it said went elsewhere, or nowhere
        with contextlib.closing(response):
            chunks = response.iter_content(1 << 16)
            for kind, piece in ((1, chunk) for chunk in chunks) if raw["Config"]["Tty"] else _frames(chunks):
                (err if kind == 2 else out).add(piece)
        return Output(out.text(), err.text(), out.truncated or err.truncated)

    def image_id(self, ref: str) -> str | None:
        found = self._get(f"/images/{_quoted(ref)}/json")
        return None if found is None else str(found["Id"])

    def tag(self, image_id: str, ref: str) -> None:
        repository, tag = _split_ref(ref)
        self._call("POST", f"/images/{_quoted(image_id)}/tag", params={"repo": repository, "tag": tag})

    def untag(self, ref: str) -> bool:
        """Take a name off an image; its last one stays as long as a container uses it."""
        try:
            self._call("DELETE", f"/images/{_quoted(ref)}", params={"noprune": 1})
        except (NotThere, Conflict):
            return False
        return True

    def networks(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Names by id."""
        return {row["Id"]: row["Name"] for row in self._get("/networks", filters=_filters(labels)) or []}

    def connect(self, network: str, container: str, aliases: list[str]) -> None:
        body = {"Container": container, "EndpointConfig": {"Aliases": aliases}}
        self._call("POST", f"/networks/{_quoted(network)}/connect", body=body)

    def remove_network(self, network: str) -> bool:
        try:
            self._call("DELETE", f"/networks/{_quoted(network)}")
        except NotThere:
            return False
        return True

    def volumes(self, labels: Mapping[str, str]) -> list[str]:
        found = self._get("/volumes", filters=_filters(labels)) or {}
        return sorted(row["Name"] for row in found.get("Volumes") or [])

    def remove_volume(self, name: str) -> bool:
        """False if it is not there or in use."""
        try:
            self._call("DELETE", f"/volumes/{_quoted(name)}")
        except (NotThere, Conflict):
            return False
        return True

    def _get(self, path: str, **params: Any) -> Any:
        try:
            return self._call("GET", path, params=params).json()
        except NotThere:
            return None

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout: float = _CALL_TIMEOUT,
        stream: bool = False,
    ) -> Any:
        api = self._api
        from requests.exceptions import RequestException, Timeout  # noqa: PLC0415 - comes with docker

        try:
            url = f"{api.base_url}/v{api.api_version}{path}"
            response = api.request(method, url, params=params, json=body, timeout=timeout, stream=stream)
        except Timeout as error:
            raise EngineTimeout(f"the Docker engine at {self.url} did not answer {method} {path} in time") from error
        except RequestException as error:
            raise self._away(error) from error
        if response.status_code >= 400:
            raise classified(response.status_code, _message(response))
        return response

    def _away(self, error: BaseException) -> OperationError:
        if any(isinstance(link, PermissionError) for link in _links(error)):
            remedy = "let the worker's user be in group docker"
            return OperationError(f"permission denied at the Docker engine's {self.url}", remedy=remedy)
        remedy = "start it, or set LONGSHORE_DOCKER_HOST"
        return Transient(f"the Docker engine at {self.url} does not answer", remedy=remedy)


class _Tail:
    """The last `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.truncated = False

    def add(self, piece: bytes) -> None:
        self.data += piece
        if len(self.data) > self.limit:
            self.truncated = True
            del self.data[: len(self.data) - self.limit]

    def text(self) -> str:
        return self.data.decode("utf-8", errors="replace")


def _frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The engine's two streams in one: a byte says which (1, 2), and four give the length of what follows."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= 8:
            end = 8 + int.from_bytes(held[4:8], "big")
            if len(held) < end:
                break
            yield held[0], bytes(held[8:end])
            del held[:end]


def _message(response: Any) -> str:
    try:
        text = response.json()["message"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split()) or f"the Docker engine answered {response.status_code}"


def _links(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and what requests and urllib3 put into its arguments."""
    todo: list[BaseException] = [error]
    for _ in range(20):
        if not todo:
            return
        link = todo.pop()
        yield link
        inner = [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
        todo += [item for item in inner if isinstance(item, BaseException)]


def _tls(url: str) -> Any:
    folder = os.environ.get("DOCKER_CERT_PATH")
    if not os.environ.get("DOCKER_TLS_VERIFY") or not folder or not url.startswith("tcp://"):
        return False
    from docker.tls import TLSConfig  # noqa: PLC0415 - see _api

    certificate = (os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
    return TLSConfig(client_cert=certificate, ca_cert=os.path.join(folder, "ca.pem"), verify=True)


def _filters(labels: Mapping[str, str]) -> str:
    return json.dumps({"label": [f"{key}={value}" for key, value in labels.items()]})


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _split_ref(ref: str) -> tuple[str, str]:
    """Repository and tag; a colon before the last slash belongs to a registry's port."""
    head, colon, tag = ref.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (ref, "latest")
