"""Facts that only an inspection at the time can observe: the files at a container's start, and a stop on purpose.

The facts are stored on the host and not in the cache: a fresh build must keep them, and writes to Redis must not change
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longshore.orchestration.settings import get_settings
from longshore.orchestration.stacks.inventory import Inventory
from longshore.tasks.host.backups import write_private


@dataclass(frozen=True)
class Start:
    """The last observed start of a container; and for an exited one, whether it was stopped on purpose."""

    start: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    by_hand: bool | None = None


def _path(engine: str) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in engine)[:80]
    return get_settings().state_dir / "starts" / f"{name}.json"


def starts(engine: str) -> dict[str, Start]:
    """The stored facts by container id; empty if none are readable."""
    try:
        stored: dict[str, Any] = json.loads(_path(engine).read_text())
        return {key: Start(one["start"], one["files"], one["by_hand"]) for key, one in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def keep_starts(engine: str, seen: Inventory, known: Mapping[str, Start]) -> None:
    """Store the facts of this inventory, and those of `known` for other containers. Concurrent inspections write equal
    facts.
    """
    found = {key: asdict(one) for key, one in known.items() if one != Start()}
    for project in seen.projects.values():
        for service in project.services.values():
            for one in service.containers:
                was = known.get(one.id, Start())
                start, files = (one.start, one.files) if one.start else (was.start, dict(was.files))
                by_hand = one.by_hand if one.state == "exited" else None
                if start or by_hand is not None:
                    found[one.id] = {"start": start, "files": files, "by_hand": by_hand}
                else:
                    found.pop(one.id, None)
    text = json.dumps(found, sort_keys=True).encode()
    path = _path(engine)
    if not path.exists() or path.read_bytes() != text:
        write_private(path, text)
