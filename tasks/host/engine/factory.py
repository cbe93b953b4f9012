"""The engine of this worker: its URL, and one client per process and thread."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.engine.client import DockerEngine
from longshore.tasks.host.engine.port import Engine

DEFAULT_URL = "unix:///var/run/docker.sock"


def engine_url() -> str:
    """The engine's URL: LONGSHORE_DOCKER_HOST, else DOCKER_HOST, the current context, the default socket.

    `unix://…`, `tcp://host:port` (TLS with DOCKER_TLS_VERIFY and the certificates in DOCKER_CERT_PATH), or
    `ssh://user@host` by the machine's ssh program. Raises OperationError for a missing context; the SDK would silently
    use the default engine.
    """
    url = get_settings().docker_host or os.environ.get("DOCKER_HOST")
    if url:
        return url
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = os.environ.get("DOCKER_CONTEXT") or _json(folder / "config.json").get("currentContext")
    if not name or name == "default":
        return DEFAULT_URL
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    host = ((_json(meta).get("Endpoints") or {}).get("docker") or {}).get("Host")
    if not host:
        remedy = "set DOCKER_HOST, or create the context with docker context create"
        raise OperationError(f"Docker context {name!r} does not exist", remedy=remedy)
    return str(host)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_clients = threading.local()


def engine() -> Engine:
    """The engine client of this process and thread, created after the fork."""
    url = engine_url()
    key = (os.getpid(), url)
    if getattr(_clients, "key", None) != key:
        _clients.client = _factory(url)
        _clients.key = key
    client: Engine = _clients.client
    return client


def own_project() -> str:
    """The Compose project that contains this worker; '' if it runs in no container of its engine."""
    return _project(engine_url())


@cache
def _project(url: str) -> str:  # noqa: ARG001 - the cache key
    made = engine().raw(socket.gethostname()) or {}
    return str(((made.get("Config") or {}).get("Labels") or {}).get("com.docker.compose.project") or "")


def close_engine() -> None:
    """Close this thread's client, if it has one."""
    client = _clients.__dict__.pop("client", None)
    if client is not None and _clients.__dict__.pop("key")[0] == os.getpid():
        client.close()


_factory: Callable[[str], Engine] = DockerEngine


def use_engines(factory: Callable[[str], Engine]) -> None:
    """Set the factory that creates the clients of `engine()` from the URL."""
    global _factory  # noqa: PLW0603 - the one seam for a fake engine
    _factory = factory
    close_engine()
