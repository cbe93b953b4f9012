"""Parsing of the allow-list settings, and the test whether a path lies in a folder."""

from __future__ import annotations

import os


def patterns(text: str) -> list[str]:
    """The comma-separated entries of a setting."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def within(path: str, root: str) -> bool:
    """Reports whether `path` is the folder `root` or lies in it; False for relative paths."""
    return os.path.isabs(path) and os.path.isabs(root) and os.path.commonpath([root, path]) == root
