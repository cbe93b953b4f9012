"""The engine port over HTTP: containers, programs, files, networks and volumes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longshore.orchestration.errors import OperationError, Preflight, Transient
from longshore.tasks.host.engine import streams
from longshore.tasks.host.engine.calls import CALL_TIMEOUT, quoted
from longshore.tasks.host.engine.images import ImageCalls
from longshore.tasks.host.engine.port import (
    Check,
    Conflict,
    Container,
    EngineTimeout,
    Execution,
    NotThere,
    OnOutput,
    Output,
)
from longshore.tasks.host.machine.process import Tail

#: The engine's default grace in seconds, if neither call nor container has one.
_STOP_TIMEOUT = 10.0
#: Seconds without output of a followed container.
_FOLLOW_TIMEOUT = 300.0


class DockerEngine(ImageCalls):
    """The engine over docker-py's low-level client, which negotiates the API version at the first call."""

    def info(self) -> dict[str, Any]:
        """The engine's `/info`: `ID`, the same for all clients, `NCPU` and more."""
        found: dict[str, Any] = self._call("GET", "/info").json()
        return found

    def raw(self, container: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._get(f"/containers/{quoted(container)}/json")
        return found

    def rows(self, filters: Mapping[str, list[str]], *, all_of_them: bool) -> list[dict[str, Any]]:
        """List containers in one call: slower inspections of each could miss a container that is removed meanwhile."""
        return self._get("/containers/json", all=int(all_of_them), filters=json.dumps(filters)) or []

    def events(self, names: Sequence[str], since: float, until: float) -> list[dict[str, Any]]:
        """Container events, oldest first, out of the engine's last 256 events of all kinds. Times in seconds since 1970
        on the engine's clock.
        """
        filters = {"type": ["container"], "event": list(names)}
        params = {"since": f"{since:.9f}", "until": f"{until:.9f}", "filters": json.dumps(filters)}
        text: str = self._call("GET", "/events", params=params).text
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    def update(self, container: str, body: Mapping[str, Any]) -> None:
        self._call("POST", f"/containers/{quoted(container)}/update", body=body)

    def inspect(self, container: str) -> Container | None:
        raw = self._get(f"/containers/{quoted(container)}/json")
        return None if raw is None else Container.of(raw)

    def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """All containers with these labels, stopped ones included."""
        rows = self._get("/containers/json", all=1, filters=_filters(labels)) or []
        # A container may be removed before its inspection.
        return [found for row in rows if (found := self.inspect(row["Id"])) is not None]

    def create(self, name: str, body: Mapping[str, Any]) -> tuple[str, list[str]]:
        made = self._call("POST", "/containers/create", params={"name": name}, body=body).json()
        return made["Id"], list(made.get("Warnings") or [])

    def start(self, container: str) -> bool:
        """Start a container. False if it was running."""
        path = f"/containers/{quoted(container)}/start"
        try:
            return bool(self._call("POST", path).status_code == 204)
        except OperationError as error:
            # The previous holder of the port may have ended a moment ago.
            if "port is already allocated" not in error.message:
                raise
        time.sleep(1.0)
        return bool(self._call("POST", path).status_code == 204)

    def stop(self, container: str, grace: float | None = None) -> bool:
        """Stop a container and return when it has ended. False if it was not running."""
        params = {} if grace is None else {"t": max(0, round(grace))}
        if grace is None:
            found = self.inspect(container)
            grace = found.stop_timeout if found and found.stop_timeout is not None else _STOP_TIMEOUT
        path = f"/containers/{quoted(container)}/stop"
        try:
            return bool(self._call("POST", path, params=params, timeout=grace + CALL_TIMEOUT).status_code == 204)
        except EngineTimeout:
            found = self.inspect(container)
            if found is not None and found.running:
                raise
            return True

    def pause(self, container: str) -> None:
        self._call("POST", f"/containers/{quoted(container)}/pause")

    def rename(self, container: str, name: str) -> None:
        self._call("POST", f"/containers/{quoted(container)}/rename", params={"name": name})

    def set_restart(self, container: str, policy: Mapping[str, Any]) -> None:
        self._call("POST", f"/containers/{quoted(container)}/update", body={"RestartPolicy": dict(policy)})

    def remove(self, container: str) -> bool:
        """Remove a stopped container with its anonymous volumes. False if it does not exist."""
        try:
            self._call("DELETE", f"/containers/{quoted(container)}", params={"v": 1, "force": 1})
        except NotThere:
            return False
        except Transient as error:
            if "already in progress" not in error.message:
                raise
            return self._await_removal(container)
        return True

    def _await_removal(self, container: str) -> bool:
        end = time.monotonic() + _STOP_TIMEOUT
        while self.inspect(container) is not None:
            if time.monotonic() >= end:
                raise Transient(f"the removal of container {container} did not end in {_STOP_TIMEOUT:g} s")
            time.sleep(0.1)
        return True

    def logs(
        self,
        container: str,
        limit: int,
        *,
        tail: int | None = None,
        since: float | None = None,
        redact: Callable[[str], str] = lambda text: text,
    ) -> Output:
        path = f"/containers/{quoted(container)}"
        raw = self._get(f"{path}/json")
        if raw is None:
            return Output()
        out, err = Tail(limit, redact), Tail(limit, redact)
        try:
            params: dict[str, Any] = {"stdout": 1, "stderr": 1} | ({"tail": tail} if tail is not None else {})
            params |= {"since": f"{since:.3f}"} if since is not None else {}
            response = self._call("GET", f"{path}/logs", params=params, stream=True)
        except OperationError as error:
            if "logging driver" not in error.message.lower():
                raise
            return Output()  # this logging driver does not support reading
        with contextlib.closing(response):
            chunks = response.iter_content(1 << 16)
            for kind, piece in ((1, chunk) for chunk in chunks) if raw["Config"]["Tty"] else streams.frames(chunks):
                (err if kind == 2 else out).add(piece)
        return Output(out.text(), err.text(), out.truncated or err.truncated)

    def follow(
        self, container: str, on_output: OnOutput, ended: Callable[[], bool], *, since: float | None = None
    ) -> None:
        """Pass each piece of output to `on_output`, until the container ends or `ended` returns True after a piece.

        `since` on the engine's clock; without it, from the container's start.
        """
        path = f"/containers/{quoted(container)}"
        raw = self._get(f"{path}/json")
        if raw is None:
            return
        params: dict[str, Any] = {"stdout": 1, "stderr": 1, "follow": 1}
        params |= {"since": f"{since:.3f}"} if since is not None else {}
        try:
            response = self._call("GET", f"{path}/logs", params=params, stream=True, timeout=_FOLLOW_TIMEOUT)
        except OperationError as error:
            if "logging driver" not in error.message.lower():
                raise
            return  # this logging driver does not support reading
        with contextlib.closing(response), self._read():
            chunks = response.iter_content(None)
            frames = ((1, chunk) for chunk in chunks) if raw["Config"]["Tty"] else streams.frames(chunks)
            for kind, piece in frames:
                on_output(kind, piece)
                if ended():
                    return

    # --- programs and files inside ----------------------------------------------------------------

    def create_exec(self, container: str, body: Mapping[str, Any]) -> str:
        request = {"AttachStdout": True, "AttachStderr": True} | dict(body)
        return str(self._call("POST", f"/containers/{quoted(container)}/exec", body=request).json()["Id"])

    def start_exec(self, execution: str, stdin: bytes | None, on_output: OnOutput, check: Check) -> None:
        """Start an execution and follow it to its end. An error of `check` leaves it running."""
        if self.url.startswith("ssh://"):
            raise Preflight(
                f"programs inside a container cannot run through {self.url}",
                remedy="run the step on a worker on that host",
            )
        if stdin is not None and self._api.base_url.startswith("https"):
            # A TLS connection cannot be half-closed, so the program would never see the end of its input.
            raise Preflight(
                f"a program inside a container cannot read input through TLS ({self.url})",
                remedy="pass the input in a file, or run the step on a worker on that host",
            )
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        body = {"Detach": False, "Tty": False}
        response = self._call("POST", f"/exec/{execution}/start", body=body, stream=True, headers=headers)
        try:
            raw = self._api._get_raw_response_socket(response)
            streams.talk(raw, _read_ahead(raw, response), stdin, on_output, check)
        finally:
            response.close()

    def execution(self, execution: str) -> Execution | None:
        found = self._get(f"/exec/{execution}/json")
        return None if found is None else Execution(bool(found["Running"]), found["ExitCode"], found.get("Pid") or 0)

    def has_path(self, container: str, path: str) -> bool:
        try:
            self._call("HEAD", f"/containers/{quoted(container)}/archive", params={"path": path})
        except NotThere:
            return False
        return True

    def read_archive(self, container: str, path: str, limit: int) -> bytes | None:
        """A path as a tar archive; None if it does not exist. Raises OperationError above `limit` bytes."""
        try:
            response = self._call("GET", f"/containers/{quoted(container)}/archive", params={"path": path}, stream=True)
        except NotThere:
            if self._get(f"/containers/{quoted(container)}/json") is None:
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
        self._call("PUT", f"/containers/{quoted(container)}/archive", params={"path": folder}, data=archive)

    # --- networks, volumes ------------------------------------------------------------------------

    def networks(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Network names by id."""
        return {row["Id"]: row["Name"] for row in self._get("/networks", filters=_filters(labels)) or []}

    def connect(
        self, network: str, container: str, aliases: list[str], endpoint: Mapping[str, Any] | None = None
    ) -> None:
        """Connect a container. `endpoint`: more of its configuration, in the engine's format."""
        body = {"Container": container, "EndpointConfig": {"Aliases": aliases} | dict(endpoint or {})}
        self._call("POST", f"/networks/{quoted(network)}/connect", body=body)

    def remove_network(self, network: str) -> bool:
        try:
            self._call("DELETE", f"/networks/{quoted(network)}")
        except NotThere:
            return False
        return True

    def network(self, name: str) -> dict[str, Any] | None:
        """A network by name or id. Raises OperationError if two networks have the name."""
        found: dict[str, Any] | None = self._get(f"/networks/{quoted(name)}")
        # The engine accepts a prefix of an id as well.
        return found if found is not None and name in {found["Name"], found["Id"]} else None

    def create_network(self, body: Mapping[str, Any]) -> str:
        return str(self._call("POST", "/networks/create", body={"CheckDuplicate": True} | dict(body)).json()["Id"])

    def volume(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._get(f"/volumes/{quoted(name)}")
        return found

    def create_volume(self, body: Mapping[str, Any]) -> None:
        self._call("POST", "/volumes/create", body=body)

    def volumes(self, labels: Mapping[str, str]) -> list[str]:
        found = self._get("/volumes", filters=_filters(labels)) or {}
        return sorted(row["Name"] for row in found.get("Volumes") or [])

    def labelled_volumes(self, label: str) -> dict[str, dict[str, str]]:
        """The labels of the volumes that have this label, by volume name."""
        found = self._get("/volumes", filters=json.dumps({"label": [label]})) or {}
        return {row["Name"]: dict(row.get("Labels") or {}) for row in found.get("Volumes") or []}

    def remove_volume(self, name: str) -> bool:
        """Remove a volume. False if it does not exist or is in use."""
        try:
            self._call("DELETE", f"/volumes/{quoted(name)}")
        except (NotThere, Conflict):
            return False
        return True


def _read_ahead(raw: Any, response: Any) -> bytes:
    """The bytes after the response head that the HTTP client has buffered and will not read again."""
    connection = getattr(raw, "_sock", raw)
    buffered: Any = getattr(getattr(response.raw, "_fp", None), "fp", None)
    if not hasattr(buffered, "peek"):
        return b""
    before = connection.gettimeout()
    connection.settimeout(0)
    try:
        return bytes(buffered.peek(1 << 16))
    except (OSError, ValueError):
        return b""
    finally:
        connection.settimeout(before)


def _filters(labels: Mapping[str, str]) -> str:
    return json.dumps({"label": [f"{key}={value}" for key, value in labels.items()]})
