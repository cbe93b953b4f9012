"""Image names: normal form, repository and registry."""

from __future__ import annotations

import re

_HUB = ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/", "library/")


def normal(ref: str) -> str:
    """The name as an engine lists it: with a tag or digest, and without the default registry."""
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
    """The name without its tag; a colon before the last slash belongs to a registry's port."""
    head, colon, tag = ref.rpartition(":")
    return head if colon and "/" not in tag else ref


def registry_of(ref: str) -> str:
    """The registry's host[:port]."""
    first, slash, _ = ref.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def matches_image(pattern: str, ref: str, image_ids: set[str]) -> bool:
    """Whether an image has the name `pattern` (without a tag: any tag), or an id that begins with it."""
    if re.fullmatch(r"(sha256:)?[0-9a-f]{12,64}", pattern):
        wanted = pattern.removeprefix("sha256:")
        if any(image_id.removeprefix("sha256:").startswith(wanted) for image_id in image_ids):
            return True
    if not ref:
        return False
    name = normal(pattern)
    if "@" not in pattern and repository(pattern) == pattern:
        return repository(normal(ref).partition("@")[0]) == repository(name)
    return normal(ref) == name
