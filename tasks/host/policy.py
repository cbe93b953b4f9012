"""The worker's own limits on operations, images, binds, containers, volumes and builds, whatever a plan requests.

A check raises NotAllowed, which the audit trail records. An unset list allows everything except root access to the
host: system folders, and containers with more privileges than the default. Containers, volumes and builds are checked
against known harmless attributes; an unknown attribute is rejected.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longshore.orchestration.errors import NotAllowed
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import addresses
from longshore.tasks.host.allow_lists import patterns, within

#: Folders whose files the Docker host executes or trusts. The list is complete as far as FHS defines such folders.
_SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run", "/sbin", "/sys",
    "/usr", "/var/run", "/var/spool/at", "/var/spool/cron", "/var/spool/anacron", "/var/lib/apt", "/var/lib/dpkg",
    "/var/lib/rpm", "/var/lib/systemd", "/var/lib/cloud", "/var/lib/snapd",
    "/var/lib/docker", "/var/lib/docker-engine", "/var/lib/containerd", "/var/lib/containers", "/var/lib/crio",
    "/var/lib/buildkit", "/var/lib/kubelet", "/var/lib/rancher", "/var/lib/etcd", "/var/lib/lxc", "/var/lib/lxd",
    "/var/lib/incus", "/var/lib/libvirt", "/var/lib/machines", "/var/snap", "/snap",
)  # fmt: skip
#: Access to an engine's socket is root access to its host, at any path.
_SOCKETS = {"docker.sock", "containerd.sock", "podman.sock", "crio.sock", "buildkitd.sock", "cri-dockerd.sock"}
#: Exceptions in these folders: a container may mount the time zone, and the others read-only.
_TIME = ("/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo")
_PUBLIC = (
    "/etc/ca-certificates", "/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/os-release", "/etc/pki/ca-trust",
    "/etc/pki/tls/certs", "/etc/resolv.conf", "/etc/ssl/certs", "/usr/share/ca-certificates",
)  # fmt: skip
#: Capabilities of the default set, or harmless to the host.
_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "IPC_LOCK", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT", "SYS_NICE",
}  # fmt: skip
#: Attributes of a service without access to its host. An attribute in neither list is rejected.
_ORDINARY = frozenset({
    "attach", "blkio_config", "cap_drop", "command", "configs", "container_name", "cpu_count", "cpu_percent",
    "cpu_period", "cpu_quota", "cpu_rt_period", "cpu_rt_runtime", "cpu_shares", "cpus", "cpuset", "depends_on",
    # Only `compose watch` reads `develop`, and no operation runs it.
    "develop", "dns", "dns_opt", "dns_search", "domainname", "entrypoint", "env_file", "environment", "expose",
    "external_links", "extra_hosts", "group_add", "healthcheck", "hostname", "image", "init", "label_file", "labels",
    "links", "mac_address", "mem_limit", "mem_reservation", "mem_swap_limit", "mem_swappiness", "memswap_limit",
    "networks", "oom_kill_disable", "oom_score_adj", "pids_limit", "platform", "ports", "profiles", "pull_policy",
    "pull_refresh_after", "read_only", "restart", "scale", "secrets", "shm_size", "stdin_open", "stop_grace_period",
    "stop_signal", "storage_opt", "tmpfs", "tty", "ulimits", "user", "volumes", "working_dir",
})  # fmt: skip
_RESOURCES = {"cpus", "memory", "pids"}
#: The namespaces that a service may use, besides those of another service of its project.
_NAMESPACES = {
    "cgroup": {"private"}, "ipc": {"private", "none", "shareable"}, "isolation": {"default"}, "pid": set(),
    "runtime": {"runc"}, "userns_mode": {"private"}, "uts": set(),
}  # fmt: skip
_SECURITY = {"no-new-privileges", "no-new-privileges:true", "apparmor:docker-default", "seccomp:builtin"}
#: Sysctls that the kernel keeps per namespace.
_SYSCTLS = ("net.", "kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue.")
_LOG_DRIVERS = {"", "none", "json-file", "local", "journald", "syslog", "gelf", "fluentd"}
_NETWORK_DRIVERS = {"", "default", "bridge", "overlay", "macvlan", "ipvlan", "host", "none", "null"}
_BUILD = frozenset({
    "additional_contexts", "args", "cache_from", "cache_to", "context", "dockerfile", "dockerfile_inline",
    "extra_hosts", "isolation", "labels", "no_cache", "platforms", "provenance", "pull", "sbom", "secrets", "shm_size",
    "tags", "target", "ulimits",
})  # fmt: skip
#: Of the volume driver `local`: file systems without data of the host, and harmless mount options.
_REMOTE_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3"}
_MOUNT_WORDS = frozenset({
    "bind", "rbind", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "diratime",
    "nodiratime", "relatime", "strictatime", "sync", "async", "private", "rprivate", "slave", "rslave",
    "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "defaults",
})  # fmt: skip
_PROJECT = "com.docker.compose.project"
#: Keys of HostConfig in the engine's container description that are checked or harmless.
_HOST_CONFIG = frozenset({
    "Binds", "Dns", "Init", "LogConfig", "Memory", "Mounts", "NanoCpus", "NetworkMode", "PortBindings", "RestartPolicy",
})  # fmt: skip
#: Keys of HostConfig of an existing container, with the attributes of a service that have the same meaning; and keys
#: of the namespaces that a container may share with its host.
_SERVICE = {
    "CapAdd": "cap_add", "DeviceCgroupRules": "device_cgroup_rules", "DeviceRequests": "gpus", "Devices": "devices",
    "SecurityOpt": "security_opt",
}  # fmt: skip
_HOST_NAMESPACES = ("IpcMode", "PidMode", "UTSMode", "UsernsMode")


def _refuse(what: str, setting: str) -> NotAllowed:
    return NotAllowed(f"this worker may not {what}", remedy=f"to allow this, set LONGSHORE_{setting} of the worker")


def check_operation(name: str) -> None:
    allowed = patterns(get_settings().allowed_operations)
    if allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
        raise _refuse(f"run operation {name}", "ALLOWED_OPERATIONS")


def check_image(name: str) -> None:
    """Check an image by the name in the request: `shop`, `registry.example/shop:1`, or an id."""
    allowed = patterns(get_settings().allowed_images)
    if allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
        raise _refuse(f"use image {name}", "ALLOWED_IMAGES")


def check_bind(source: str, *, read_only: bool = False) -> None:
    """Check a folder or file of the Docker host that a container is to mount.

    The path is checked as written and, if it exists on this machine, with its links resolved: a container may have put
    a link into a mounted folder. Links on the host of a remote engine cannot be checked.
    """
    paths = _paths(source)
    roots = [root for root in get_settings().allowed_binds.split(":") if root]
    if roots:
        allowed = {*map(os.path.normpath, roots), *map(os.path.realpath, roots)}
        if not all(any(within(path, root) for root in allowed) for path in paths):
            raise _refuse(f"mount {source} into a container", "ALLOWED_BINDS")
    elif _of_the_host(paths, read_only=read_only):
        raise NotAllowed(
            f"this worker may not mount {source} into a container: it gives root access to the host",
            remedy="choose another path, or add this path to LONGSHORE_ALLOWED_BINDS of the worker",
        )


def check_read(path: str) -> None:
    """Check a file that Compose reads on this machine for a project, by the rules for read-only mounts."""
    paths = _paths(path)
    roots = [os.path.realpath(root) for root in get_settings().allowed_binds.split(":") if root]
    if not any(within(paths[-1], root) for root in roots) and _of_the_host(paths, read_only=True):
        raise NotAllowed(
            f"this worker may not read {path} for a project",
            remedy="move the file into the project's folder, or add it to LONGSHORE_ALLOWED_BINDS of the worker",
        )


def _paths(source: str) -> list[str]:
    """The path as written, and with its links resolved."""
    plain = os.path.normpath(source)
    if not plain.startswith("/"):
        return [plain]
    # Two leading slashes are equivalent to one.
    plain = "/" + plain.lstrip("/")
    try:
        return [plain, os.path.realpath(source)]
    except OSError:  # a link that this process may not read
        return [plain]


def _of_the_host(paths: Sequence[str], *, read_only: bool) -> bool:
    """Reports whether a path is, contains, or lies in a part of the host that gives control over the host."""
    harmless = (*_TIME, *_PUBLIC) if read_only else _TIME
    if any(within(paths[0], known) for known in harmless):
        return False
    settings = get_settings()
    closed = [*_SYSTEM, str(settings.state_dir), *_sockets()]
    closed += [os.path.dirname(os.path.abspath(settings.keys))] if settings.keys else []
    for path in paths:
        if os.path.basename(path) in _SOCKETS or _of_a_home(path):
            return True
        if any(within(path, tree) or within(tree, path) for tree in closed):
            return True
    return False


def _sockets() -> list[str]:
    """The socket paths of this worker's engine."""
    urls = (get_settings().docker_host, os.environ.get("DOCKER_HOST", ""))
    return [url.removeprefix("unix://") for url in urls if url.startswith("unix:///")]


def _of_a_home(path: str) -> bool:
    """Reports whether a path is a home folder or configuration in one: `.ssh`, `.config`, `.profile`."""
    _, *parts = path.split("/")
    return parts[:1] == ["home"] and (len(parts) < 3 or parts[2].startswith("."))


def check_project(name: str, config: Mapping[str, Any]) -> None:
    """Check a resolved Compose configuration: services, volumes, networks, secrets and configs."""
    for service, part in (config.get("services") or {}).items():
        check_service(f"{name}/{service}", part)
    for volume in (config.get("volumes") or {}).values():
        check_volume((volume or {}).get("driver_opts") or {}, str((volume or {}).get("driver") or ""))
    for network in (config.get("networks") or {}).values():
        check_network(str((network or {}).get("driver") or ""))
    for kind in ("secrets", "configs"):
        for part in (config.get(kind) or {}).values():
            if isinstance(part, Mapping) and part.get("file"):
                check_bind(str(part["file"]), read_only=True)


def check_volume(options: Mapping[str, Any], driver: str = "") -> None:
    """Check a volume, which may be an alias of a folder of the host, or of a file system that exposes one."""
    if driver not in {"", "local"}:
        _unless_privileged(f"a volume of the driver {driver}")
    kind, device = str(options.get("type") or ""), str(options.get("device") or "")
    words = [word.strip() for word in str(options.get("o") or "").split(",") if word.strip()]
    if {"bind", "rbind"} & set(words):  # regardless of the type
        if not device.startswith("/"):
            raise NotAllowed(
                f"this worker may not create a volume of the relative path {device!r}", remedy="give an absolute path"
            )
        check_bind(device)
    elif kind in _REMOTE_FILE_SYSTEMS:
        named = [word.partition("=")[2] for word in words if word.startswith("addr=")]
        for host in named or [device.removeprefix("//").partition("/")[0].partition(":")[0]]:
            addresses.check(addresses.host(host))
        return
    elif device not in {"", "tmpfs"} or kind not in {"", "tmpfs"}:
        _unless_privileged(f"a volume of type {kind or 'none'} of {device or 'no device'}")
    other = [word for word in words if word.partition("=")[0] not in _MOUNT_WORDS]
    if other or options.keys() - {"type", "device", "o", "size"}:
        _unless_privileged(f"a volume with {', '.join(other) or 'options that are not known to be harmless'}")


def check_existing_volume(found: Mapping[str, Any] | None, own_project: str = "") -> None:
    """Check an existing volume, in the engine's format: this worker might not have been allowed to create it."""
    if found is None:
        return
    if own_project and (found.get("Labels") or {}).get(_PROJECT) == own_project:
        raise NotAllowed(
            f"no step may mount volume {found.get('Name')}, which belongs to Longshore's own deployment",
            remedy="choose another volume",
        )
    check_volume(found.get("Options") or {}, str(found.get("Driver") or ""))


def check_network(driver: str) -> None:
    if driver not in _NETWORK_DRIVERS:
        _unless_privileged(f"a network of the driver {driver}")


def check_build(name: str) -> None:
    """Reject builds if the allowed images are listed: a Dockerfile decides the content behind any name."""
    if patterns(get_settings().allowed_images):
        raise NotAllowed(
            f"this worker may not build {name}: LONGSHORE_ALLOWED_IMAGES is set",
            remedy="build the image on a worker without LONGSHORE_ALLOWED_IMAGES, and pull it here",
        )


def check_inside(name: str, made: Mapping[str, Any], own_project: str = "") -> None:
    """Check a container in which a step acts, in the engine's format: the step gets the container's privileges.

    `own_project`: the Compose project that contains this worker, and with it Longshore's keys.
    """
    labels, host = (made.get("Config") or {}).get("Labels") or {}, made.get("HostConfig") or {}
    if own_project and labels.get(_PROJECT) == own_project:
        raise NotAllowed(
            f"no step may act in container {name}, which belongs to Longshore's own deployment",
            remedy="choose another container",
        )
    for what in () if get_settings().allow_privileged else _privileges_of(host):
        raise NotAllowed(
            f"no step may act in container {name}, which has {what} and may reach the host",
            remedy="choose another container, or set LONGSHORE_ALLOW_PRIVILEGED of the worker",
        )
    for mount in made.get("Mounts") or ():
        source, writable = str(mount.get("Source") or ""), mount.get("RW", True)
        shown = not writable and any(source != tree and within(source, tree) for tree in ("/etc", "/usr"))
        if mount.get("Type") == "bind" and not shown:  # parts of /etc and /usr are configuration
            try:
                check_bind(source, read_only=not writable)
            except NotAllowed as error:
                raise NotAllowed(
                    f"no step may act in container {name}, which mounts {source}: {error.message}", remedy=error.remedy
                ) from None


def _privileges_of(host: Mapping[str, Any]) -> Iterator[str]:
    """The privileges of an existing container beyond the default."""
    if host.get("Privileged"):
        yield "all privileges"
    yield from (f"{key}: host" for key in _HOST_NAMESPACES if host.get(key) == "host")
    yield from _privileges({attribute: host.get(key) for key, attribute in _SERVICE.items()})


def _unless_privileged(what: str) -> None:
    if not get_settings().allow_privileged:
        raise NotAllowed(
            f"this worker may not create {what}, which may reach the host",
            remedy="remove it, or set LONGSHORE_ALLOW_PRIVILEGED of the worker",
        )


def check_service(name: str, service: Mapping[str, Any]) -> None:
    """Check a service of a resolved Compose configuration."""
    if not get_settings().allow_privileged:
        for what in _privileges(service):
            raise NotAllowed(
                f"service {name} requests {what}, and this worker may not create privileged containers",
                remedy="remove it, or set LONGSHORE_ALLOW_PRIVILEGED of the worker",
            )
    check_image(str(service.get("image") or name.replace("/", "-")))
    if service.get("build"):
        check_build(name)
        _check_contexts(service["build"])
    for mount in service.get("volumes") or ():
        if isinstance(mount, Mapping):
            _check_mount(mount)
        elif str(mount).startswith(("/", ".", "~")):
            check_bind(str(mount).partition(":")[0])
    for key in ("env_file", "label_file"):
        files = service.get(key) or ()
        for file in [files] if isinstance(files, str | Mapping) else files:
            check_read(str(file["path"] if isinstance(file, Mapping) else file))


def _check_mount(mount: Mapping[str, Any]) -> None:
    kind, source = mount.get("type"), str(mount.get("source") or "")
    if kind == "bind":
        check_bind(source, read_only=bool(mount.get("read_only")))
    elif kind == "image":
        check_image(source)


def _check_contexts(build: Any) -> None:
    """Check the folders of this machine that a build sends to the engine."""
    options = build if isinstance(build, Mapping) else {"context": build}
    named = options.get("additional_contexts") or {}
    contexts = [*named.values()] if isinstance(named, Mapping) else [str(each).partition("=")[2] for each in named]
    for context in (str(options.get("context") or ""), *map(str, contexts)):
        if context.startswith("/"):
            check_read(context)


def _privileges(service: Mapping[str, Any]) -> Iterator[str]:
    """The privileges that a service requests beyond the default."""
    for key, value in service.items():
        if not value or key in _ORDINARY or key.startswith("x-"):
            continue
        check = _CHECKS.get(key)
        yield from check(key, value) if check else (f"{key}: {_short(value)}",)


def _capabilities(_key: str, value: Any) -> Iterator[str]:
    for capability in value:
        if str(capability).upper().removeprefix("CAP_") not in _CAPABILITIES:
            yield f"the capability {capability}"


def _namespace(key: str, value: Any) -> Iterator[str]:
    if value not in _NAMESPACES[key] and not str(value).startswith("service:"):
        yield f"{key}: {_short(value)}"


def _network_mode(key: str, value: Any) -> Iterator[str]:
    if str(value).startswith("container:"):
        yield f"{key}: {_short(value)}"


def _security(_key: str, value: Any) -> Iterator[str]:
    for option in value:
        if str(option).replace("=", ":") not in _SECURITY:
            yield str(option)


def _sysctls(_key: str, value: Any) -> Iterator[str]:
    for name in value if isinstance(value, Mapping) else [str(each).partition("=")[0] for each in value]:
        if not str(name).startswith(_SYSCTLS):
            yield f"the sysctl {name}"


def _hooks(key: str, value: Any) -> Iterator[str]:
    for hook in value:
        if not isinstance(hook, Mapping) or hook.get("privileged"):
            yield f"{key}: privileged"


def _logging(key: str, value: Any) -> Iterator[str]:
    """Reject log drivers that may write to a socket of the host."""
    options = value.get("options") or {}
    if str(value.get("driver") or "") not in _LOG_DRIVERS or any("unix" in str(each) for each in options.values()):
        yield f"{key}: {_short(value)}"


def _deploy(key: str, value: Any) -> Iterator[str]:
    for kind, part in (value.get("resources") or {}).items():
        for name in (part or {}).keys() - _RESOURCES:
            yield f"{key}.resources.{kind}.{name}: {_short(part[name])}"


def _build(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        return
    for name in value.keys() - _BUILD:
        if value[name] and not (name == "network" and value[name] in {"default", "none"}):
            yield f"{key}: privileged ({name})"
    for cache in (*(value.get("cache_to") or ()), *(value.get("cache_from") or ())):
        if "type=" in str(cache) and not re.search(r"(^|,)type=(registry|inline)(,|$)", str(cache)):
            yield f"{key}: a cache of {_short(cache)}"


_CHECKS: dict[str, Callable[[str, Any], Iterator[str]]] = {
    "build": _build, "cap_add": _capabilities, "deploy": _deploy, "logging": _logging, "network_mode": _network_mode,
    "post_start": _hooks, "pre_stop": _hooks, "security_opt": _security, "sysctls": _sysctls,
    **dict.fromkeys(_NAMESPACES, _namespace),
}  # fmt: skip


def _short(value: Any) -> str:
    text = "true" if value is True else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_container(made: Mapping[str, Any]) -> None:
    """Check a container to create, in the engine's format."""
    host = made.get("HostConfig") or {}
    if host.get("Privileged") and not get_settings().allow_privileged:
        raise _refuse("create a privileged container", "ALLOW_PRIVILEGED")
    for name in sorted(host.keys() - _HOST_CONFIG):
        if host[name]:
            _unless_privileged(f"a container with {name}: {_short(host[name])}")
    if str(host.get("NetworkMode") or "").startswith("container:"):
        _unless_privileged(f"a container in the network of another ({host['NetworkMode']})")
    if (log := (host.get("LogConfig") or {}).get("Type") or "") not in _LOG_DRIVERS:
        _unless_privileged(f"a container with the log driver {log}")
    check_image(str(made.get("Image", "")))
    for mount in host.get("Mounts") or ():
        if mount.get("Type") == "bind":
            check_bind(str(mount.get("Source", "")), read_only=bool(mount.get("ReadOnly")))
        driver = (mount.get("VolumeOptions") or {}).get("DriverConfig") or {}
        check_volume(driver.get("Options") or {}, str(driver.get("Name") or ""))
    for bind in host.get("Binds") or ():
        source, _, rest = str(bind).partition(":")
        if source.startswith("/"):
            check_bind(source, read_only="ro" in rest.partition(":")[2].split(","))
