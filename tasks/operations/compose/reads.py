"""The files that a project's files have Compose read on this host: asked for before Compose reads any of them.

Their bytes end up in the environment of containers, or in an error, and whoever wrote the project gets them there.
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

#: In this order Compose looks for them where none is named; with one of them, its override.
_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_OVERRIDES = tuple(name.replace(".y", ".override.y") for name in _NAMES)
_LARGEST = 1024 * 1024


class _Loader(yaml.SafeLoader):
    """Takes every scalar for text, merges as Compose does, and passes Compose's own tags (!reset, !override)."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile(r"<<\Z"))]}


def _plain(loader: _Loader, _tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Loader.add_multi_constructor("!", _plain)


def _require(path: str) -> str:
    """The real path of a file that this worker may read, and that a container may be given."""
    real = paths.require(path)
    if os.path.lexists(path):
        policy.check_read(path)
    return real


def check(directory: str | None, files: Sequence[str], env_files: Sequence[str]) -> None:
    """NotAllowed where one of them lies outside of the worker's folders, or where cannot be told."""
    base = directory or (os.path.dirname(files[0]) if files else "/")
    found = [os.path.join(base, name) for name in (*_NAMES, *_OVERRIDES)]
    for path in (*env_files, os.path.join(base, ".env")):
        if os.path.lexists(path):
            _require(path)
    seen: set[tuple[str, str]] = set()
    for path in files or [path for path in found if os.path.lexists(path)]:
        _file(path, base, seen)


def _file(path: str, base: str, seen: set[tuple[str, str]]) -> None:
    """One file of a project; what is relative in it is so to `base`."""
    real, base = _require(path), os.path.realpath(base)
    if (real, base) in seen:
        return
    seen.add((real, base))
    try:
        data = paths.read(real, _LARGEST)
        if len(data) > _LARGEST:
            raise Preflight(f"{path} has more than {_LARGEST} bytes")
        documents = list(yaml.load_all(data, _Loader))
    except FileNotFoundError:
        return  # Compose says so
    except OSError as error:
        raise Preflight(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = type(error).__name__  # its text has pieces of the file
        raise Preflight(f"{path} cannot be read as a Compose file: {what}", remedy="docker compose config") from error
    for said in documents:
        if isinstance(said, Mapping):
            _project(said, base, seen)


def _project(said: Mapping[Any, Any], base: str, seen: set[tuple[str, str]]) -> None:
    services = said.get("services")
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
    for part in _listed(said.get("include")):
        of = part if isinstance(part, Mapping) else {"path": part}
        files = [_absolute(name, base) for name in _names(of.get("path"))]
        inner = of.get("project_directory")
        within = _absolute(str(inner), base) if inner else os.path.dirname(files[0]) if files else base
        for name in _names(of.get("env_file")):
            _require(_absolute(name, base))
        if os.path.lexists(env := os.path.join(within, ".env")):
            _require(env)
        for path in files:
            _file(path, within, seen)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _names(value: Any) -> Iterator[str]:
    """Paths, by themselves or as an object with a `path`."""
    for part in _listed(value):
        name = part.get("path") if isinstance(part, Mapping) else part
        if name:
            yield str(name)


def _absolute(name: str, base: str) -> str:
    # A variable may hold any path, also one of the host's own files.
    if "$" in name and not (get_settings().allow_privileged and paths.allowed_roots() == ["/"]):
        raise NotAllowed(
            f"the path {name!r} depends on a variable, so that it cannot be checked before Compose reads the file",
            remedy="write the path without a variable",
        )
    if "://" in name or name.startswith("git@"):
        raise NotAllowed(f"{name!r} is no file of this host", remedy="keep a copy beside the project's files")
    if name.startswith("~"):
        _require(os.path.join(base, name))  # where Compose takes it for the name of a folder
    return os.path.join(base, os.path.expanduser(name))
