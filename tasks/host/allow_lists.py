"""Entries of the settings that bound a worker, and whether a path lies in one of their folders."""

from __future__ import annotations

import os


def patterns(text: str) -> list[str]:
    """The entries of a setting, which are separated by commas."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def within(path: str, root: str) -> bool:
    """Reports whether `path` is the folder `root` or lies in it; a path that is not absolute lies nowhere."""
    return os.path.isabs(path) and os.path.isabs(root) and os.path.commonpath([root, path]) == root
