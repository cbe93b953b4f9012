"""Revisions: the resolved files of a project, kept on its host, and the way back to one of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import OperationError
from longshore.orchestration.settings import get_settings
from longshore.tasks.compose_cli import PROJECT, Compose, Resolved, Source
from longshore.tasks.compose_state import Gate, Member, fingerprint, members, start_in_order, stop_in_order
from longshore.tasks.container_spec import safe
from longshore.tasks.engine import Container, Engine, NotThere
from longshore.tasks.operation import Context

KEEP = "longshore-keep"
_WELL = 60.0


def folder(project: str) -> Path:
    return get_settings().state_dir / "revisions" / project


def path_of(ctx: Context, project: str, when: str) -> Path:
    """`when` is before or after."""
    return folder(project) / f"{safe(ctx.op_id)}.{when}.yml"


def save(ctx: Context, when: str, resolved: Resolved) -> Path:
    """Keep the resolved file, 0600 for it may hold secrets, and beside it what it was made from."""
    path = path_of(ctx, resolved.project, when)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = {"hashes": resolved.hashes, "source": asdict(resolved.source), "project": resolved.project}
    # The file that is looked for comes last.
    for target, text in ((path.with_suffix(".json"), json.dumps(about)), (path, resolved.text)):
        temporary = target.with_name(target.name + ".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    return path


def load(path: Path) -> Resolved | None:
    try:
        text = path.read_text()
        about = json.loads(path.with_suffix(".json").read_text())
        lists = {name: tuple(about["source"][name]) for name in ("files", "env_files", "profiles")}
        source = Source(about["source"]["project"], about["source"]["directory"], **lists)
        return Resolved(about["project"], text, json.loads(text)["services"], about["hashes"], source)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_source(project: str, found: Iterable[Container]) -> Source | None:
    """The files that the newest container says it was made from; those of a revision lead to its own."""
    for container in sorted(found, key=lambda one: one.started_at or "", reverse=True):
        labels = container.labels
        files = [name for name in labels.get(f"{PROJECT}.config_files", "").split(",") if name not in {"", "-"}]
        if not files:
            continue
        first = Path(files[0])
        if first.parent == folder(project):
            revision = load(first)
            if revision is None:
                continue
            return revision.source
        env_files = [name for name in labels.get(f"{PROJECT}.environment_file", "").split(",") if name]
        directory = labels.get(f"{PROJECT}.working_dir")
        return Source(project, directory, tuple(files), tuple(env_files))
    return None


def former(
    ctx: Context, compose: Compose, found: list[Member], source: Source, *likely: Resolved | None
) -> Resolved | None:
    """The configuration that the containers were made from, if it is still to be had anywhere.

    The hashes on the containers prove it. Files that were changed since are of no use, so each
    revision that was kept is tried as well.
    """
    wanted = {member.service: member.hash for member in found}
    if not wanted or any(wanted[member.service] != member.hash for member in found):
        return None

    def fits(resolved: Resolved | None) -> bool:
        return resolved is not None and all(resolved.hashes.get(name) == digest for name, digest in wanted.items())

    for resolved in likely:
        if fits(resolved):
            return resolved
    project = source.project or ""
    kept = sorted(folder(project).glob("*.yml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept:
        resolved = load(path)
        if fits(resolved):
            return resolved
    if not source.files:
        return None
    try:
        resolved = compose.resolve(replace(source, profiles=("*",)))
    except OperationError as error:
        ctx.log(f"the files of {project} cannot be read any more: {error}")
        return None
    return resolved if fits(resolved) else None


def keep_tag(ctx: Context, project: str, image_id: str) -> str:
    digest = image_id.removeprefix("sha256:")[:12]
    return f"{KEEP}/{project.strip('_-')}:{safe(ctx.op_id)}-{digest}"


def keep_images(ctx: Context, docker: Engine, project: str, image_ids: Iterable[str]) -> None:
    """Give the images a name, so that no prune takes them while the undo may need them."""
    for image_id in sorted(set(image_ids)):
        try:
            docker.tag(image_id, keep_tag(ctx, project, image_id))
        except NotThere:
            ctx.log(f"image {image_id} is gone already, only its containers are left: they cannot be made again")


def restore(
    ctx: Context, docker: Engine, before: dict[str, Any], *, known: Resolved | None, pulled: bool = False
) -> bool:
    """Make the project what it was: configuration, images, and what runs. Whether there was anything to do.

    `known` is what the step was to bring about; containers that are neither that nor what was are
    somebody else's work, and not touched.
    """
    project, scope = before["project"], set(before["services"])
    was = [Member(**said) for said in before["containers"]]

    def now() -> list[Member]:
        return [member for member in members(docker, project) if member.service in scope]

    _refuse_foreign(project, was, now(), known)
    done = fingerprint(was) != fingerprint(now())
    if done:
        _remove_rests(docker, was, now())
        lost = _lost(was, now())
        if lost:
            _recreate(ctx, docker, path_of(ctx, project, "before"), [m for m in was if m.service in lost])
        _stop_and_remove(docker, was, now())
        _start_what_ran(ctx, docker, project, was, now())
    done |= _remove_networks(docker, project, before["networks"])
    _give_names_back(docker, before["refs"], was, pulled=pulled)
    left = {entry[0] for entry in set(fingerprint(now())) ^ set(fingerprint(was))}
    if left:
        raise OperationError(f"project {project} is not as it was: {', '.join(sorted(left))}")
    for image_id in {member.image_id for member in was} | set(filter(None, before["refs"].values())):
        docker.untag(keep_tag(ctx, project, image_id))
    return done


def _refuse_foreign(project: str, was: list[Member], now: list[Member], known: Resolved | None) -> None:
    for member in now:
        ours = {one.hash for one in was if one.service == member.service}
        if known is not None:
            ours.add(known.hashes.get(member.service, ""))
        if member.hash not in ours:
            what = f"service {member.service} of project {project} was changed by somebody else since"
            raise OperationError(what, remedy="look at it, then: longshore runs resolve")


def _remove_rests(docker: Engine, was: list[Member], now: list[Member]) -> None:
    """What a killed Compose had made and not started yet, beside the one that it was to replace."""
    old = {(member.key, member.hash, member.image_id) for member in was}
    for member in now:
        if member.status == "created" and (member.key, member.hash, member.image_id) not in old:
            docker.remove(member.id)


def _lost(was: list[Member], now: list[Member]) -> set[str]:
    """Services that lack a container, or have another one in its place."""
    made = {(member.key, member.hash, member.image_id) for member in now}
    places = [member.key for member in now]
    return {
        member.service
        for member in was
        if (member.key, member.hash, member.image_id) not in made or places.count(member.key) > 1
    }


def _recreate(ctx: Context, docker: Engine, path: Path, was: list[Member]) -> None:
    """Containers out of the former file and the former images; none is started."""
    revision = load(path)
    if revision is None:
        what = f"the configuration that {was[0].name} was made from is not known"
        raise OperationError(what, remedy="bring it up from its former files, then: longshore runs resolve")
    for member in was:
        if member.image.startswith("sha256:") or docker.image_id(member.image) == member.image_id:
            continue
        try:
            docker.tag(member.image_id, member.image)
        except NotThere as error:
            raise OperationError(f"image {member.image_id} of {member.name} is gone") from error
    counts: dict[str, int] = {}
    for member in was:
        counts[member.service] = counts.get(member.service, 0) + 1
    scale = {name: count for name, count in counts.items() if count != revision.replicas(name)}
    source = Source(revision.project, revision.source.directory, (str(path),), (), ("*",))
    Compose(ctx, docker).create(source, sorted(counts), scale)


def _stop_and_remove(docker: Engine, was: list[Member], now: list[Member]) -> None:
    """Stop what did not run, remove what was not there."""
    ran, there = {member.key for member in was if member.running}, {member.key for member in was}
    stop_in_order(member for member in now if member.running and member.key not in ran)
    for member in now:
        if member.key not in there:
            docker.remove(member.id)


def _start_what_ran(ctx: Context, docker: Engine, project: str, was: list[Member], now: list[Member]) -> None:
    ran = {member.key: member for member in was if member.running}
    gate = Gate(ctx, docker, project, deadline=_WELL, settle=0.0)
    start_in_order(gate, [member for member in now if member.key in ran], now)
    gate.wait({member.service for member in ran.values() if member.health == "healthy"})
    for member in now:
        if member.key in ran and ran[member.key].paused and not member.paused:
            docker.pause(member.id)


def _remove_networks(docker: Engine, project: str, kept: list[str]) -> bool:
    removed = False
    for network, name in docker.networks({PROJECT: project}).items():
        if name not in kept:
            with contextlib.suppress(OperationError):  # in use by what is not of this step
                removed |= docker.remove_network(network)
    return removed


def _give_names_back(docker: Engine, refs: dict[str, str | None], was: list[Member], *, pulled: bool) -> None:
    """Image names mean again what they meant, unless somebody else has moved them."""
    ours = {member.image_id for member in was}
    for ref, image_id in refs.items():
        current = docker.image_id(ref)
        if current == image_id or (current not in ours and not pulled):
            continue
        if image_id is not None:
            docker.tag(image_id, ref)
        elif pulled and current is not None:
            docker.untag(ref)
