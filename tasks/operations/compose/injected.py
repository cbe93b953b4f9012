"""Configs with inline content, and secrets and configs whose value is a variable, in a project's configuration.

Compose copies these into a container at its creation, as files that the engine does not describe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: The folder of secrets without a target.
SECRETS = "/run/secrets"
KINDS = ("configs", "secrets")


def variables(config: Mapping[str, Any]) -> list[str]:
    """The variables whose values Compose copies into containers of these services."""
    found: dict[str, None] = {}
    for service in _mappings(config.get("services")):
        for kind in KINDS:
            for source, _ in used(service, kind):
                part = (config.get(kind) or {}).get(source) or {}
                found |= {str(part["environment"]): None} if part.get("environment") else {}
    return list(found)


def used(service: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """The configs or secrets of a service, with their paths in its containers."""
    folder = SECRETS if kind == "secrets" else "/"
    listed = service.get(kind)
    for part in listed if isinstance(listed, list) else ():
        source, target = (part.get("source"), part.get("target")) if isinstance(part, Mapping) else (part, None)
        yield str(source), os.path.join(folder, str(target or source))


def _mappings(value: Any) -> Iterable[Mapping[str, Any]]:
    return [one for one in value.values() if isinstance(one, Mapping)] if isinstance(value, Mapping) else []
