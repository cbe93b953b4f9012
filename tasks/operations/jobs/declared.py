"""Job labels that Compose files declare for volumes, and that the engine's volumes of these names do not have.

The engine labels a volume when it creates it, and never again: such a label has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.jobs.labels import PREFIX, PROJECT
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.operations.compose import reads, revisions

#: The job labels that the files declare and the engine's volume does not have; and all labels that it has.
Lacking = tuple[dict[str, str], dict[str, str]]


def ineffective(docker: Engine, rows: Sequence[Mapping[str, Any]], projects: Iterable[str]) -> dict[str, Lacking]:
    """The volumes of these projects, by name, that lack labels of their files. `rows`: of all containers."""
    found = {}
    for project in projects:
        try:
            source = revisions.recorded_source(project, _containers(rows, project))
            documents = [] if source is None else list(reads.documents(source.directory, source.files))
        except OperationError:
            continue  # the files are not readable here: their labels cannot be compared
        for document in documents:
            for name, labels in _volumes(document, project):
                volume = docker.volume(name)
                own = dict((volume or {}).get("Labels") or {})
                lacking = {key: value for key, value in labels.items() if own.get(key) != value}
                if volume is not None and lacking:
                    found[name] = (lacking, own)
    return found


def _containers(rows: Iterable[Mapping[str, Any]], project: str) -> list[Container]:
    mine = (row for row in rows if row["Labels"].get(PROJECT) == project)
    return [
        Container(row["Id"], "", "", "", labels=dict(row["Labels"]), started_at=f"{int(row['Created']):020}")
        for row in mine
    ]


def _volumes(document: Mapping[Any, Any], project: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The engine's names of a file's volumes, with their job labels. Names with variables are left out."""
    volumes = document.get("volumes")
    for key, described in volumes.items() if isinstance(volumes, Mapping) else ():
        if not isinstance(described, Mapping):
            continue
        name = str(described.get("name") or (key if described.get("external") else f"{project}_{key}"))
        labels = _labels(described.get("labels"))
        if labels and "$" not in name:
            yield name, labels


def _labels(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else (str(one).partition("=")[::2] for one in value or ())
    found = {str(key): str(text) for key, text in pairs}
    return {key: text for key, text in found.items() if key.startswith(PREFIX) and "$" not in text}
