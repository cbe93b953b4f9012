"""The image names that a step has moved, recorded on its host for the undo."""

from __future__ import annotations

import json

from longshore.tasks.host.backups import file_of, write_private
from longshore.tasks.implementation import Context


class TagBackup:
    """The record of one step. If an attempt is killed before it records a name, the undo cannot verify the name."""

    def __init__(self, ctx: Context) -> None:
        self._path = file_of(ctx, "names", ".json")

    def note(self, ref: str, image_id: str) -> None:
        write_private(self._path, json.dumps(self.names() | {ref: image_id}).encode())

    def names(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
