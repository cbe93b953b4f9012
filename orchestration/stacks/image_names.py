"""Names of images: the same one is written in several ways."""

from __future__ import annotations

import re

_HUB = ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/", "library/")


def normal(ref: str) -> str:
    """As an engine lists it: with a tag or digest, and without the registry that goes without saying."""
    for begin in _HUB:
        if ref.startswith(begin):
            ref = ref[len(begin) :]
            break
    name, at, digest = ref.partition("@")
    if at:
        return f"{repository(name)}@{digest}"
    if re.fullmatch(r"(sha256:)?[0-9a-f]{64}", ref):
        return ref if ref.startswith("sha256:") else f"sha256:{ref}"
    return ref if repository(ref) != ref else f"{ref}:latest"


def repository(ref: str) -> str:
    """Without its tag; a colon before the last slash belongs to a registry's port."""
    head, colon, tag = ref.rpartition(":")
    return head if colon and "/" not in tag else ref


def registry_of(ref: str) -> str:
    """The registry's host[:port]."""
    first, slash, _ = ref.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def is_meant(asked: str, ref: str, image_ids: set[str]) -> bool:
    """Whether an image is the one that is asked for: by its name (without a tag, any), or the beginning of its id."""
    if re.fullmatch(r"(sha256:)?[0-9a-f]{12,64}", asked):
        wanted = asked.removeprefix("sha256:")
        if any(image_id.removeprefix("sha256:").startswith(wanted) for image_id in image_ids):
            return True
    if not ref:
        return False
    name = normal(asked)
    if "@" not in asked and repository(asked) == asked:
        return repository(normal(ref).partition("@")[0]) == repository(name)
    return normal(ref) == name
