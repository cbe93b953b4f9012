"""The health of a worker's host for `longshore doctor`; plans cannot read these values."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import ConfigError, OperationError
from longshore.orchestration.messaging import signing
from longshore.orchestration.settings import Settings
from longshore.orchestration.store.run_store import Store
from longshore.tasks.host.engine.factory import engine_url

#: Seconds between two measurements of the state folder's size.
_MEASURED = 3600.0
_PATIENCE = 5.0
_DIRECTORY = '{{.Label "com.docker.compose.project.working_dir"}}'
_kept: dict[str, Any] = {"at": float("-inf"), "bytes": 0}
#: Folders of stacks that exist on the engine's host and not here, as of the last query.
_missing: list[str] = []


def health(store: Store) -> dict[str, Any]:
    """`skew`: ms by which this clock is ahead of Redis's; `free`: free bytes on the disk of the state folder; `kept`:
    bytes in the state folder; `keys`: ids of the known signing keys; `missing`: folders of stacks not mounted here.
    """
    before = time.time()
    redis_time = store.now()
    local_time = (before + time.time()) / 2 * 1000
    folder = store.settings.state_dir
    return {
        "skew": round(local_time - redis_time),
        "free": shutil.disk_usage(_nearest_existing(folder)).free,
        "kept": _measure(folder),
        "keys": _keys(store.settings),
        "missing": list(_missing),
    }


def _keys(settings: Settings) -> list[str]:
    try:
        ring = signing.ring(settings)
    except ConfigError:
        return ["unreadable"]
    return sorted(key.id for key in ring.keys) if ring is not None else []


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _measure(folder: Path) -> int:
    if time.monotonic() - _kept["at"] > _MEASURED:
        size = 0
        for root, _, files in os.walk(folder):
            for name in files:
                try:
                    size += os.lstat(os.path.join(root, name)).st_blocks * 512
                except OSError:
                    continue
        _kept.update(at=time.monotonic(), bytes=size)
    return int(_kept["bytes"])


def report_folders() -> None:
    """Query the engine for the folders of its stacks, and record the folders that do not exist here."""

    if not shutil.which("docker"):
        return
    try:
        command = ["docker", "--host", engine_url(), "ps", "--all", "--format", _DIRECTORY]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError, OperationError):
        return
    folders = {line.strip() for line in done.stdout.splitlines() if line.strip().startswith("/")}
    _missing[:] = sorted(folder for folder in folders if not os.path.isdir(folder))[:20]
