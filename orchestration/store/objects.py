"""The object store: bytes by name in Redis, for files that are deployed on many hosts. Uses plain commands only."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

from redis import WatchError

from longshore.orchestration.errors import OperationError, Preflight
from longshore.orchestration.store.connection import Connection


@dataclass(frozen=True)
class Entry:
    """One object. `content_type` is `raw`, or `template`, which is rendered where the object is deployed."""

    data: bytes
    content_type: str = "raw"
    by: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)


class Objects:
    """The object store of an installation. Each object is one key, replaced as a whole."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._largest = connection.settings.max_object

    def get(self, name: str) -> Entry | None:
        """An object, or None."""
        return self._entry(self._redis.keys.object(name))

    def need(self, name: str) -> Entry:
        """An object. Raises Preflight where no such object exists."""
        found = self.get(name)
        if found is None:
            raise Preflight(
                f"object {name!r} does not exist", remedy="upload the object in an earlier step: file.upload"
            )
        return found

    def put(self, name: str, entry: Entry | None, *, was: str | None) -> bool:
        """Replace the object with the digest `was` (None: no object) by `entry` (None: delete), atomically.

        Returns False where the object has another digest. Raises Preflight for an object above the size limit.
        """
        if entry is not None and entry.size > self._largest:
            raise Preflight(
                f"object {name!r} has {entry.size} bytes; at most {self._largest} may be stored",
                remedy="raise LONGSHORE_MAX_OBJECT, or deploy the object from a URL",
            )
        key = self._redis.keys.object(name)
        return bool(self._redis.call(self._put, key, entry, was))

    # --- backups for undo -------------------------------------------------------------------------

    def keep(self, op_id: str, entry: Entry, seconds: float) -> None:
        """Keep the former object of a step for its undo; expires after so many seconds."""
        key = self._redis.keys.kept_object(op_id)
        pipe = self._redis.client.pipeline()
        pipe.hset(key, mapping=_fields(entry))
        pipe.pexpire(key, round(seconds * 1000))
        self._redis.call(pipe.execute)

    def kept(self, op_id: str) -> Entry:
        """The former object of a step. Raises OperationError where its backup has expired."""
        found = self._entry(self._redis.keys.kept_object(op_id))
        if found is None:
            raise OperationError(
                "the backup of the former object has expired", remedy="upload the former content by hand"
            )
        return found

    def forget(self, op_id: str) -> None:
        """Delete the backup of a step."""
        self._redis.call(self._redis.client.delete, self._redis.keys.kept_object(op_id))

    def _entry(self, key: str) -> Entry | None:
        fields = self._redis.call(self._redis.client.hgetall, key)
        if not fields:
            return None
        return Entry(base64.b64decode(fields["data"]), fields.get("content_type", "raw"), fields.get("by", ""))

    def _put(self, key: str, entry: Entry | None, was: str | None) -> bool:
        with self._redis.client.pipeline() as pipe:
            pipe.watch(key)  # type: ignore[no-untyped-call]
            if pipe.hget(key, "sha256") != was:
                return False
            pipe.multi()
            pipe.delete(key)
            if entry is not None:
                pipe.hset(key, mapping=_fields(entry))
            try:
                pipe.execute()
            except WatchError:
                return False
        return True


def _fields(entry: Entry) -> dict[Any, Any]:
    data = base64.b64encode(entry.data).decode()
    fields = {"data": data, "sha256": entry.sha256, "size": entry.size}
    return fields | {"content_type": entry.content_type, "by": entry.by}
