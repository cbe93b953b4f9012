"""HTTP calls to a Docker engine by docker-py's low-level client: API version, timeouts, error classification."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote

from requests import Request
from requests.exceptions import RequestException, Timeout
from urllib3.exceptions import HTTPError

from longshore.orchestration.errors import OperationError, Transient, wrapped
from longshore.tasks.host.engine import streams
from longshore.tasks.host.engine.port import Check, EngineTimeout, NotThere, classified, in_stream
from longshore.tasks.host.engine.sdk import sdk

#: Timeout in seconds of an ordinary call.
CALL_TIMEOUT = 60.0
#: Seconds without an entry from a call that streams its progress.
_STREAM_TIMEOUT = 600.0

#: The negotiated API version by engine URL.
_versions: dict[str, str] = {}


def raw_client(url: str, timeout: float = CALL_TIMEOUT) -> Any:
    """docker-py's own client, for the functions of an application."""
    return sdk().DockerClient(base_url=url, version="auto", timeout=int(timeout), tls=_tls(url))


class Calls:
    """The HTTP client of one engine, connected at the first call."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: Any = None
        self._connections: list[Any] = []

    @property
    def _api(self) -> Any:
        if self._made is None:
            docker = sdk()
            path = self.url.removeprefix("unix://")
            if path != self.url and not os.path.exists(path):
                raise self._unreachable(FileNotFoundError(path))
            try:

                class Client(docker.APIClient):  # type: ignore[misc, name-defined]
                    """Ignores proxies and CA bundles of the environment, which would override the given settings."""

                    trust_env = property(lambda _self: False, lambda _self, _value: None)

                self._made = Client(
                    base_url=self.url,
                    # Threads of this process reuse the negotiated version.
                    version=_versions.get(self.url, "auto"),
                    timeout=int(CALL_TIMEOUT),
                    tls=_tls(self.url),
                    # The ssh program uses the machine's keys, hosts and agents; docker-py's own needs another library.
                    use_ssh_client=True,
                )
            except Exception as error:
                raise self._unreachable(error) from error
            _versions[self.url] = self._made.api_version
        return self._made

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def record(self, path: str, params: Mapping[str, Any] | None) -> None:
        """Record the connection of the next call, so that `close_connections` can close it."""
        url = f"{self._api.base_url}/v{self._api.api_version}{path}"
        prepared = Request("GET", url, params=params).prepare().url
        self._connections = streams.record_connections(self._api, str(prepared))

    def close_connections(self) -> None:
        """Abort the calls in progress, and close this client."""
        for connection in self._connections:
            with contextlib.suppress(Exception):
                connection.sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):
            self.close()

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
        timeout: float = CALL_TIMEOUT,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> Any:
        api = self._api
        try:
            url = f"{api.base_url}/v{api.api_version}{path}"
            response = api.request(
                method, url, params=params, json=body, timeout=timeout, stream=stream, headers=headers, data=data
            )
        except Timeout as error:
            raise EngineTimeout(
                f"the Docker engine at {self.url} did not respond to {method} {path} in time"
            ) from error
        except RequestException as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            message = _message(response)
            if (
                response.status_code == 400 and "client version" in message
            ):  # the engine was replaced since the negotiation
                _versions.pop(self.url, None)
                self.close()
            raise classified(response.status_code, message)
        return response

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        """Translate the errors of reading a streamed response: a broken stream counts as an unreachable engine."""
        try:
            yield
        except (RequestException, HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> OperationError:
        if any(isinstance(link, PermissionError) for link in wrapped(error)):
            remedy = "add the worker's user to the group docker"
            return OperationError(f"the Docker engine at {self.url} denied permission", remedy=remedy)
        if tls := next((link for link in wrapped(error) if isinstance(link, ssl.SSLError)), None):
            remedy = "put ca.pem, cert.pem and key.pem of that engine into DOCKER_CERT_PATH"
            why = tls.reason or str(tls)
            return OperationError(
                f"TLS verification between this worker and the Docker engine at {self.url} failed: {why}", remedy=remedy
            )
        if self.url.startswith("ssh://") and find_spec("paramiko") is None:
            return OperationError(f"{self.url} cannot be reached by ssh", remedy="pip install 'longshore[ssh]'")
        remedy = "start the engine, or set LONGSHORE_DOCKER_HOST"
        return Transient(f"the Docker engine at {self.url} does not respond", remedy=remedy)

    def _stream(
        self,
        method: str,
        path: str,
        check: Check,
        follow: Callable[[dict[str, Any]], None] = lambda _entry: None,
        **request: Any,
    ) -> None:
        """Follow a call that streams its progress. Raises the error of an entry, also after a successful status."""

        def begin(engine: Calls) -> Any:
            engine.record(path, request.get("params"))
            return engine._call(method, path, stream=True, timeout=_STREAM_TIMEOUT, **request)

        for entry in streams.entries(type(self)(self.url), begin, check):
            if "error" in entry or "errorDetail" in entry:
                message = str((entry.get("errorDetail") or {}).get("message") or entry.get("error"))
                raise in_stream(" ".join(message.split()))
            follow(entry)


def _message(response: Any) -> str:
    try:
        text = response.json()["message"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split()) or f"the Docker engine returned {response.status_code}"


def _tls(url: str) -> Any:
    folder = os.environ.get("DOCKER_CERT_PATH")
    if not os.environ.get("DOCKER_TLS_VERIFY") or not folder or not url.startswith("tcp://"):
        return False
    certificate = (os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
    return sdk().tls.TLSConfig(client_cert=certificate, ca_cert=os.path.join(folder, "ca.pem"), verify=True)


def quoted(text: str) -> str:
    return quote(text, safe="")
