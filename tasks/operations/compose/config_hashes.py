"""The different hashes that Compose labels containers with for one configuration.

With `--no-deps` Compose omits the dependencies of a service from the hashed configuration, and for a service in the
network of another it hashes that container's id, so that the label differs from the usual hash of the same files. The
host stores which usual hash such a label stands for.
"""

from __future__ import annotations

import json
from pathlib import Path

from longshore.orchestration.language import identifiers
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.backups import write_private

#: The number of latest entries that are kept per project.
_KEPT = 100


def _path(project: str) -> Path:
    return get_settings().state_dir / "revisions" / identifiers.project(project) / "aliases.json"


def aliases(project: str) -> dict[str, str]:
    """The hash of the files by `service hash`, where hash is the label of a container of the service."""
    try:
        found: dict[str, str] = json.loads(_path(project).read_text())
    except (OSError, ValueError):
        return {}
    return found


def hash_of_files(known: dict[str, str], service: str, hashed: str) -> str:
    """The hash of the files for the hash in a container's label."""
    return known.get(f"{service} {hashed}", hashed)


def note_aliases(project: str, more: dict[tuple[str, str], str]) -> None:
    """Store hashes of files by service and label; equal ones are omitted. The caller holds the project's lock."""
    known = aliases(project)
    found = {key: value for key, value in known.items() if tuple(key.split(" ", 1)) not in more}
    found |= {f"{service} {hashed}": value for (service, hashed), value in more.items() if hashed != value}
    if found != known:
        write_private(_path(project), json.dumps(dict(list(found.items())[-_KEPT:])).encode())
