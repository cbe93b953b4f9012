"""The check of all files that Compose would read for a project, before Compose reads any of them.

The bytes of these files end up in the environment of containers or in error messages, where the project's author could
read them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from longshore.orchestration.errors import NotAllowed, Preflight
from longshore.orchestration.settings import get_settings
from longshore.tasks.host import paths, policy

#: Compose's default file names, in the order of its search; each may have an override file.
_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES = tuple(name.replace(".y", ".override.y") for name in _NAMES)
_LARGEST = 1024 * 1024


class _Loader(yaml.SafeLoader):
    """Loads every scalar as text, merges like Compose, and ignores Compose's tags (!reset, !override)."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile(r"<<\Z"))]}


def _plain(loader: _Loader, _tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Loader.add_multi_constructor("!", _plain)


def _require(path: str) -> str:
    """The resolved path of a file that this worker may read and a container may mount."""
    real = paths.require(path)
    if os.path.lexists(path):
        policy.check_read(path)
    return real


def check(directory: str | None, files: Sequence[str], env_files: Sequence[str]) -> None:
    """Raise NotAllowed for a file outside of the worker's folders, or a path that cannot be resolved beforehand."""
    base = directory or (os.path.dirname(files[0]) if files else "/")
    for path in (*env_files, os.path.join(base, ".env")):
        if os.path.lexists(path):
            _require(path)
    for document, its_base, seen in _documents(base, files):
        _project(document, its_base, seen)


def documents(directory: str | None, files: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    """The documents of a project's own files, without those that they include. Raises as `check`."""
    base = directory or (os.path.dirname(files[0]) if files else "/")
    return (document for document, _, _ in _documents(base, files))


def _documents(base: str, files: Sequence[str]) -> Iterator[tuple[Mapping[Any, Any], str, set[tuple[str, str]]]]:
    found = [os.path.join(base, name) for name in (*_NAMES, *_OVERRIDES)]
    seen: set[tuple[str, str]] = set()
    for path in files or [path for path in found if os.path.lexists(path)]:
        for document in _read(path, base, seen):
            yield document, os.path.realpath(base), seen


def _file(path: str, base: str, seen: set[tuple[str, str]]) -> None:
    """Check one file of a project, with its relative paths resolved from `base`."""
    for document in _read(path, base, seen):
        _project(document, os.path.realpath(base), seen)


def _read(path: str, base: str, seen: set[tuple[str, str]]) -> list[Mapping[Any, Any]]:
    """The documents of one file, unless it was read before."""
    real, base = _require(path), os.path.realpath(base)
    if (real, base) in seen:
        return []
    seen.add((real, base))
    try:
        data = paths.read(real, _LARGEST)
        if len(data) > _LARGEST:
            raise Preflight(f"{path} has more than {_LARGEST} bytes", remedy="split the file")
        documents = list(yaml.load_all(data, _Loader))
    except FileNotFoundError:
        return []  # Compose reports the error
    except OSError as error:
        raise Preflight(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = type(error).__name__  # the error's text may quote the file
        remedy = "correct the file; docker compose config shows the error"
        raise Preflight(f"{path} is not a valid Compose file: {what}", remedy=remedy) from error
    return [document for document in documents if isinstance(document, Mapping)]


def _project(document: Mapping[Any, Any], base: str, seen: set[tuple[str, str]]) -> None:
    services = document.get("services")
    for service in services.values() if isinstance(services, Mapping) else ():
        if not isinstance(service, Mapping):
            continue
        for word in ("env_file", "label_file"):
            for name in _names(service.get(word)):
                _require(_absolute(name, base))
        other = service.get("extends")
        if isinstance(other, Mapping) and other.get("file"):
            path = _absolute(str(other["file"]), base)
            _file(path, os.path.dirname(path), seen)
    for part in _listed(document.get("include")):
        include = part if isinstance(part, Mapping) else {"path": part}
        files = [_absolute(name, base) for name in _names(include.get("path"))]
        inner = include.get("project_directory")
        within = _absolute(str(inner), base) if inner else os.path.dirname(files[0]) if files else base
        for name in _names(include.get("env_file")):
            _require(_absolute(name, base))
        if os.path.lexists(env := os.path.join(within, ".env")):
            _require(env)
        for path in files:
            _file(path, within, seen)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _names(value: Any) -> Iterator[str]:
    """Paths, as strings or as objects with a `path`."""
    for part in _listed(value):
        name = part.get("path") if isinstance(part, Mapping) else part
        if name:
            yield str(name)


def _absolute(name: str, base: str) -> str:
    # A variable may contain any path, such as a system file of the host.
    if "$" in name and not (get_settings().allow_privileged and paths.allowed_roots() == ["/"]):
        raise NotAllowed(
            f"the path {name!r} depends on a variable, so that it cannot be checked before Compose reads the file",
            remedy="write the path without a variable",
        )
    if "://" in name or name.startswith("git@"):
        raise NotAllowed(f"{name!r} is not a file of this host", remedy="put a copy beside the project's files")
    if name.startswith("~"):
        _require(os.path.join(base, name))  # Compose may read `~` as the name of a folder
    return os.path.join(base, os.path.expanduser(name))
