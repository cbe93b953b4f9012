"""What a worker knows of its own host, for templates: read once a process."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any


@cache
def facts() -> dict[str, Any]:
    """`os, version, kernel, arch, cpus, memory` (bytes), `hostname`. Nothing that asks a name server."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    said = os.uname()
    return {
        "os": release.get("ID", said.sysname.lower()),
        "version": release.get("VERSION_ID", ""),
        "kernel": said.release,
        "arch": said.machine,
        "cpus": os.cpu_count() or 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "hostname": said.nodename,
    }
