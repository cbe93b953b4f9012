"""What this worker may do at all, whatever a plan says: its settings' lists.

Raises NotAllowed, which stands in the audit trail. A list that is left out allows everything, but what is root on the
host by itself: containers that are privileged in whatever way, and folders from which a host is taken over.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from typing import Any

from longshore.orchestration.errors import NotAllowed
from longshore.orchestration.settings import get_settings

#: Who is given one of these, or a folder that one of them is in, has the host.
_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/var/run/containerd")
_TREES = ("/proc", "/sys", "/dev", "/boot", "/root", "/var/lib/docker", "/var/lib/containerd")
#: These as a whole; a file of them, the time zone for instance, may be given.
_WHOLE = ("/", "/etc", "/var", "/run", "/var/run", "/var/lib", "/usr", "/lib", "/bin", "/sbin", "/home")
#: What a container that is not privileged has, or may have without harm to its host.
_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "IPC_LOCK", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT", "SYS_NICE",
}  # fmt: skip
#: Of a service: its namespaces, and what gives it something of the host's, or has Compose run a program here.
_MODES = ("pid", "ipc", "userns_mode", "uts", "cgroup")
_MORE = (
    "privileged", "use_api_socket", "volumes_from", "provider", "devices", "device_cgroup_rules", "gpus",
    "cgroup_parent", "credential_spec",
)  # fmt: skip


def patterns(text: str) -> list[str]:
    """Those of a setting, between commas."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def _refuse(what: str, setting: str) -> NotAllowed:
    return NotAllowed(f"this worker may not {what}", remedy=f"its LONGSHORE_{setting} says so")


def check_operation(name: str) -> None:
    allowed = patterns(get_settings().allowed_operations)
    if allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
        raise _refuse(f"do {name}", "ALLOWED_OPERATIONS")


def check_image(name: str) -> None:
    """By the name that it is asked for with: `shop`, `registry.example/shop:1`, or an id."""
    allowed = patterns(get_settings().allowed_images)
    if allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
        raise _refuse(f"use image {name}", "ALLOWED_IMAGES")


def check_bind(source: str) -> None:
    """A folder, or file, of the Docker host that a container is to be given.

    Links are the Docker host's, which may be another machine: `..` is taken out, and no more can be.
    """
    real = os.path.normpath(source)
    real = "/" + real.lstrip("/") if real.startswith("/") else real
    roots = [os.path.normpath(root) for root in get_settings().allowed_binds.split(":") if root]
    if roots:
        if not any(within(real, root) for root in roots):
            raise _refuse(f"give a container {source}", "ALLOWED_BINDS")
        return
    with_socket = any(within(socket, real) for socket in _SOCKETS)
    if real in _WHOLE or with_socket or any(within(real, tree) for tree in _TREES):
        raise NotAllowed(
            f"this worker may not give a container {source}, which is to be root on the host",
            remedy="where it has to be, name it in the worker's LONGSHORE_ALLOWED_BINDS",
        )


def within(path: str, root: str) -> bool:
    """Whether it is that folder, or lies in it; a path that is not absolute lies nowhere."""
    return os.path.isabs(path) and os.path.isabs(root) and os.path.commonpath([root, path]) == root


def check_project(name: str, said: Mapping[str, Any]) -> None:
    """A Compose configuration with nothing left open: its services, and what they are given."""
    for service, part in (said.get("services") or {}).items():
        check_service(f"{name}/{service}", part)
    for volume in (said.get("volumes") or {}).values():
        check_volume((volume or {}).get("driver_opts") or {})
    for kind in ("secrets", "configs"):
        for part in (said.get(kind) or {}).values():
            if isinstance(part, Mapping) and part.get("file"):
                check_bind(str(part["file"]))


def check_volume(options: Mapping[str, Any]) -> None:
    """A volume may be another name for a folder of the host's."""
    device = str(options.get("device") or "")
    if device.startswith("/"):
        check_bind(device)


def check_service(name: str, said: Mapping[str, Any]) -> None:
    """A service of a Compose configuration with nothing left open."""
    if not get_settings().allow_privileged:
        for what in _more_than_its_own(said):
            raise NotAllowed(
                f"service {name} asks for {what}, and this worker makes no privileged containers",
                remedy="leave it out, or set the worker's LONGSHORE_ALLOW_PRIVILEGED",
            )
    check_image(str(said.get("image") or name.replace("/", "-")))
    for mount in said.get("volumes") or ():
        if isinstance(mount, Mapping) and mount.get("type") == "bind":
            check_bind(str(mount.get("source", "")))


def _more_than_its_own(said: Mapping[str, Any]) -> Iterator[str]:
    for word in _MORE:
        if said.get(word):
            yield f"{word}: {_short(said[word])}"
    for capability in said.get("cap_add") or ():
        if str(capability).upper().removeprefix("CAP_") not in _CAPABILITIES:
            yield f"the capability {capability}"
    for mode in _MODES:
        if said.get(mode) == "host" or str(said.get(mode) or "").startswith("container:"):
            yield f"{mode}: {said[mode]}"
    for option in said.get("security_opt") or ():
        if "unconfined" in str(option) or str(option).replace("=", ":") in {"label:disable", "no-new-privileges:false"}:
            yield str(option)
    for word in ("post_start", "pre_stop"):
        for hook in said.get(word) or ():
            if isinstance(hook, Mapping) and hook.get("privileged"):
                yield f"{word}: privileged"
    build = said.get("build")
    if isinstance(build, Mapping) and (build.get("privileged") or build.get("entitlements") or build.get("network")):
        yield "build: privileged"


def _short(value: Any) -> str:
    text = "true" if value is True else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_container(made: Mapping[str, Any]) -> None:
    """What the engine is to make, in its own words."""
    host = made.get("HostConfig") or {}
    if host.get("Privileged") and not get_settings().allow_privileged:
        raise _refuse("make a privileged container", "ALLOW_PRIVILEGED")
    check_image(str(made.get("Image", "")))
    for mount in host.get("Mounts") or ():
        if mount.get("Type") == "bind":
            check_bind(str(mount.get("Source", "")))
        check_volume(((mount.get("VolumeOptions") or {}).get("DriverConfig") or {}).get("Options") or {})
    for bind in host.get("Binds") or ():
        if str(bind).startswith("/"):
            check_bind(str(bind).partition(":")[0])
