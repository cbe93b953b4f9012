"""Base images of the deployment, built without a registry from the programs of this machine.

The images replace Python's slim image, `docker:cli` and `redis`. They have the same programs at the same paths, and
the libraries of this machine.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.machine.packages import find_busybox

#: The folder of the wheels in the replacement of Python's image, and pip's only source of packages.
WHEELS = "/wheels"
#: Libraries that wheels load, and that the interpreter does not link.
_MORE = ("librt.so.1", "libdl.so.2", "libutil.so.1", "libpthread.so.0", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6")
_MORE += ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3"}
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nredis:x:999:999::/data:/bin/sh\n"


class _Image:
    """A file system as a tar archive. Each path is added once."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self.bytes, mode="w")  # noqa: SIM115 - closed by `done`
        self._there: set[str] = set()
        self._objects: list[str] = []
        for name, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
            self.folder(f"/{target}")
            self._add(name, tarfile.SYMTYPE, target)
        self.folder("/tmp", 0o1777)
        self.text("/etc/passwd", _PASSWD)
        self.text("/etc/group", b"root:x:0:\nredis:x:999:\n")
        self.text("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")

    def _add(self, name: str, kind: bytes, link: str = "", mode: int = 0o755, uid: int = 0) -> None:
        info = tarfile.TarInfo(name.strip("/"))
        info.type, info.linkname, info.mode, info.uid, info.gid = kind, link, mode, uid, uid
        self._there.add(f"/{info.name}")
        self._tar.addfile(info)

    def folder(self, path: str, mode: int = 0o755, uid: int = 0) -> None:
        parent = os.path.dirname(path)
        if parent not in {"/", ""} and parent not in self._there:
            self.folder(parent)
        if path not in self._there:
            self._add(path, tarfile.DIRTYPE, mode=mode, uid=uid)

    def text(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self.folder(os.path.dirname(path))
        info = tarfile.TarInfo(path.strip("/"))
        info.size, info.mode = len(content), mode
        self._there.add(path)
        self._tar.addfile(info, io.BytesIO(content))

    def file(self, source: str | Path, path: str) -> None:
        """Add a file. `done` adds the libraries of the file."""
        if path in self._there:
            return
        content = Path(source).read_bytes()
        self.text(path, content, 0o755 if os.access(source, os.X_OK) else 0o644)
        if content[:4] == b"\x7fELF":
            self._objects.append(str(source))

    def tree(self, source: Path, path: str, left_out: Iterable[str] = ()) -> None:
        for root, folders, files in os.walk(source):
            wanted = [one for one in folders if one not in left_out and one != "__pycache__"]
            folders[:] = [one for one in wanted if not one.startswith("config-")]
            for name in files:
                found = Path(root, name)
                if found.exists() and name != "EXTERNALLY-MANAGED":
                    self.file(found.resolve(), f"{path}/{found.relative_to(source)}")

    def busybox(self) -> None:
        found = find_busybox()
        if found is None:
            raise FileNotFoundError("no static busybox")
        self.file(found, "/usr/bin/busybox")
        listed = subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for name in listed:
            if name != "busybox":
                self._add(f"usr/bin/{name}", tarfile.SYMTYPE, "busybox")

    def done(self) -> bytes:
        """The archive, with the libraries of all its files."""
        said = subprocess.run(["ldd", *self._objects], capture_output=True, text=True, check=False).stdout
        found = set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", said, re.M))
        libc = next((Path(path) for path in found if "/libc.so." in path), None)
        found |= {str(libc.parent / name) for name in _MORE if libc is not None and (libc.parent / name).exists()}
        for path in sorted(found):
            place = path if path.startswith(("/usr/", sys.base_prefix)) else f"/usr{path}"
            self.file(os.path.realpath(path), place)
        self._tar.close()
        return self.bytes.getvalue()


def python() -> tuple[bytes, list[str]]:
    """The replacement of `python:3.x-slim`: the interpreter of this process with pip, and the settings of the image."""
    image = _Image()
    image.busybox()
    stdlib = Path(sysconfig.get_path("stdlib"))
    # At the paths of this machine, which are compiled into the interpreter.
    image.file(os.path.realpath(sys.executable), os.path.realpath(sys.executable))
    image.tree(stdlib, str(stdlib), _LEFT_OUT)
    for name in ("python", "python3"):
        image._add(f"usr/bin/{name}", tarfile.SYMTYPE, os.path.realpath(sys.executable))
    image.folder(str(stdlib / "site-packages"))
    pip = Path(next(path for path in sys.path if Path(path, "pip").is_dir()), "pip")
    image.tree(pip, "/opt/pip/pip")
    image.text("/usr/bin/pip", b'#!/bin/sh\nPYTHONPATH=/opt/pip exec python3 -m pip "$@"\n', 0o755)
    for zone in ("UTC", "Etc/UTC", "Europe/Berlin"):
        if (source := Path("/usr/share/zoneinfo", zone)).exists():
            image.file(source.resolve(), f"/usr/share/zoneinfo/{zone}")
    path = f"{sys.base_prefix}/bin:/usr/bin:/bin:/usr/local/bin"
    settings = [f"ENV PATH={path}", "ENV LANG=C.UTF-8", f"ENV PIP_FIND_LINKS={WHEELS}", "ENV PIP_NO_INDEX=1"]
    return image.done(), [*settings, "ENV PIP_ROOT_USER_ACTION=ignore", "ENV PIP_DISABLE_PIP_VERSION_CHECK=1"]


def redis(program: str) -> tuple[bytes, list[str]]:
    """The replacement of `redis:8`."""
    image = _Image()
    image.busybox()
    image.file(os.path.realpath(program), "/usr/bin/redis-server")
    cli = shutil.which("redis-cli") or shutil.which("valkey-cli") or ""
    image.file(os.path.realpath(cli), "/usr/bin/redis-cli")
    image.folder("/data", uid=999)
    return image.done(), ["WORKDIR /data", "VOLUME /data", "ENV PATH=/usr/bin"]


def cli() -> tuple[bytes, list[str]]:
    """The replacement of `docker:cli`."""
    image = _Image()
    image.file(os.path.realpath(shutil.which("docker") or ""), "/usr/local/bin/docker")
    home = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    places = [home, *map(Path, ("/usr/local/lib/docker", "/usr/libexec/docker", "/usr/lib/docker"))]
    plugin = next(path for place in places if (path := place / "cli-plugins/docker-compose").exists())
    image.file(plugin.resolve(), "/usr/local/libexec/docker/cli-plugins/docker-compose")
    return image.done(), []


def load(name: str, made: tuple[bytes, list[str]]) -> None:
    """Import an image into the engine."""
    content, settings = made
    changes = [word for line in settings for word in ("--change", line)]
    subprocess.run(["docker", "import", *changes, "-", name], input=content, capture_output=True, check=True)
