"""The files that a project's configuration depends on: while none changes, the resolved configuration stays valid."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from longshore.tasks.host import paths
from longshore.tasks.operations.compose.cli import Source

#: Larger files are identified by size and time.
_LARGE = 16 * 1024 * 1024
_DEEPEST = 20
#: The files that Compose reads if none is named: the first that exists, and the first override that exists.
_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)


def digest_of_file(path: str) -> str:
    """The digest of a file; '' if it is missing, unreadable, or one of the worker's own."""
    if paths.is_own(os.path.realpath(path)):
        return ""
    try:
        about = os.stat(path)
        if about.st_size > _LARGE:
            return f"{about.st_size} bytes of {about.st_mtime_ns}"
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    except OSError:
        return ""


def inputs_of(source: Source) -> tuple[set[str], bool]:
    """The paths of all files that Compose reads, including missing ones; and whether the list is complete.

    The list is incomplete if a path contains a variable or refers to a remote file, or if Compose finds its files
    outside of the project's folder.
    """
    reading = _Reading()
    directory = source.directory or "/"
    if source.env_files:
        reading.paths |= set(source.env_files)
    else:
        reading.paths.add(os.path.join(directory, ".env"))
    if not source.files:
        reading.read_default(directory)
    for file in source.files:
        reading.read(file, directory, 0)
    return reading.paths, reading.known


class _Reading:
    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.known = True
        self._read: set[tuple[str, str]] = set()

    def read_default(self, directory: str) -> None:
        """Read the files of a folder that Compose reads if none is named."""
        if not self._read_first(_NAMES, directory) or any(map(_names_files, self.paths)):
            self.known = False
        self._read_first(_OVERRIDES, directory)

    def _read_first(self, names: tuple[str, ...], directory: str) -> bool:
        for file in (os.path.join(directory, name) for name in names):
            self.paths.add(file)  # a file that is created later takes precedence
            if os.path.isfile(file):
                self.read(file, directory, 0)
                return True
        return False

    def read(self, file: str, directory: str, depth: int) -> None:
        self.paths.add(file)
        if (file, directory) in self._read or depth > _DEEPEST:
            return
        self._read.add((file, directory))
        try:
            documents = list(yaml.load_all(Path(file).read_text(), Loader=_Loader))
        except OSError:
            return  # Compose reports the error
        except (ValueError, yaml.YAMLError, RecursionError):
            self.known = False
            return
        for document in documents:
            if isinstance(document, dict):
                self._document(document, file, directory, depth)

    def _document(self, document: dict[Any, Any], file: str, directory: str, depth: int) -> None:
        # A path is relative to the project's folder or to the file's own; the wrong candidate does not exist.
        folders = list(dict.fromkeys([directory, os.path.dirname(file)]))
        for one in _entries(document.get("include")):
            self._include(one, folders, depth)
        services = document.get("services")
        for service in services.values() if isinstance(services, dict) else ():
            if isinstance(service, dict):
                self._service(service, folders, depth)

    def _include(self, entry: Any, folders: list[str], depth: int) -> None:
        one = entry if isinstance(entry, dict) else {"path": entry}
        for path in _texts(one.get("path")):
            for file in self._at(path, folders):
                own = one.get("project_directory")
                directories = list(self._at(own, folders)) if own else [os.path.dirname(file)]
                for directory in directories:
                    if not one.get("env_file"):
                        self.paths.add(os.path.join(directory, ".env"))
                    self.read(file, directory, depth + 1)
        for path in _texts(one.get("env_file")):
            self.paths |= set(self._at(path, folders))

    def _service(self, service: dict[Any, Any], folders: list[str], depth: int) -> None:
        extends = service.get("extends")
        if isinstance(extends, dict) and extends.get("file"):
            for file in self._at(str(extends["file"]), folders):
                self.read(file, os.path.dirname(file), depth + 1)
        for key in ("env_file", "label_file"):
            for path in _texts(service.get(key)):
                self.paths |= set(self._at(path, folders))

    def _at(self, path: Any, folders: list[str]) -> Iterator[str]:
        text = str(path)
        if "$" in text or "://" in text or text.startswith(("git@", "oci:")):
            self.known = False
            return
        for folder in folders:
            yield os.path.normpath(os.path.join(folder, os.path.expanduser(text)))


def _names_files(env_file: str) -> bool:
    """Reports whether a file of variables names other Compose files."""
    try:
        return "COMPOSE_FILE" in Path(env_file).read_text()
    except (OSError, ValueError):
        return False


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _texts(value: Any) -> list[str]:
    """Paths in any form: a string, a list, or objects with a `path`."""
    found = []
    for one in _entries(value):
        path = one.get("path") if isinstance(one, dict) else one
        if isinstance(path, str):
            found.append(path)
    return found


class _Loader(yaml.SafeLoader):
    """Ignores Compose's tags (`!reset`, `!override`) and loads the tagged value."""


def _tagged_value(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


_Loader.add_multi_constructor("!", _tagged_value)
