"""The port's way to a real engine: docker-py's low-level client. Nothing else imports docker."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import quote

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.tasks.engine import (
    Check,
    Conflict,
    Container,
    EngineTimeout,
    Execution,
    Image,
    Login,
    NotThere,
    Output,
    Said,
    classified,
    hijacked,
    in_stream,
)
from longshore.tasks.machine.process import Tail

_CALL_TIMEOUT = 60.0
#: Without a word from a call that tells how it goes on.
_STREAM_TIMEOUT = 600.0
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

                class Client(docker.APIClient):
                    """Asks no proxy, and trusts what it is told to: the environment's own would come first."""

                    trust_env = property(lambda _self: False, lambda _self, _value: None)

                self._made = Client(
                    base_url=self.url,
                    version="auto",
                    timeout=int(_CALL_TIMEOUT),
                    tls=_tls(self.url),
                    # The machine's own ssh knows its keys, hosts and agents; docker-py's needs another library.
                    use_ssh_client=True,
                )
            except Exception as error:
                raise self._away(error) from error
        return self._made

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def info(self) -> dict[str, Any]:
        """Of the engine: its `ID`, the same for whoever reaches it, `NCPU`, and much more."""
        found: dict[str, Any] = self._call("GET", "/info").json()
        return found

    def raw(self, container: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._get(f"/containers/{_quoted(container)}/json")
        return found

    def rows(self, filters: Mapping[str, list[str]], *, all_of_them: bool) -> list[dict[str, Any]]:
        """One call for all: one look at each would be slower, and could miss one that has gone meanwhile."""
        return self._get("/containers/json", all=int(all_of_them), filters=json.dumps(filters)) or []

    def update(self, container: str, body: Mapping[str, Any]) -> None:
        self._call("POST", f"/containers/{_quoted(container)}/update", body=body)

    def unpause(self, container: str) -> None:
        self._call("POST", f"/containers/{_quoted(container)}/unpause")

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

    def logs(self, container: str, limit: int, *, tail: int | None = None, since: float | None = None) -> Output:
        path = f"/containers/{_quoted(container)}"
        raw = self._get(f"{path}/json")
        if raw is None:
            return Output()
        out, err = Tail(limit), Tail(limit)
        try:
            params: dict[str, Any] = {"stdout": 1, "stderr": 1} | ({"tail": tail} if tail is not None else {})
            params |= {"since": f"{since:.3f}"} if since is not None else {}
            response = self._call("GET", f"{path}/logs", params=params, stream=True)
        except OperationError as error:
            if "logging driver" not in error.message.lower():
                raise
            return Output()  # what it said went elsewhere, or nowhere
        with contextlib.closing(response):
            chunks = response.iter_content(1 << 16)
            for kind, piece in ((1, chunk) for chunk in chunks) if raw["Config"]["Tty"] else hijacked.frames(chunks):
                (err if kind == 2 else out).add(piece)
        return Output(out.text(), err.text(), out.truncated or err.truncated)

    # --- programs and files inside ----------------------------------------------------------------

    def create_exec(self, container: str, body: Mapping[str, Any]) -> str:
        said = {"AttachStdout": True, "AttachStderr": True} | dict(body)
        return str(self._call("POST", f"/containers/{_quoted(container)}/exec", body=said).json()["Id"])

    def start_exec(self, execution: str, stdin: bytes | None, said: Said, check: Check) -> None:
        """Start it and follow it to its end. What `check` raises leaves it running."""
        if stdin is not None and self._api.base_url.startswith("https"):
            # A TLS connection cannot be closed on one side, so the program would wait for more for ever.
            raise Preflight("input cannot be sent to a program inside a container of an engine behind TLS")
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        body = {"Detach": False, "Tty": False}
        response = self._call("POST", f"/exec/{execution}/start", body=body, stream=True, headers=headers)
        try:
            hijacked.talk(self._api._get_raw_response_socket(response), stdin, said, check)
        finally:
            response.close()

    def execution(self, execution: str) -> Execution | None:
        found = self._get(f"/exec/{execution}/json")
        return None if found is None else Execution(bool(found["Running"]), found["ExitCode"], found.get("Pid") or 0)

    def has_path(self, container: str, path: str) -> bool:
        try:
            self._call("HEAD", f"/containers/{_quoted(container)}/archive", params={"path": path})
        except NotThere:
            return False
        return True

    def read_archive(self, container: str, path: str, limit: int) -> bytes | None:
        """A path as a tar archive; None if it is not there. OperationError above `limit` bytes."""
        try:
            response = self._call(
                "GET", f"/containers/{_quoted(container)}/archive", params={"path": path}, stream=True
            )
        except NotThere:
            if self._get(f"/containers/{_quoted(container)}/json") is None:
                raise
            return None
        data = bytearray()
        with contextlib.closing(response):
            for chunk in response.iter_content(1 << 16):
                data += chunk
                if len(data) > limit + 65536:
                    raise OperationError(f"{path} in container {container} has more than {limit} bytes")
        return bytes(data)

    def write_archive(self, container: str, folder: str, archive: bytes) -> None:
        self._call("PUT", f"/containers/{_quoted(container)}/archive", params={"path": folder}, data=archive)

    # --- images -----------------------------------------------------------------------------------

    def image(self, ref: str) -> Image | None:
        found = self._get(f"/images/{_quoted(ref)}/json")
        if found is None:
            return None
        tags, digests = tuple(found.get("RepoTags") or ()), tuple(found.get("RepoDigests") or ())
        return Image(found["Id"], tags, digests, found["Size"], found["Architecture"], found["Os"])

    def pull(self, ref: str, *, login: Login | None, platform: str | None, check: Check) -> None:
        """Fetch it. An error in the middle of the stream is an error; docker-py's own `pull` takes it for success."""
        repository, tag = _split_ref(ref)
        params = {"fromImage": repository, "tag": tag} | ({"platform": platform} if platform else {})
        self._stream("POST", "/images/create", check, params=params, headers=self._credentials(ref, login))

    def push(self, ref: str, *, login: Login | None, check: Check) -> None:
        repository, tag = _split_ref(ref)
        # Without a header the engine refuses, even where the registry asks for nobody.
        headers = {"X-Registry-Auth": "e30="} | self._credentials(ref, login)
        self._stream("POST", f"/images/{repository}/push", check, params={"tag": tag}, headers=headers)

    def build(self, context: BinaryIO, params: Mapping[str, Any], said: Callable[[str], None], check: Check) -> str:
        """Build from a tar archive; the image's id."""
        built = ""

        def follow(entry: dict[str, Any]) -> None:
            nonlocal built
            if text := entry.get("stream"):
                said(text)
            built = (entry.get("aux") or {}).get("ID") or built

        headers = {"Content-Type": "application/x-tar"}
        self._stream("POST", "/build", check, follow, params=params, headers=headers, data=context)
        return built

    def remote_digest(self, ref: str, *, login: Login | None) -> str:
        """What the name means at its registry now, without fetching it."""
        path = f"/distribution/{ref}/json"
        found = self._call("GET", path, headers=self._credentials(ref, login)).json()
        return str(found["Descriptor"]["digest"])

    def remove_image(self, ref: str, *, force: bool) -> list[dict[str, str]]:
        """Take the name off, and the image with its last name away: entries `Untagged` and `Deleted`."""
        found = self._call("DELETE", f"/images/{_quoted(ref)}", params={"force": int(force)}).json()
        return list(found or [])

    def _credentials(self, ref: str, login: Login | None) -> dict[str, str]:
        """The given ones; else those of the worker's own docker configuration for that registry."""
        from docker import auth  # noqa: PLC0415 - see _api
        from docker.errors import DockerException  # noqa: PLC0415

        registry, _ = auth.resolve_repository_name(_split_ref(ref)[0])
        if login is not None:
            known = {"username": login.username, "password": login.password, "serveraddress": registry}
            return {"X-Registry-Auth": auth.encode_header(known).decode()}
        try:
            found = auth.load_config().resolve_authconfig(registry)
        except DockerException as error:
            raise OperationError(f"the credentials for {registry} cannot be read: {error}") from error
        return {"X-Registry-Auth": auth.encode_header(found).decode()} if found else {}

    def _stream(
        self,
        method: str,
        path: str,
        check: Check,
        follow: Callable[[dict[str, Any]], None] = lambda _entry: None,
        **request: Any,
    ) -> None:
        """Follow a call that tells how it goes on; an error that is told is raised, whatever the status was."""

        def begin(engine: DockerEngine) -> Any:
            return engine._call(method, path, stream=True, timeout=_STREAM_TIMEOUT, **request)

        for entry in hijacked.entries(DockerEngine(self.url), begin, check):
            if "error" in entry or "errorDetail" in entry:
                message = str((entry.get("errorDetail") or {}).get("message") or entry.get("error"))
                raise in_stream(" ".join(message.split()))
            follow(entry)

    # --- names of images, networks, volumes -------------------------------------------------------

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

    def network(self, name: str) -> dict[str, Any] | None:
        """By name or id; OperationError where two have the name."""
        found: dict[str, Any] | None = self._get(f"/networks/{_quoted(name)}")
        return found

    def create_network(self, body: Mapping[str, Any]) -> str:
        return str(self._call("POST", "/networks/create", body={"CheckDuplicate": True} | dict(body)).json()["Id"])

    def volume(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._get(f"/volumes/{_quoted(name)}")
        return found

    def create_volume(self, body: Mapping[str, Any]) -> None:
        self._call("POST", "/volumes/create", body=body)

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
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> Any:
        api = self._api
        from requests.exceptions import RequestException, Timeout  # noqa: PLC0415 - comes with docker

        try:
            url = f"{api.base_url}/v{api.api_version}{path}"
            response = api.request(
                method, url, params=params, json=body, timeout=timeout, stream=stream, headers=headers, data=data
            )
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
        if tls := next((link for link in _links(error) if isinstance(link, ssl.SSLError)), None):
            remedy = "DOCKER_CERT_PATH holds ca.pem, cert.pem and key.pem of that engine"
            why = tls.reason or str(tls)
            return OperationError(
                f"no trust between this worker and the Docker engine at {self.url}: {why}", remedy=remedy
            )
        remedy = "start it, or set LONGSHORE_DOCKER_HOST"
        return Transient(f"the Docker engine at {self.url} does not answer", remedy=remedy)


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
