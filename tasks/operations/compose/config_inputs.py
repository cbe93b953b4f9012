"""The files from which a configuration was resolved, by its hash: they tell which file has changed since."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from longshore.tasks.host.backups import write_private
from longshore.tasks.operations.compose.revisions import folder

#: The number of latest configurations that are kept per project.
_KEPT = 50


def _path(project: str) -> Path:
    return folder(project) / "inputs.json"


def known_inputs(project: str) -> dict[str, dict[str, str]]:
    """By configuration hash, the digests of the files by path."""
    try:
        found: dict[str, dict[str, str]] = json.loads(_path(project).read_text())
    except (OSError, ValueError):
        return {}
    return found


def note_inputs(project: str, hashes: Iterable[str], digests: Mapping[str, str]) -> None:
    """Store the digests of the files behind these configurations."""
    known = known_inputs(project)
    more = {one: dict(digests) for one in hashes if one}
    if any(known.get(one) != digests for one in more):
        kept = {one: was for one, was in known.items() if one not in more} | more
        write_private(_path(project), json.dumps(dict(list(kept.items())[-_KEPT:])).encode())


def changed_files(known: Mapping[str, Mapping[str, str]], hashed: str, digests: Mapping[str, str]) -> list[str]:
    """The paths that differ from those of a configuration; empty if these are not known."""
    was = known.get(hashed)
    if was is None:
        return []
    return sorted(path for path in {*was, *digests} if was.get(path, "") != digests.get(path, ""))
