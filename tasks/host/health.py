"""What a worker tells of how its host stands, for `longshore doctor`: nothing that a plan may go by."""

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

#: Seconds between two times that what is kept is measured.
_MEASURED = 3600.0
_PATIENCE = 5.0
_DIRECTORY = '{{.Label "com.docker.compose.project.working_dir"}}'
_kept: dict[str, Any] = {"at": float("-inf"), "bytes": 0}
#: Folders of stacks that are not where the engine's host has them, as the engine was asked last.
_missing: list[str] = []


def health(store: Store) -> dict[str, Any]:
    """In ms `skew`, by which this clock is ahead of Redis's; in bytes `free`, beside the state folder, and `kept`
    in it; `keys`, the ids of those that it knows; `missing`, folders of stacks that are not mounted here.
    """
    before = time.time()
    theirs = store.now()
    mine = (before + time.time()) / 2 * 1000
    folder = store.settings.state_dir
    return {
        "skew": round(mine - theirs),
        "free": shutil.disk_usage(_there(folder)).free,
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


def _there(folder: Path) -> Path:
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
    """Ask the engine where its stacks lie, and whether these folders are here, too."""
    from longshore.tasks.host.engine.factory import engine_url  # noqa: PLC0415 - only workers of docker work load it

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
