"""What a worker knows of its own host: read once a process, but for its engine, which is asked now and then."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.language.targets import parse_facts, parse_labels
from longshore.orchestration.settings import get_settings

#: Seconds that the engine, or Compose, is given to say its version.
_PATIENCE = 3.0
#: By the program that each comes with.
_PACKAGE_MANAGERS = ("apt-get", "dnf", "yum", "zypper", "apk", "pacman", "brew")

#: What was last learned of the engine. Processes that are forked afterwards know it, too.
_engine: dict[str, Any] = {}


def facts() -> dict[str, Any]:
    """`os, version, kernel, arch, cpus, memory` (bytes), `hostname, package_manager, service_manager`, what the setting
    `facts` says, and, once it was learned, `docker` and `compose`. Nothing that asks a name server.
    """
    return _of_machine() | _engine | parse_facts(get_settings().facts)


def labels() -> dict[str, str]:
    """Of this host, by the setting."""
    return parse_labels(get_settings().labels)


@cache
def _of_machine() -> dict[str, Any]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    said = os.uname()
    return {
        "os": release.get("ID", said.sysname.lower()),
        "version": release.get("VERSION_ID", ""),
        "kernel": said.release,
        "arch": said.machine,
        "cpus": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "hostname": said.nodename,
        "package_manager": next((name for name in _PACKAGE_MANAGERS if shutil.which(name)), ""),
        "service_manager": _service_manager(),
    }


def _service_manager() -> str:
    if Path("/run/systemd/system").is_dir():
        return "systemd"
    return "openrc" if shutil.which("rc-service") else ""


def report_engine() -> Mapping[str, Any]:
    """Ask the engine and Compose for their versions: `docker` and `compose` among the facts from now on.

    `''` where it is there and does not answer, None where there is none.
    """
    _engine.update(docker=_docker(), compose=_compose())
    return _engine


def _docker() -> str | None:
    from longshore.tasks.host.engine.calls import raw_client  # noqa: PLC0415
    from longshore.tasks.host.engine.factory import engine_url  # noqa: PLC0415 - only workers of docker work load it

    if find_spec("docker") is None:
        return None
    try:
        url = engine_url()
    except OperationError:
        return ""
    gone = url.startswith("unix://") and not Path(url.removeprefix("unix://")).exists()
    if gone and not shutil.which("dockerd"):
        return None
    if shutil.which("docker"):  # the SDK would cost each worker, also one that never needs it, 40 MiB
        return _said(["docker", "--host", url, "version", "--format", "{{.Server.Version}}"]) or ""
    client = None
    try:
        client = raw_client(url, timeout=_PATIENCE)
        return str(client.version()["Version"])
    except Exception:  # noqa: BLE001 - whatever it is, it does not answer
        return ""
    finally:
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()


def _compose() -> str | None:
    if not shutil.which("docker"):
        return None
    said = _said(["docker", "compose", "version", "--short"])
    return said.removeprefix("v") if said else said


def _said(command: list[str]) -> str | None:
    """What a program says; '' if it does not end in time, None if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else None
