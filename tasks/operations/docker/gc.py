"""`docker.gc`: removes keep-tags, renamed containers, saved files and receipts of runs that Redis no longer has.

gc removes only objects that Longshore has created: with names that it reserves, of runs with receipts on this host.
Objects that a run in Redis may need stay, at any age.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.operations.docker.gc import GC, GcParams
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store.run_store import Store
from longshore.tasks.host.backups import folders_of
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Engine, seconds_of
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements
from longshore.tasks.operations.docker.spec import KEEP, KIND, RUN, safe

_PROJECT = "com.docker.compose.project"
#: Separates the original name of a removed container from its step.
_ASIDE = "--longshore-"
_KEPT_TAG = re.compile(rf"^{re.escape(KEEP)}/[^:]+:k-(.+)-[0-9a-f]{{12}}$")
#: Names of the files in which a step has saved a project's configuration.
_OF_STEP = re.compile(r"(.+)\.(before|after\d*)\.(yml|json)$")
#: Characters of a run id that a shortened tag or name keeps unchanged.
_UNSHORTENED = 80


def _text(run_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{run_id}.")[:_UNSHORTENED]


@dataclass
class Garbage:
    """The objects to remove."""

    images: list[str] = field(default_factory=list)
    containers: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    receipts: list[Path] = field(default_factory=list)


class _Runs:
    """The runs that Redis has, and the runs with receipts on this host."""

    def __init__(self, every_run: bool) -> None:
        settings = get_settings()
        self.folder = settings.state_dir / "receipts" / settings.ledger_name
        self.receipts = list(self.folder.iterdir()) if self.folder.is_dir() else []
        runs = {path: path.name.rpartition("~")[0] for path in self.receipts}
        self.ours = set(runs.values())
        self._ours = {safe(f"{run}.{part.stem}") for path, run in runs.items() for part in path.glob("*.json")}
        # Read after the receipts, so that a run that began meanwhile is among the known ones.
        store = Store()
        try:
            self.known = set(store.runs(1_000_000))
        finally:
            store.client.close()
        self._live = {_text(run_id) for run_id in self.known}
        self._every = every_run

    def forgotten(self, text: str) -> bool:
        """Reports whether the step in a tag or a name belongs to a run of this host that Redis no longer has."""
        if any(text.startswith(known) for known in self._live):
            return False
        return self._every or text in self._ours

    def is_forgotten(self, run_id: str) -> bool:
        return run_id not in self.known and (self._every or run_id in self.ours)


@implements(GC)
class Gc(Implementation[GcParams]):
    """Removes the garbage of forgotten runs."""

    def change(self, ctx: Context, params: GcParams, before: dict[str, Any]) -> Change:
        docker, found = engine(), self._find(params)
        what = [*found.images, *(name for _, name in found.containers), *map(str, found.files)]
        what += [f"{len(found.receipts)} receipts"] if found.receipts else []
        yield Prediction(f"would remove {', '.join(what)}" if what else "nothing to remove", changed=bool(what))
        size = 0
        for name in found.images:
            docker.untag(name)
        for container_id, _ in found.containers:
            docker.remove(container_id)
        for path in (*found.files, *found.receipts):
            size += sum(inner.stat().st_size for inner in _files(path))
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return {
            "images": found.images,
            "containers": [name for _, name in found.containers],
            "files": [str(path) for path in found.files],
            "receipts": len(found.receipts),
            "bytes": size,
        }

    def undo(self, ctx: Context, params: GcParams, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        raise OperationError("docker.gc has no undo: the removed objects cannot be restored")

    def _find(self, params: GcParams) -> Garbage:
        limit = get_settings().retention if params.older_than is None else params.older_than
        docker, runs, since = engine(), _Runs(params.every_run), time.time() - limit
        found = Garbage()
        for image in docker.images():
            names = [tag for tag in image.tags if (of := _KEPT_TAG.match(tag)) and runs.forgotten(of[1])]
            if names and _tagged(docker, image.id) <= since:
                found.images += sorted(names)
        found.containers = sorted(_containers(docker, runs, since), key=lambda one: one[1])
        found.files = sorted(_revisions(docker, runs, since))
        for path in runs.receipts:
            run_id = path.name.rpartition("~")[0]
            if run_id not in runs.known and path.stat().st_mtime <= since:
                found.receipts.append(path)
                found.files += folders_of(get_settings().state_dir, run_id)
        return found


def _tagged(docker: Engine, image_id: str) -> float:
    """The time of an image's last tag; infinity if unknown, so that the image stays."""
    tagged_at = docker.tagged_at(image_id)
    return seconds_of(tagged_at) if tagged_at else float("inf")


def _containers(docker: Engine, runs: _Runs, since: float) -> Iterator[tuple[str, str]]:
    """Containers that a step has renamed, and one-off containers that their step has not removed."""
    for row in docker.rows({"status": ["exited", "created", "dead"]}, all_of_them=True):
        name = str(row["Names"][0]).removeprefix("/") if row.get("Names") else ""
        labels = row.get("Labels") or {}
        aside = name.partition(_ASIDE)[2]
        one_off = labels.get(KIND) == "run" and runs.is_forgotten(str(labels.get(RUN, "")))
        if not one_off and not (aside and runs.forgotten(aside)):
            continue
        known = docker.inspect(row["Id"])
        ended = known.finished_at if known is not None else None
        if known is not None and (seconds_of(ended) if ended else float(row["Created"])) <= since:
            yield row["Id"], name


def _revisions(docker: Engine, runs: _Runs, since: float) -> Iterator[Path]:
    """Configurations that forgotten steps have saved, and whole folders of projects without containers."""
    root = get_settings().state_dir / "revisions"
    rows = docker.rows({"label": [_PROJECT]}, all_of_them=True)
    there = {(row.get("Labels") or {}).get(_PROJECT) for row in rows}
    # The labels of containers that an undo has created lead to the project's own files through these.
    named = {name for row in rows for name in (row.get("Labels") or {}).get(f"{_PROJECT}.config_files", "").split(",")}
    used = {Path(name).with_suffix("") for name in named if name}
    for project in root.iterdir() if root.is_dir() else ():
        files = list(_files(project))
        if project.name not in there and files and all(path.stat().st_mtime <= since for path in files):
            steps = [found[1] for path in files if (found := _OF_STEP.match(path.name))]
            if all(runs.forgotten(name) for name in steps):
                yield project
                continue
        for path in files:
            of_step = _OF_STEP.match(path.name)
            if path.with_suffix("") in used:
                continue
            if of_step and runs.forgotten(of_step[1]) and path.stat().st_mtime <= since:
                yield path


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    with contextlib.suppress(OSError):
        return [inner for inner in path.rglob("*") if inner.is_file()]
    return []
