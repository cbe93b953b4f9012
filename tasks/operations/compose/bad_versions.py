"""The versions of a project's services that have failed their health wait, stored on its host.

A version is an image and a configuration hash. An orchestration does not try it again until one of the two changes. The
version of a service that was not started, because a dependency had failed, is not stored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from longshore.tasks.host.backups import write_private
from longshore.tasks.host.engine.port import Engine
from longshore.tasks.operations.compose.revisions import folder
from longshore.tasks.operations.compose.state import Member

#: The number of latest versions that are kept per project.
_KEPT = 20


@dataclass(frozen=True)
class BadVersion:
    """One version that failed at `at`, seconds since 1970."""

    service: str
    image_id: str
    hash: str
    at: float
    why: str = ""
    #: Digests of the image at registries.
    digests: tuple[str, ...] = ()

    def is_of(self, service: str, hashed: str, image: str) -> bool:
        """Reports whether a service would get this version. `image`: an id, or a digest at a registry."""
        return (self.service, self.hash) == (service, hashed) and image in {self.image_id, *self.digests}

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.at))
        return f"failed its health check on {when} UTC" + (f" ({self.why})" if self.why else "")


def _path(project: str) -> Path:
    return folder(project) / "failed.json"


def bad_versions(project: str) -> list[BadVersion]:
    """The stored versions, the latest last."""
    try:
        listed = json.loads(_path(project).read_text())
        return [BadVersion(**one | {"digests": tuple(one["digests"])}) for one in listed]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def remember(docker: Engine, project: str, ill: Iterable[Member], why: str) -> None:
    """Store the versions of these containers as failed. The caller holds the project's lock."""
    kept = bad_versions(project)
    for member in ill:
        image = docker.image(member.image_id)
        digests = tuple(text.rpartition("@")[2] for text in image.digests) if image is not None else ()
        kept = [one for one in kept if not one.is_of(member.service, member.hash, member.image_id)]
        kept.append(BadVersion(member.service, member.image_id, member.hash, round(time.time(), 3), why[:200], digests))
    _write(project, kept)


def forget(project: str, well: Iterable[Member]) -> None:
    """Remove the versions of healthy containers. The caller holds the project's lock."""
    kept, well = bad_versions(project), list(well)
    left = [one for one in kept if not any(one.is_of(m.service, m.hash, m.image_id) for m in well)]
    if left != kept:
        _write(project, left)


def _write(project: str, kept: list[BadVersion]) -> None:
    write_private(_path(project), json.dumps([asdict(one) for one in kept[-_KEPT:]]).encode())
