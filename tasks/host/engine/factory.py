"""The engine of this worker: where it is, and one client for each process and thread."""

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
from longshore.tasks.host.engine.port import Engine

DEFAULT_URL = "unix:///var/run/docker.sock"


def engine_url() -> str:
    """Where the engine is: LONGSHORE_DOCKER_HOST, DOCKER_HOST, the chosen context, the usual socket.

    `unix://…`, `tcp://host:port` (TLS with DOCKER_TLS_VERIFY and the certificates in DOCKER_CERT_PATH), or
    `ssh://user@host` by the machine's own ssh.

    A context that does not exist is an error; the SDK would quietly take the default engine instead.
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
        remedy = "set DOCKER_HOST, or make it with docker context create"
        raise OperationError(f"there is no Docker context {name!r}", remedy=remedy)
    return str(host)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_clients = threading.local()


def engine() -> Engine:
    """The engine. One client a process, made after the fork; a thread of its own has one of its own."""
    url = engine_url()
    key = (os.getpid(), url)
    if getattr(_clients, "key", None) != key:
        _clients.client = _factory(url)
        _clients.key = key
    client: Engine = _clients.client
    return client


def own_project() -> str:
    """The Compose project that this worker is part of; '' where it runs in no container of its engine."""
    return _project(engine_url())


@cache
def _project(url: str) -> str:  # noqa: ARG001 - what it is remembered by
    made = engine().raw(socket.gethostname()) or {}
    return str(((made.get("Config") or {}).get("Labels") or {}).get("com.docker.compose.project") or "")


def close_engine() -> None:
    """Close this thread's client, if it has one."""
    client = _clients.__dict__.pop("client", None)
    if client is not None and _clients.__dict__.pop("key")[0] == os.getpid():
        client.close()


def _docker_engine(url: str) -> Engine:
    from longshore.tasks.host.engine.client import DockerEngine  # noqa: PLC0415 - only where there is one

    return DockerEngine(url)


_factory: Callable[[str], Engine] = _docker_engine


def use_engines(factory: Callable[[str], Engine]) -> None:
    """Let `engine()` make its clients so, from the URL."""
    global _factory  # noqa: PLW0603 - the one seam for a fake
    _factory = factory
    close_engine()
