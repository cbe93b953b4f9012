"""Facts of the worker's host: read once per process, except the versions of engine and Compose, which are refreshed."""

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
from longshore.tasks.host.engine.calls import raw_client
from longshore.tasks.host.engine.factory import engine_url

#: Timeout in seconds of the version query to the engine and to Compose.
_PATIENCE = 3.0
#: Package managers, detected by their program.
_PACKAGE_MANAGERS = ("apt-get", "dnf", "yum", "zypper", "apk", "pacman", "brew")

#: The last known versions of engine and Compose. Forked child processes inherit them.
_engine: dict[str, Any] = {}


def facts() -> dict[str, Any]:
    """`os, version, kernel, arch, cpus, memory` (bytes), `hostname, package_manager, service_manager`, the setting
    `facts`, and, after `report_engine`, `docker` and `compose`. Never queries a name server.
    """
    return _of_machine() | _engine | parse_facts(get_settings().facts)


def labels() -> dict[str, str]:
    """The labels of this host, from the setting."""
    return parse_labels(get_settings().labels)


@cache
def _of_machine() -> dict[str, Any]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    kernel = os.uname()
    return {
        "os": release.get("ID", kernel.sysname.lower()),
        "version": release.get("VERSION_ID", ""),
        "kernel": kernel.release,
        "arch": kernel.machine,
        "cpus": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "hostname": kernel.nodename,
        "package_manager": next((name for name in _PACKAGE_MANAGERS if shutil.which(name)), ""),
        "service_manager": _service_manager(),
    }


def _service_manager() -> str:
    if Path("/run/systemd/system").is_dir():
        return "systemd"
    return "openrc" if shutil.which("rc-service") else ""


def report_engine() -> Mapping[str, Any]:
    """Refresh the facts `docker` and `compose` with the versions of engine and Compose.

    A version is `''` if the program does not respond, and None if the program is not installed.
    """
    _engine.update(docker=_docker(), compose=_compose())
    return _engine


def _docker() -> str | None:

    if find_spec("docker") is None:
        return None
    try:
        url = engine_url()
    except OperationError:
        return ""
    socket_missing = url.startswith("unix://") and not Path(url.removeprefix("unix://")).exists()
    if socket_missing and not shutil.which("dockerd"):
        return None
    if shutil.which("docker"):  # the SDK would add 40 MiB to every worker, also to workers that never need it
        return _output_of(["docker", "--host", url, "version", "--format", "{{.Server.Version}}"]) or ""
    client = None
    try:
        client = raw_client(url, timeout=_PATIENCE)
        return str(client.version()["Version"])
    except Exception:  # noqa: BLE001 - every failure of this query means that the engine does not respond
        return ""
    finally:
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()


def _compose() -> str | None:
    if not shutil.which("docker"):
        return None
    version = _output_of(["docker", "compose", "version", "--short"])
    return version.removeprefix("v") if version else version


def _output_of(command: list[str]) -> str | None:
    """The standard output of a program; '' if the program times out, None if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else None
