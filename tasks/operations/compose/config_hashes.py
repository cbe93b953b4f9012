"""Hashes that Compose puts on containers for one configuration.

With `--no-deps` it leaves out of a service's configuration what the service depends on, and hashes what is left: the
label then is another than that of the same files otherwise. What such a container was made from is kept on its host.
"""

from __future__ import annotations

import json
from pathlib import Path

from longshore.orchestration.language import identifiers
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.backups import write_private

#: So many are kept of a project, the latest.
_KEPT = 100


def _path(project: str) -> Path:
    return get_settings().state_dir / "revisions" / identifiers.project(project) / "aliases.json"


def aliases(project: str) -> dict[str, str]:
    """The hash of the files by `service hash`, the hash that a container of the service has."""
    try:
        found: dict[str, str] = json.loads(_path(project).read_text())
    except (OSError, ValueError):
        return {}
    return found


def meant(known: dict[str, str], service: str, hashed: str) -> str:
    """What a container's hash stands for."""
    return known.get(f"{service} {hashed}", hashed)


def note_aliases(project: str, more: dict[tuple[str, str], str]) -> None:
    """Keep what hashes stand for, by service and hash; what stands for itself is none. The project's lock is held."""
    known = aliases(project)
    found = {key: value for key, value in known.items() if tuple(key.split(" ", 1)) not in more}
    found |= {f"{service} {hashed}": value for (service, hashed), value in more.items() if hashed != value}
    if found != known:
        write_private(_path(project), json.dumps(dict(list(found.items())[-_KEPT:])).encode())
