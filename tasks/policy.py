"""What this worker may do at all, whatever a plan says: its settings' lists.

Raises NotAllowed, which stands in the audit trail. A list that is left out allows everything, but what is root on the
host by itself: privileged containers, `/` and the engine's socket as a bind.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from longshore.orchestration.errors import NotAllowed
from longshore.orchestration.settings import get_settings

#: Binds that are root on the host by themselves.
_ROOT_ITSELF = ("/", "/var/run/docker.sock", "/run/docker.sock")
#: What gives a container more than one of its own, by its name in a Compose file.
_STRONG = {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "SYS_RAWIO"}
_MODES = ("pid", "ipc", "network_mode", "userns_mode", "uts", "cgroup")


def _listed(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def _refuse(what: str, setting: str) -> NotAllowed:
    return NotAllowed(f"this worker may not {what}", remedy=f"its LONGSHORE_{setting} says so")


def check_operation(name: str) -> None:
    allowed = _listed(get_settings().allowed_operations)
    if allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
        raise _refuse(f"do {name}", "ALLOWED_OPERATIONS")


def check_image(name: str) -> None:
    """By the name that it is asked for with: `shop`, `registry.example/shop:1`, or an id."""
    allowed = _listed(get_settings().allowed_images)
    if allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
        raise _refuse(f"use image {name}", "ALLOWED_IMAGES")


def check_host(url: str) -> None:
    """The host of a URL, or a host by itself."""
    allowed = _listed(get_settings().allowed_hosts)
    host = (urlsplit(url).hostname if "//" in url else url) or ""
    if allowed and not any(fnmatch.fnmatchcase(host.lower(), pattern.lower()) for pattern in allowed):
        raise _refuse(f"talk to {host or url}", "ALLOWED_HOSTS")


def check_bind(source: str) -> None:
    """A folder, or file, of the Docker host that a container is to be given."""
    real = os.path.normpath(source)
    roots = [os.path.normpath(root) for root in get_settings().allowed_binds.split(":") if root]
    if roots:
        # Links are the Docker host's, which is not this container's: `..` is taken out, and no more can be.
        if not any(os.path.commonpath([root, real]) == root for root in roots if os.path.isabs(real)):
            raise _refuse(f"give a container {source}", "ALLOWED_BINDS")
    elif real in _ROOT_ITSELF or real == "//":
        raise NotAllowed(
            f"this worker may not give a container {source}, which is to be root on the host",
            remedy="where it has to be, name it in the worker's LONGSHORE_ALLOWED_BINDS",
        )


def check_service(name: str, said: Mapping[str, Any]) -> None:
    """A service of a Compose configuration with nothing left open."""
    if not get_settings().allow_privileged:
        for what in _more_than_its_own(said):
            raise NotAllowed(
                f"service {name} asks for {what}, and this worker makes no privileged containers",
                remedy="leave it out, or set the worker's LONGSHORE_ALLOW_PRIVILEGED",
            )
    if image := said.get("image"):
        check_image(str(image))
    for mount in said.get("volumes") or ():
        if isinstance(mount, Mapping) and mount.get("type") == "bind":
            check_bind(str(mount.get("source", "")))


def _more_than_its_own(said: Mapping[str, Any]) -> Iterable[str]:
    if said.get("privileged"):
        yield "privileged: true"
    for capability in said.get("cap_add") or ():
        if str(capability).upper().removeprefix("CAP_") in {
            "ALL",
            "SYS_ADMIN",
            "SYS_MODULE",
            "SYS_PTRACE",
            "SYS_RAWIO",
        }:
            yield f"the capability {capability}"
    for device in said.get("devices") or ():
        yield f"the device {device.get('source', device) if isinstance(device, Mapping) else device}"
    for mode in _MODES:
        if said.get(mode) == "host" and mode != "network_mode":
            yield f"{mode}: host"
    for option in said.get("security_opt") or ():
        if str(option).partition(":")[2] == "unconfined" or str(option).partition("=")[2] == "unconfined":
            yield str(option)


def check_container(made: Mapping[str, Any]) -> None:
    """What the engine is to make, in its own words."""
    host = made.get("HostConfig") or {}
    if host.get("Privileged") and not get_settings().allow_privileged:
        raise _refuse("make a privileged container", "ALLOW_PRIVILEGED")
    check_image(str(made.get("Image", "")))
    for mount in host.get("Mounts") or ():
        if mount.get("Type") == "bind":
            check_bind(str(mount.get("Source", "")))
    for bind in host.get("Binds") or ():
        if str(bind).startswith("/"):
            check_bind(str(bind).partition(":")[0])
