"""Copies of the files that Compose has copied into a container: its new container needs them too."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.operations.compose import reads, revisions
from longshore.tasks.operations.compose.injected import KINDS, SECRETS, used

#: Bytes of one path; larger files come from elsewhere.
_LARGEST = 1024 * 1024
_LABEL = "com.docker.compose."


def copied_files(docker: Engine, raw: Mapping[str, Any]) -> str:
    """An archive of the copied files of an inspected container, in Base64; empty if it has none."""
    mounted = {str(mount.get("Destination")) for mount in raw.get("Mounts") or ()}
    found, archive = False, io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in _paths(raw["Config"].get("Labels") or {}):
            for member, data in _files(docker, raw["Id"], path):
                if mounted.isdisjoint(_and_parents(member.name)):
                    member.name = member.name.lstrip("/")
                    tar.addfile(member, io.BytesIO(data))
                    found = True
    return base64.b64encode(archive.getvalue()).decode() if found else ""


def _paths(labels: Mapping[str, str]) -> list[str]:
    """The paths that files of the container's project, stored or present, copy into containers of its service."""
    project, service = labels.get(_LABEL + "project"), labels.get(_LABEL + "service", "")
    if not project:
        return []
    found = {SECRETS: None}
    stored = [text for path in revisions.folder(project).glob("*.yml") if (text := revisions.load(path)) is not None]
    configs: list[Mapping[str, Any]] = [one.config for one in stored if not one.containers]
    files = [name for name in labels.get(_LABEL + "project.config_files", "").split(",") if os.path.isabs(name)]
    with contextlib.suppress(OperationError):
        configs += reads.documents(labels.get(_LABEL + "project.working_dir"), files) if files else []
    for config in configs:
        services = config.get("services")
        described = services.get(service) if isinstance(services, Mapping) else None
        if isinstance(described, Mapping):
            found |= {target: None for kind in KINDS for _, target in used(described, kind)}
    return list(found)


def _files(docker: Engine, container: str, path: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The regular files at a path, named by their whole paths."""
    data = docker.read_archive(container, path, _LARGEST)
    if data is None:
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.isreg() and (path == SECRETS or "/" not in member.name):
                content = tar.extractfile(member)
                member.name = os.path.join(os.path.dirname(path), member.name)
                yield member, content.read() if content is not None else b""


def _and_parents(path: str) -> Iterator[str]:
    while path not in {"/", ""}:
        yield path
        path = os.path.dirname(path)
