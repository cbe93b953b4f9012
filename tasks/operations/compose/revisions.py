"""Revisions: the resolved files and the images of a project, stored on its host."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.language import identifiers
from longshore.orchestration.settings import get_settings
from longshore.tasks.host.backups import write_private
from longshore.tasks.host.engine.port import Container, Engine, NotThere
from longshore.tasks.implementation import Context
from longshore.tasks.operations.compose.cli import PROJECT, Compose, Resolved, Source
from longshore.tasks.operations.compose.state import Member
from longshore.tasks.operations.docker.spec import KEEP, safe


def folder(project: str) -> Path:
    return get_settings().state_dir / "revisions" / identifiers.project(project)


def path_of(ctx: Context, project: str, when: str) -> Path:
    """The file of a step. `when`: before or after; each attempt has its own `after`, since files may change between."""
    attempt = str(ctx.attempt) if when == "after" else ""
    return folder(project) / f"{safe(ctx.op_id)}.{when}{attempt}.yml"


def targets(ctx: Context, project: str) -> list[Resolved]:
    """The target configurations of this step's attempts; empty if no attempt has changed anything."""
    kept = sorted(folder(project).glob(f"{glob.escape(safe(ctx.op_id))}.after*.yml"))
    return [resolved for path in kept if (resolved := load(path)) is not None]


def save(ctx: Context, when: str, resolved: Resolved) -> Path:
    """Store the resolved file and its sources, with mode 0600, since it may contain secrets."""
    path = path_of(ctx, resolved.project, when)
    _write(path, resolved)
    return path


def _write(path: Path, resolved: Resolved) -> None:
    about: dict[str, Any] = {"hashes": resolved.hashes, "source": asdict(resolved.source), "project": resolved.project}
    about |= {"containers": list(resolved.containers)} if resolved.containers else {}
    # Readers look for the configuration, which is written last.
    write_private(path.with_suffix(".json"), json.dumps(about).encode())
    write_private(path, resolved.text.encode())


def load(path: Path) -> Resolved | None:
    try:
        text = path.read_text()
        about = json.loads(path.with_suffix(".json").read_text())
        lists = {name: tuple(about["source"][name]) for name in ("files", "env_files", "profiles")}
        source = Source(about["source"]["project"], about["source"]["directory"], **lists)
        described = tuple(about.get("containers", ()))
        services = json.loads(text)["services"]
        return Resolved(about["project"], text, services, about["hashes"], source, containers=described)
    except (OSError, ValueError, KeyError, TypeError):
        return None


#: The number of revisions that are kept per project; and of these, the latest ones that are kept at any age.
RETAINED, _ALWAYS = 5, 2
#: The number of latest steps per project whose files and image names are kept for an undo.
_STEPS = 10
#: Names of the files in which a step has stored a configuration.
_OF_STEP = re.compile(r"(.+)\.(?:before|after\d*)\.yml$")


@dataclass(frozen=True)
class Revision:
    """The resolved file and the running images after a successful `up`."""

    number: int
    at: float
    run: str
    #: Per service `image`, `image_id`, `hash` and `count`.
    services: dict[str, dict[str, Any]]

    @property
    def images(self) -> dict[str, tuple[str, str]]:
        return {name: (service["image_id"], service["hash"]) for name, service in self.services.items()}

    def path(self, project: str) -> Path:
        return folder(project) / f"r{self.number}.yml"

    @property
    def counts(self) -> dict[str, int]:
        """The number of containers of each service, which may differ from the file."""
        return {name: int(service["count"]) for name, service in self.services.items()}


def images_of(found: Iterable[Member]) -> dict[str, tuple[str, str]]:
    return {member.service: (member.image_id, member.hash) for member in found}


def history(project: str) -> list[Revision]:
    """The stored revisions, the latest last."""
    try:
        listed = json.loads((folder(project) / "history.json").read_text())
        return [Revision(**one) for one in listed]
    except (OSError, ValueError, TypeError):
        return []


def running(project: str, found: Iterable[Member]) -> Revision | None:
    """The latest revision with the images, configurations and counts of these containers."""
    services = services_of(found)
    return next((one for one in reversed(history(project)) if _alike(one.services, services)), None)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    compared = ("image_id", "hash", "count")
    return one.keys() == other.keys() and all(one[s][key] == other[s][key] for s in one for key in compared)


def services_of(found: Iterable[Member]) -> dict[str, dict[str, Any]]:
    """Per service its image, configuration hash and number of containers."""
    services: dict[str, dict[str, Any]] = {}
    for member in found:
        service = {"image": member.image, "image_id": member.image_id, "hash": member.hash, "count": 0}
        services.setdefault(member.service, service)["count"] += 1
    return services


def note(ctx: Context, docker: Engine, configuration: Resolved, found: Iterable[Member]) -> Revision | None:
    """Store the running state as a revision unless the latest one equals it, and delete the oldest. The caller holds
    the project's lock. Returns the revision of the running state.
    """
    project, kept = configuration.project, history(configuration.project)
    services = services_of(member for member in found if member.hash == configuration.hashes.get(member.service))
    if not services:
        return None
    if kept and _alike(kept[-1].services, services):
        return kept[-1]
    revision = Revision(kept[-1].number + 1 if kept else 1, round(time.time(), 3), ctx.run_id, services)
    for image_id in {service["image_id"] for service in services.values()}:
        docker.tag(image_id, _revision_tag(project, revision.number, image_id))
    _write(revision.path(project), configuration)
    kept = [*kept, revision]
    since = time.time() - get_settings().retention
    stay = [one for one in kept[-RETAINED:] if one in kept[-_ALWAYS:] or one.at >= since]
    write_private(folder(project) / "history.json", json.dumps([asdict(one) for one in stay]).encode())
    used = files_in_use(docker, project)
    for old in kept:
        if old in stay:
            continue
        for image_id in {service["image_id"] for service in old.services.values()}:
            docker.untag(_revision_tag(project, old.number, image_id))
        if old.path(project) not in used:
            _unlink(old.path(project))
    return revision


def files_in_use(docker: Engine, project: str) -> set[Path]:
    """The stored files that labels of the project's containers name: the way to the project's own files."""
    rows = docker.rows({"label": [f"{PROJECT}={project}"]}, all_of_them=True)
    return {Path(name) for row in rows for name in row["Labels"].get(f"{PROJECT}.config_files", "").split(",")}


def _unlink(path: Path) -> None:
    for suffix in (".yml", ".json"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def tidy(docker: Engine, project: str) -> None:
    """Delete the files and image names of the oldest steps, whose undo would find the project changed since."""
    since = time.time() - get_settings().retention
    by_step: dict[str, list[Path]] = {}
    for path in folder(project).glob("*.yml"):
        if found := _OF_STEP.match(path.name):
            by_step.setdefault(found[1], []).append(path)
    newest = sorted(by_step, key=lambda step: max(map(_written, by_step[step])), reverse=True)
    used = files_in_use(docker, project)
    old = [step for n, step in enumerate(newest) if n >= _STEPS or max(map(_written, by_step[step])) < since]
    for step in old:
        for path in by_step[step]:
            if path not in used:
                _unlink(path)
    prefixes = tuple(f"{_repository(project)}:k-{step}-" for step in old)
    if prefixes:
        for image in docker.images():
            for tag in image.tags:
                if tag.startswith(prefixes):
                    docker.untag(tag)


def as_they_run(ctx: Context, target: Resolved, now: Iterable[Member]) -> Resolved | None:
    """The configuration with each service as it runs: an `up` of other services leaves older ones unchanged. None if
    this host does not have the configuration of one of them.
    """
    config, hashes = json.loads(target.text), dict(target.hashes)
    older = {member.service: member.hash for member in now if target.hashes.get(member.service) != member.hash}
    if not older:
        return target
    known = [load(path_of(ctx, target.project, "before"))]
    known += [load(revision.path(target.project)) for revision in reversed(history(target.project))]
    for name, digest in older.items():
        stored = (one for one in known if one is not None and not one.containers)
        found = next((one for one in stored if one.hashes.get(name) == digest), None)
        if found is None:
            return None
        other = json.loads(found.text)
        config["services"][name] = other["services"][name]
        for part in ("networks", "volumes", "configs", "secrets"):
            config[part] = (other.get(part) or {}) | (config.get(part) or {})
        hashes[name] = digest
    return replace(target, text=json.dumps(config), services=config["services"], hashes=hashes)


#: The number of observed configurations that are kept per project.
_OBSERVED = 3


def keep_seen(target: Resolved) -> None:
    """Store an observed running configuration, so that `former` can find it after a change of its files."""
    digest = hashlib.sha256("".join(sorted(target.hashes.values())).encode()).hexdigest()[:12]
    path = folder(target.project) / f"seen-{digest}.yml"
    if path.exists():
        path.touch()
    else:
        _write(path, target)
    kept = sorted(folder(target.project).glob("seen-*.yml"), key=_written)
    for old in kept[:-_OBSERVED]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)


def _written(path: Path) -> float:
    """The modification time; 0 if another process has deleted the file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _revision_tag(project: str, number: int, image_id: str) -> str:
    return f"{_repository(project)}:r{number}-{image_id.removeprefix('sha256:')[:12]}"


def recorded_source(project: str, found: Iterable[Container]) -> Source | None:
    """The files in the labels of the newest container; for a revision's file, the files of that revision."""
    for container in sorted(found, key=lambda one: one.started_at or "", reverse=True):
        labels = container.labels
        files = [name for name in labels.get(f"{PROJECT}.config_files", "").split(",") if name not in {"", "-"}]
        if not files:
            continue
        first = Path(files[0])
        if first.parent == folder(project):
            stored = [load(first), *(load(one.path(project)) for one in reversed(history(project)))]
            sources = [one.source for one in stored if one is not None and not one.source.is_kept()]
            if not sources:
                continue
            # The source of a plan that names a folder has no project; the containers belong to this one.
            return replace(sources[0], project=project)
        env_files = [name for name in labels.get(f"{PROJECT}.environment_file", "").split(",") if name]
        directory = labels.get(f"{PROJECT}.working_dir")
        return Source(project, directory, tuple(files), tuple(env_files))
    return None


def former(
    ctx: Context, compose: Compose, project: str, found: list[Member], source: Source, *likely: Resolved | None
) -> Resolved | None:
    """The configuration that the containers were created from, if this host still has it.

    The hashes in the containers' labels must match. The files may have changed since, so that every stored revision is
    a candidate as well.
    """
    wanted = {member.service: member.hash for member in found}
    if not wanted or any(wanted[member.service] != member.hash for member in found):
        return None

    def fits(resolved: Resolved | None) -> bool:
        # The engine describes containers without files anew: see `way_back`.
        if resolved is None or resolved.containers:
            return False
        return all(resolved.hashes.get(name) == digest for name, digest in wanted.items())

    for resolved in likely:
        if fits(resolved):
            return resolved
    kept = sorted(folder(project).glob("*.yml"), key=_written, reverse=True)
    for path in kept:
        resolved = load(path)
        if fits(resolved):
            return resolved
    if not source.files:
        return None
    try:
        resolved = compose.resolve(replace(source, profiles=("*",)))
    except OperationError as error:
        ctx.log(f"the files of project {project} are unreadable: {error}")
        return None
    return resolved if fits(resolved) else None


def _repository(project: str) -> str:
    """A repository name from a project's name, which may contain sequences that repositories forbid."""
    clean = re.sub(r"[_-]{2,}|_-|-_", "-", project).strip("_-")
    other = "" if clean == project else f"-{hashlib.sha256(project.encode()).hexdigest()[:8]}"
    return f"{KEEP}/{clean}{other}"


def keep_tag(ctx: Context, project: str, image_id: str) -> str:
    digest = image_id.removeprefix("sha256:")[:12]
    return f"{_repository(project)}:k-{safe(ctx.op_id)}-{digest}"


def release_images(ctx: Context, docker: Engine, project: str, image_ids: Iterable[str]) -> None:
    for image_id in set(image_ids):
        docker.untag(keep_tag(ctx, project, image_id))


def keep_images(ctx: Context, docker: Engine, project: str, image_ids: Iterable[str]) -> None:
    """Tag the images, so that no prune deletes them while the undo may need them."""
    for image_id in sorted(set(image_ids)):
        try:
            docker.tag(image_id, keep_tag(ctx, project, image_id))
        except NotThere:
            ctx.log(f"image {image_id} was removed before this step: an undo cannot create its containers again")
